"""How a gate is learned: the profile's own engine tells it where on this fabric it would find something.

1. Windows of good cloth get defects drawn into them, a few each; good pictures stay as they are. The engine
   scores them all.
2. The gate learns, for each cell, how sure the engine is at its surest place. Half of the windows are kept
   back.
3. Its threshold is set on these: of the regions that the engine finds there, at most the promised share may
   lie where the gate says nothing, with the finite-sample correction of conformal prediction (Vovk et al.,
   *Algorithmic Learning in a Random World*, 2005).
4. On good cloth it is seen how much passes, and on this machine what the gate and the networks take. A gate
   that does not pay is not kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.errors import DatasetError
from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.regions import find_regions
from loomsight.fabric.scores import logits
from loomsight.fabric.types import Picture, ScoreMap
from loomsight.loom import DRAWN_KINDS, draw_defect
from loomsight.progress import Progress
from loomsight.runtime.compiled import Compiled
from loomsight.runtime.engine import SegmenterEngine, UnionEngine
from loomsight.runtime.gate import BLOCK, CELL, CONTEXT, GateNetwork
from loomsight.training.loop import TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

LOST = 0.01
"""The share of the engine's regions that the gate may lose."""
_PROMISED = 0.75 * LOST  # real defects are not those that are drawn
_SIDE = 320  # pixels of a window, where the pictures are so large
_DEFECTS = (2, 4)  # in a window
_WINDOWS = 600
_LEAST_WINDOWS = 40
_STEPS = 1500
_BATCH = 8
_HEAVIER = 8.0  # a cell where the engine is sure, against one where it is not
_LIGHT = 0.08  # by so much brighter or darker a window is shown
_SHARE = 0.5  # of the time for the windows and their scores


@dataclass(frozen=True, slots=True)
class LearnedGate:
    """A gate that is not calibrated yet.

    Attributes:
        network: the gate.
        held: what was kept back: windows in the gate's channels, uint8 HWC, and the engine's scores of them.
    """

    network: GateNetwork
    held: list[tuple[Picture, ScoreMap]]


class _GateTask:
    """Binary cross-entropy of each cell against how sure the engine is there."""

    def __init__(self, network: GateNetwork) -> None:
        self._network = network
        self.networks: Mapping[str, nn.Module] = {"gate": network}
        self.optimizers = {"gate": torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)}

    def step(self, batch: tuple[Tensor, Tensor], context: Context) -> dict[str, Tensor]:
        windows, sure = batch
        said = self._network(windows.float())
        loss = F.binary_cross_entropy_with_logits(said, sure, reduction="none") * (1 + _HEAVIER * sure)
        mean = loss.mean()
        context.update(mean)
        return {"gate": mean}


def learn_gate(
    engine: SegmenterEngine | UnionEngine,
    good: Sequence[Picture],
    threshold: float,
    *,
    seconds: float,
    seed: int = 0,
    progress: Progress | None = None,
) -> LearnedGate:
    """Distil a gate from an engine.

    Args:
        engine: what the gate will stand before.
        good: pictures of good cloth, corrected, uint8 HW or HWC RGB.
        threshold: the score from which on the engine reports a pixel.
        seconds: for all of it; at least a few windows are always looked at.

    Raises:
        DatasetError: no picture is as large as a block with its context.
    """
    progress = progress or Progress()
    large = [image for image in good if min(image.shape[:2]) >= BLOCK + 2 * CONTEXT]
    if not large:
        raise DatasetError("no gate can be learned", why="no good picture has 192 × 192 pixels")
    grey = all(image.ndim == 2 or bool((image[..., :1] == image[..., 1:]).all()) for image in large)
    side = min(_SIDE, min(min(image.shape[:2]) for image in large) // CELL * CELL)
    began, rng = time.monotonic(), np.random.default_rng([seed, 11])
    seen: list[tuple[Picture, ScoreMap]] = []
    while len(seen) < _WINDOWS:
        seen.append(_scored(engine, _window(large, side, rng, made=len(seen) % 4 != 3)))
        progress.step("windows for the gate", len(seen), _WINDOWS)
        if len(seen) >= _LEAST_WINDOWS and time.monotonic() - began > _SHARE * seconds:
            break
    seen = [(_in(image, grey), score) for image, score in seen]
    learned, held = seen[::2], seen[1::2]
    levels = np.stack([image[::4, ::4] for image, _ in learned])
    torch.manual_seed(seed)
    network = GateNetwork(1 if grey else 3, float(levels.mean()), max(float(levels.std()), 1.0))
    fit(
        _GateTask(network),
        _batches(learned, threshold, seed),
        TrainSettings(
            steps=_STEPS,
            seconds=max(seconds - (time.monotonic() - began), 3.0),
            ema=0.99,
            amp="float32",
            validate_every=_STEPS,
            seed=seed,
        ),
        progress=progress,
    )
    network.eval().requires_grad_(False)
    return LearnedGate(network, held)


def gate_threshold(
    gate: Compiled,
    held: Sequence[tuple[Picture, ScoreMap]],
    threshold: float,
    *,
    min_area: int,
    merge_gap: int,
) -> tuple[float, int]:
    """The logit from which on a cell passes, and on how many regions it was set.

    Args:
        gate: ready to run, as it will run on the line.
        held: see :class:`LearnedGate`.
        threshold, min_area, merge_gap: of the engine's regions.

    Returns:
        minus infinity where there were too few regions to promise anything.
    """
    surest = []
    for image, score in held:
        cells = gate.start(image[None]).wait()[0][0]
        for region in find_regions(score, threshold, min_area=min_area, merge_gap=merge_gap):
            x0, y0, x1, y1 = region.box
            over = score[y0:y1, x0:x1] >= threshold
            rows, columns = np.nonzero(over)
            surest.append(float(cells[(rows + y0) // CELL, (columns + x0) // CELL].max()))
    surest.sort()
    rank = math.floor(_PROMISED * (len(surest) + 1))
    # Too few to promise anything: everything passes, and the gate will not pay.
    return (surest[rank - 1] if rank else -math.inf), len(surest)


def _batches(
    learned: Sequence[tuple[Picture, ScoreMap]], threshold: float, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of windows in another light each, and cut so that the cells lie elsewhere."""
    side = learned[0][0].shape[0] - CELL

    def batch(k: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, 13, k])
        shown, sure = [], []
        for at in rng.integers(len(learned), size=_BATCH):
            image, score = learned[at]
            top, left = rng.integers(CELL + 1, size=2)
            own = slice(top, top + side), slice(left, left + side)
            gain = np.float32(np.exp(rng.uniform(-_LIGHT, _LIGHT)))
            shown.append((image[own] * gain).clip(0, 255))
            sure.append(_cells(score[own], threshold))
        return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(
            np.stack(sure)
        )

    return batch


def _window(large: Sequence[Picture], side: int, rng: np.random.Generator, *, made: bool) -> Picture:
    """A window of good cloth, with defects drawn into it or without."""
    image = large[int(rng.integers(len(large)))]
    top, left = (int(rng.integers(room - side + 1)) for room in image.shape[:2])
    window = np.ascontiguousarray(image[top : top + side, left : left + side])
    for _ in range(int(rng.integers(_DEFECTS[0], _DEFECTS[1] + 1)) if made else 0):
        window, _ = draw_defect(window, DRAWN_KINDS[int(rng.integers(len(DRAWN_KINDS)))], rng)
    return window


def _scored(engine: SegmenterEngine | UnionEngine, window: Picture) -> tuple[Picture, ScoreMap]:
    return window, engine.score(window)


def _in(image: Picture, grey: bool) -> NDArray[np.uint8]:
    return to_grey(image)[..., None] if grey else to_rgb(image)


def _cells(score: ScoreMap, threshold: float) -> Float[NDArray[np.float32], "i j"]:
    """How sure the engine is in each cell: the logistic of its margin over the threshold."""
    rows, columns = score.shape[0] // CELL, score.shape[1] // CELL
    highest = score.reshape(rows, CELL, columns, CELL).max((1, 3))
    margin = logits(highest) - logits(threshold)
    return np.asarray(1 / (1 + np.exp(-margin)), np.float32)
