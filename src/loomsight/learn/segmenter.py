"""Training a segmenter for one new fabric; what `learn` and the benchmark both call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loomsight.config import Config
from loomsight.detection.deeplab import IGNORED, Batch, Form, Segmenter, SegmenterTask, build, start_from
from loomsight.evaluation.operating_point import (
    AlarmRate,
    OperatingPoint,
    joined_through_faint,
    set_operating_point,
)
from loomsight.fabric.instances import boxes_of
from loomsight.fabric.regions import Grouping
from loomsight.fabric.types import Picture, ScoreMap, TrainingTile
from loomsight.progress import Progress
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis.recipe import Material, Recipe, TileMaker
from loomsight.training.loop import History, TrainSettings, Validate, fit

PIECES = Grouping(min_area=4, merge_gap=5)
"""A smaller region is noise, not cloth; and so many pixels lie between the pieces of one defect at most."""


class SegmenterSettings(Config):
    """The segmenter and how it learns."""

    form: Form = "lite"
    lr: float = 2e-3
    weight_decay: float = 1e-2
    ema: float = 0.98  # of the weights: about the last 50 steps
    resnet_weights: Path | None = None  # for the paper's form


def collate(tiles: list[TrainingTile], types: Sequence[str] = ()) -> Batch:
    """Tiles of one size as one batch; pictures stay uint8 until the training step."""
    batch: Batch = {
        "image": torch.from_numpy(np.stack([tile.image for tile in tiles])).permute(0, 3, 1, 2),
        "target": torch.from_numpy(np.stack([tile.target for tile in tiles]))[:, None],
        "weight": torch.from_numpy(np.stack([tile.weight for tile in tiles]))[:, None],
    }
    if not all(tile.weight.all() for tile in tiles):
        batch["boxes"] = [_boxes_alone(tile) for tile in tiles]
    if types:
        batch["types"] = torch.from_numpy(np.stack([_types_of(tile, types) for tile in tiles]))
    return batch


def _boxes_alone(tile: TrainingTile) -> NDArray[np.int64]:
    """The boxes of a tile's defects of which no pixel is known, (n, 4)."""
    if tile.instances is None or tile.weight.all():
        return np.zeros((0, 4), np.int64)
    return boxes_of(tile.instances)[0].astype(np.int64)


def _types_of(tile: TrainingTile, types: Sequence[str]) -> NDArray[np.int64]:
    """The number of each pixel's type, at half the resolution."""
    numbers = [IGNORED, *(types.index(name) if name in types else IGNORED for name in tile.types)]
    if tile.instances is None or tile.instances.ndim == 3:  # boxes alone
        return np.full([(side + 1) // 2 for side in tile.image.shape[:2]], IGNORED, np.int64)
    known = np.where(tile.target > 0.5, tile.instances, 0)  # inside a box alone no pixel's type is known
    fine = np.array(numbers, np.int64)[known]
    rows, columns = (side % 2 for side in fine.shape)
    fine = np.pad(fine, ((0, rows), (0, columns)), constant_values=IGNORED)
    # a thread of one pixel lies in every other row: the largest number of four, and IGNORED is the least
    return np.asarray(fine.reshape(fine.shape[0] // 2, 2, fine.shape[1] // 2, 2).max(axis=(1, 3)))


def train_segmenter(
    material: Material,
    recipe: Recipe,
    settings: SegmenterSettings | None = None,
    *,
    types: Sequence[str] = (),
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    start: tuple[Mapping[str, Tensor], Sequence[str]] | None = None,
    run: Path | None = None,
    validate: Validate | None = None,
    validate_every: int = 200,
    progress: Progress | None = None,
) -> tuple[Segmenter, History]:
    """Train a segmenter on a recipe's tiles, for so many steps or so much time, whichever ends first.

    The learning rate is constant and the result is the weights' moving average, so a longer training is
    the same training further on: there is no moment at which it has to be stopped.

    Args:
        types: the types it is to tell apart, names of ``DEFECT_TYPES``; none: it says only where.
        start: the state dict it starts from, a base's, and the types which that tells apart; None: the
            backbone's weights and a fresh decoder.

    Raises:
        TrainingError: it diverged.
        WeightsError: the backbone's weights are missing.
    """
    settings = settings or SegmenterSettings()
    torch.manual_seed(seed)
    network = build(settings.form, resnet_weights=settings.resnet_weights, types=types)
    if start is not None:
        start_from(network, *start)
    maker = TileMaker(recipe, material, seed=seed)
    batches: Callable[[int], Batch] = lambda k: collate(maker.batch(k), network.types)  # noqa: E731
    history = fit(
        SegmenterTask(network, lr=settings.lr, weight_decay=settings.weight_decay),
        batches,
        TrainSettings(
            steps=steps,
            seconds=seconds,
            schedule="constant",
            ema=settings.ema,
            validate_every=validate_every,
            seed=seed,
        ),
        run=run,
        validate=validate,
        progress=progress,
        about={"recipe": recipe.model_dump(mode="json"), "segmenter": settings.model_dump(mode="json")},
    )
    return network, history


def calibrate(
    network: Segmenter, good: tuple[Picture, ...], rate: AlarmRate
) -> tuple[OperatingPoint, list[ScoreMap]]:
    """Set the operating point on good cloth; also its score maps, for the report."""
    engine = TorchEngine(network)
    maps = [engine.score(image) for image in good]
    return set_operating_point(maps, rate, joined_through_faint(PIECES, maps)), maps
