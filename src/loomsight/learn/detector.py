"""Training a detector for one new fabric: the same tiles as the segmenter's, as boxes with types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from loomsight.base import Base
from loomsight.card import DetectorCard
from loomsight.config import Config
from loomsight.detection.fusion import FusionPoint, evidence
from loomsight.detection.rtdetr import (
    Detector,
    DetectorBatch,
    DetectorForm,
    DetectorTask,
    build,
    start_from,
    targets,
)
from loomsight.evaluation.operating_point import AlarmRate, OperatingPoint, point_from_alarms
from loomsight.fabric.instances import boxes_of
from loomsight.fabric.types import UNKNOWN, Picture, Region, ScoreMap, TrainingTile
from loomsight.learn.cloth import Doubt
from loomsight.progress import Progress
from loomsight.runtime.engine import FAINT, TorchDetector
from loomsight.synthesis.recipe import Material, Recipe, TileMaker, types_in
from loomsight.training.loop import History, TrainSettings, Validate, fit

LEAST_PIXELS = 3
"""Of a defect that the tile's border cuts: with less in the tile it is no target there."""


FEW_STEPS = 150
"""Training steps from a base's detector: with fewer it does not know the new cloth yet."""
FEW_STEPS_AFRESH = 3000
"""Training steps from nothing but ImageNet's features: with fewer it is sure of little."""


class DetectorSettings(Config):
    """The detector and how it learns."""

    form: DetectorForm = "lite0"
    weights: Path | None = None  # safetensors, for a ResNet form
    lr: PositiveFloat = 1e-3
    weight_decay: float = Field(1e-4, ge=0)
    ema: float = Field(0.98, ge=0, lt=1)
    tile: int = Field(160, ge=128, le=1024, multiple_of=32)  # pixels a side, in training and in inspection
    batch: int = Field(4, ge=1)
    most: int = Field(8, ge=1)  # defects made in one tile, and
    another: float = Field(0.85, ge=0, le=1)  # the chance of a further one: see Recipe


@dataclass
class LearnedDetector:
    """A detector beside a segmenter: what it is, of which tiles and how it was trained, where it is set, what
    to doubt."""

    network: Detector
    recipe: Recipe
    history: History
    point: OperatingPoint
    card: DetectorCard
    doubts: list[Doubt]


def learn_detector(
    material: Material,
    recipe: Recipe,
    settings: DetectorSettings,
    *,
    beside: tuple[OperatingPoint, Sequence[ScoreMap], Sequence[Picture], AlarmRate],
    start: tuple[Mapping[str, Tensor], Sequence[str]] | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LearnedDetector:
    """Train a detector for a new fabric, and set it and its fusion with the segmenter on good cloth.

    Args:
        beside: the segmenter's operating point, its maps of the good pictures that set it, these pictures,
            and the promise.
        start: as :func:`train_detector`.
    """
    network, history = train_detector(
        material, recipe, settings, start=start, steps=steps, seconds=seconds, seed=seed, progress=progress
    )
    point, maps, good, rate = beside
    looking = TorchDetector(network, settings.tile)
    boxes = [looking.detect(image) for image in good]
    own, fusion, margins = calibrate_fusion(point, maps, boxes, rate)
    card = DetectorCard(
        form=settings.form, types=network.types, tile=settings.tile, fusion=fusion, margins=margins
    )
    doubts = []
    enough = FEW_STEPS_AFRESH if start is None else FEW_STEPS
    if history.steps < enough:
        text = f"only {history.steps} training steps of the detector were done, {enough} make a sure one"
        doubts.append(Doubt("short", f"{text}: give more --minutes"))
    return LearnedDetector(network, recipe_for(recipe, settings), history, own, card, doubts)


def as_in_base(settings: DetectorSettings, base: Base | None) -> DetectorSettings:
    """The settings with the form and the tile of a base's detector, as far as none was asked for."""
    built = base.card.networks.get("detector") if base is not None else None
    asked = settings.model_fields_set
    if built is None or ("form" in asked and settings.form != built["form"]):
        return settings
    return settings.model_copy(update={k: built[k] for k in ("form", "tile") if k not in asked})


def base_detector(base: Base | None, form: DetectorForm) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """A base's detector, if it has one of this form, and the types which that tells apart: what a training
    starts from."""
    built = base.card.networks.get("detector") if base is not None else None
    if base is None or built is None or built["form"] != form:
        return None
    return base.weights("detector"), tuple(str(name) for name in cast("list[str]", built["types"]))


def recipe_for(recipe: Recipe, settings: DetectorSettings) -> Recipe:
    """The same arms and shares in the detector's tiles, each full of made defects.

    A detector learns from boxes, not from pixels: five to a tile teach it five times as much as one
    (dense one-to-one matching; Huang et al., *DEIM*, CVPR 2025).
    """
    own = {name: getattr(settings, name) for name in ("tile", "batch", "most", "another")}
    return recipe.model_copy(update=own)


def collate_boxes(tiles: Sequence[TrainingTile], types: Sequence[str]) -> DetectorBatch:
    """Tiles of one size as one batch, their defects as boxes."""
    number = {name: k for k, name in enumerate(types)}
    labels = []
    for tile in tiles:
        boxes, classes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        if tile.instances is not None:
            sizes = np.bincount(tile.instances.ravel(), minlength=len(tile.types) + 1)
            boxes, which = boxes_of(tile.instances)
            height, width = tile.instances.shape[:2]
            cut = (boxes[:, :2] <= 0).any(axis=1) | (boxes[:, 2:] >= (width, height)).any(axis=1)
            keep = ~cut | (sizes[which] >= LEAST_PIXELS)
            boxes, which = boxes[keep], which[keep]
            names = [tile.types[k - 1] for k in which]
            classes = np.array([number.get(name, number.get(UNKNOWN, 0)) for name in names], np.int64)
        labels.append(targets(boxes, classes, (tile.image.shape[0], tile.image.shape[1])))
    image = torch.from_numpy(np.stack([tile.image for tile in tiles])).permute(0, 3, 1, 2)
    return {"image": image, "labels": labels}


def train_detector(
    material: Material,
    recipe: Recipe,
    settings: DetectorSettings | None = None,
    *,
    types: Sequence[str] | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    start: tuple[Mapping[str, Tensor], Sequence[str]] | None = None,
    run: Path | None = None,
    validate: Validate | None = None,
    validate_every: int = 200,
    progress: Progress | None = None,
) -> tuple[Detector, History]:
    """Train a detector on a recipe's tiles, for so many steps or so much time, whichever ends first.

    Args:
        types: what to tell apart; if not given, what the tiles have.
        start: the state dict it starts from, a base's, and the types which that tells apart.

    Raises:
        TrainingError: it diverged.
        WeightsError: weights are missing or not of this network.
    """
    settings = settings or DetectorSettings()
    own = recipe_for(recipe, settings)
    torch.manual_seed(seed)
    named = tuple(types or types_in(material, own))
    network = build(settings.form, named, weights=settings.weights)
    if start is not None:
        start_from(network, *start)
    maker = TileMaker(own, material, seed=seed)
    history = fit(
        DetectorTask(network, lr=settings.lr, weight_decay=settings.weight_decay),
        lambda k: collate_boxes(maker.batch(k), named),
        TrainSettings(
            steps=steps,
            seconds=seconds,
            schedule="cosine",
            ema=settings.ema,
            validate_every=validate_every,
            seed=seed,
        ),
        run=run,
        validate=validate,
        progress=progress,
        about={"recipe": own.model_dump(mode="json"), "detector": settings.model_dump(mode="json")},
    )
    return network, history


def calibrate_fusion(
    segmenter: OperatingPoint,
    maps: Sequence[ScoreMap],
    boxes: Sequence[Sequence[Region]],
    rate: AlarmRate,
) -> tuple[OperatingPoint, FusionPoint, OperatingPoint]:
    """Set the detector's own threshold and the fused one on good cloth, each by the same promise.

    Args:
        segmenter: the segmenter's operating point, set on this cloth by this promise.
        maps, boxes: what both networks say of the same good pictures.

    Returns:
        the detector's operating point, the fusion's, and that of the evidence of both, see
        :meth:`FusionPoint.set_by`.
    """
    megapixels = sum(score.size for score in maps) / 1e6
    alarms = [box.score for found in boxes for box in found]
    own = point_from_alarms(alarms, rate, megapixels, floor=FAINT)
    counted = max(rate.value, (1 + 1e-9) * rate.megapixels / megapixels)  # one alarm or more
    free = FusionPoint(
        segmenter=segmenter.moved(counted).threshold,
        detector=own.moved(counted).threshold,
        margin=0.0,
        min_area=segmenter.min_area,
        merge_gap=segmenter.merge_gap,
        faint=segmenter.faint,
        threshold=segmenter.threshold,
    )
    margins = [
        group.margin
        for score, found in zip(maps, boxes, strict=True)
        for group in evidence(score, found, free)
    ]
    # margins as scores, so that one rule sets every threshold: a margin of 0 is a score of one half
    together = point_from_alarms([1 / (1 + math.exp(-m)) for m in margins], rate, megapixels)
    return own, free.set_by(together, segmenter), together
