"""How a gate is learned: the profile's own engine tells it where on this fabric it would find something.

1. Three of four windows of good cloth get defects drawn into them. The engine scores them all.
2. The gate learns, for each cell, how sure the engine is at its surest place. Every fourth picture is kept
   back, and half of the windows are cut from these.
3. Two thresholds are set on these, the gate's and that of the quick look behind it. A drawn defect that the
   engine finds, in however many regions, is kept when one of its blocks passes both, for then the engine sees
   all around it. At most the promised share may be lost, with the finite-sample correction of conformal
   prediction (Vovk et al., *Algorithmic Learning in a Random World*, 2005).
4. Both are lowered as far as no more of the windows without defects passes: on calm cloth, where nothing
   comes near them, this keeps most of what would be lost, and costs nothing.
5. On the pictures that were kept back it is seen how much passes, and on this machine what the gate and the
   networks take. A gate that does not pay is not kept.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.errors import DatasetError
from loomsight.fabric.images import to_rgb
from loomsight.fabric.regions import Grouping, label_regions
from loomsight.fabric.scores import logits
from loomsight.fabric.types import Picture, ScoreMap
from loomsight.fabric.woven import beside, cloth_within
from loomsight.loom import DRAWN_KINDS, draw_defect
from loomsight.progress import Progress
from loomsight.runtime.compiled import Compiled
from loomsight.runtime.gate import (
    BLOCK,
    CELL,
    SIDE,
    FullEngine,
    GateNetwork,
    around,
    block_logits,
    gate_input,
    grouped,
    own,
)
from loomsight.training.loop import TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

LOST = 0.01
"""The share of the drawn defects that the engine finds that the gate may lose."""
_OF_LOOK = 0.25  # of what may be lost, that the quick look may lose; the gate may lose the rest
_FEWEST = 130  # defects that are found: with fewer nothing can be promised
_CALM = 200  # blocks of good cloth: with fewer it is not known how little passes below a threshold
_NEAREST = 64  # of these, the likeliest to pass, that are looked at quickly
_APART = 4  # one picture in so many is kept back
_WINDOW = (256, 384)  # pixels, where the pictures are so large
_PIXELS = 160_000_000  # of all windows, at most
_CROP = 224  # pixels a side of what is learned from at a time
_DEFECTS = 3  # in a window: what is rare, a green speck, the gate has to see often enough
_STRIP = 64  # pixels of cloth beside a lamp that defects are drawn into, at least
_STEPS = 8000  # with a fifth of them two to eight times as much good cloth passes (docs/experiments.md)
_LEAST = 20.0, 0.5  # of the training, also where the windows took all the time: seconds, and share of all
_BATCH = 8
_HEAVIER = 20.0  # a cell where the engine is sure, against one where it is not
_LIGHT = 0.08  # by so much brighter or darker a window is shown
_SHARE = 0.4  # of the time for the windows and their scores


_Place = tuple[int, int]  # row and column of a block


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a good picture.

    Attributes:
        image: with what was drawn into it.
        drawn: the number of the defect that was drawn there, 0 where none was.
        score: what the engine says of it.
    """

    image: Picture
    drawn: UInt8[NDArray[np.uint8], "h w"]
    score: ScoreMap


@dataclass(frozen=True, slots=True)
class LearnedGate:
    """A gate that is not calibrated yet.

    Attributes:
        network: the gate.
        channels: of their pictures.
        held: the windows that were kept back; apart: the pictures that these were cut from.
    """

    network: GateNetwork
    channels: Literal[1, 3]
    held: list[Window]
    apart: list[Picture]


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
    engine: FullEngine,
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
        seconds: for all of it; more where defects that the engine finds are rare.

    Raises:
        DatasetError: no picture is as large as a block with its context.
    """
    progress = progress or Progress()
    large = [image for image in good if min(image.shape[:2]) >= SIDE]
    if not large:
        raise DatasetError("no gate can be learned", why=f"no good picture has {SIDE} × {SIDE} pixels")
    apart = large[::_APART]
    learning = [image for number, image in enumerate(large) if number % _APART] or large  # there is but one
    grey = all(image.ndim == 2 or bool((image[..., :1] == image[..., 1:]).all()) for image in large)
    size = [
        min(most, min(image.shape[axis] for image in large) // CELL * CELL)
        for axis, most in enumerate(_WINDOW)
    ]
    windows = _PIXELS // (size[0] * size[1])
    began, rng = time.monotonic(), np.random.default_rng([seed, 11])
    seen: list[Window] = []
    begun: deque[tuple[Picture, NDArray[np.uint8]]] = deque()

    def drawing() -> Iterator[Picture]:
        for number in range(windows):
            begun.append(_window((learning, apart)[number % 2], (size[0], size[1]), rng))
            yield begun[-1][0]

    found = 0
    for score in engine.scores(drawing()):
        seen.append(Window(*begun.popleft(), score))
        progress.step("windows for the gate", len(seen), windows)
        found += bool((score >= threshold).any())
        # Half of them are held back, and with too few of these nothing could be promised.
        if found >= 3 * _FEWEST and time.monotonic() - began > _SHARE * seconds:
            break
    channels: Literal[1, 3] = 1 if grey else 3
    learned, held = [(gate_input(one.image, channels), one.score) for one in seen[::2]], seen[1::2]
    levels = np.stack([image[::4, ::4] for image, _ in learned])
    torch.manual_seed(seed)
    network = GateNetwork(channels, float(levels.mean()), max(float(levels.std()), 1.0))
    left = seconds - (time.monotonic() - began)
    fit(
        _GateTask(network),
        _batches(learned, threshold, seed),
        TrainSettings(
            steps=_STEPS,
            seconds=max(left, _LEAST[0], _LEAST[1] * seconds),
            ema=0.99,
            amp="float32",
            validate_every=_STEPS,
            seed=seed,
        ),
        progress=progress,
    )
    return LearnedGate(network.eval().requires_grad_(False), channels, held, apart)


@dataclass(frozen=True, slots=True)
class GateThresholds:
    """What a gate is set to.

    Attributes:
        cell: the logit from which on a cell passes; near: the score in a quick look from which on a block is
            looked at once more.
        defects: on how many that the engine found both were set; with too few they let everything through.
    """

    cell: float
    near: float
    defects: int


def gate_thresholds(
    gate: Compiled,
    channels: int,
    engine: FullEngine,
    held: Sequence[Window],
    point: tuple[float, Grouping],
) -> GateThresholds:
    """Set a gate, and the quick look behind it.

    Args:
        gate: ready to run, as it will run on the line; channels: of its network.
        engine: what stands behind it.
        held: see :class:`LearnedGate`.
        point: threshold and grouping of the engine's regions.
    """
    said: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []  # of each defect's blocks
    for window in held:
        found = _found(window, *point)
        if not found:
            continue
        blocks = _blocks(gate, channels, window.image)
        looks = _quick_looks(engine, window.image, sorted({place for places in found for place in places}))
        for places in found:
            of_gate, of_look = ([own[place] for place in places] for own in (blocks, looks))
            said.append((np.array(of_gate, np.float32), np.array(of_look, np.float32)))
    if len(said) < _FEWEST:
        return GateThresholds(-math.inf, 0.0, len(said))
    lost = math.floor(LOST * (len(said) + 1)) - 1
    near = min(sorted(float(of_look.max()) for _, of_look in said)[int(_OF_LOOK * lost)], point[0])
    kept = (of_gate[of_look >= near] for of_gate, of_look in said)
    cell = sorted(float(of_gate.max(initial=-np.inf)) for of_gate in kept)[lost]
    good = [window.image for window in held if not window.drawn.any()]
    return _lowered(GateThresholds(cell, near, len(said)), gate, channels, engine, good)


def same_blocks(
    gate: Compiled, other: Compiled, channels: int, windows: Sequence[Window], cell: float
) -> float:
    """The share of the windows' blocks of which two forms of a gate say alike whether they pass."""
    both = [(_blocks(one, channels, window.image) >= cell) for window in windows for one in (gate, other)]
    return float(
        np.mean(np.concatenate([(a == b).ravel() for a, b in zip(both[::2], both[1::2], strict=True)]))
    )


def _lowered(
    most: GateThresholds, gate: Compiled, channels: int, engine: FullEngine, good: Sequence[Picture]
) -> GateThresholds:
    """Thresholds as low as they may be without that more of some good cloth passes."""
    blocks = [_blocks(gate, channels, image) for image in good]
    if sum(own.size for own in blocks) < _CALM:
        return most
    cell = _just_above(np.concatenate([own.ravel() for own in blocks]), most.cell)
    places = [
        (said, number, place) for number, own in enumerate(blocks) for place, said in np.ndenumerate(own)
    ]
    likeliest = sorted(places, reverse=True)[:_NEAREST]
    looked = [_quick_looks(engine, good[number], [place])[place] for _, number, place in likeliest]
    near = _just_above(np.array(looked, np.float32), most.near)
    return replace(most, cell=cell, near=near)


def _just_above(seen: Float[NDArray[np.float32], " n"], threshold: float) -> float:
    """Just above the highest of what lies below a threshold."""
    below = seen[seen < threshold]
    return float(np.nextafter(below.max(), np.float32(np.inf))) if len(below) else threshold


def _blocks(gate: Compiled, channels: int, image: Picture) -> Float[NDArray[np.float32], "i j"]:
    """The highest logit of each block of a picture."""
    (cells,) = gate.start(grouped(gate_input(image, channels))[None]).wait()
    return block_logits(cells[0])


def _found(window: Window, threshold: float, grouping: Grouping) -> list[set[_Place]]:
    """Of each drawn defect that the engine finds the blocks that its regions lie in."""
    count, labels = label_regions(window.score, threshold, grouping)
    found = []
    for number in range(1, int(window.drawn.max()) + 1):
        met = np.zeros(count + 1, np.bool_)
        met[labels[window.drawn == number]] = True
        met[0] = False
        if met.any():
            ys, xs = np.nonzero(met[labels])
            found.append(set(zip((ys // BLOCK).tolist(), (xs // BLOCK).tolist(), strict=True)))
    return found


def _quick_looks(engine: FullEngine, image: Picture, places: Sequence[_Place]) -> dict[_Place, float]:
    """The highest score of each of some blocks in a quick look."""
    tiles = [around(image, *place) for place in places]
    (scores,) = engine.jobs([(image, tiles)])
    looked = zip(places, tiles, scores, strict=True)
    return {place: float(own(image, *place, tile, score).max()) for place, tile, score in looked}


def _batches(
    learned: Sequence[tuple[Picture, ScoreMap]], threshold: float, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of windows in another light each, and cut so that the cells lie elsewhere."""
    height, width = (min(_CROP, length - CELL) for length in learned[0][0].shape[:2])

    def batch(k: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, 13, k])
        shown, sure = [], []
        for at in rng.integers(len(learned), size=_BATCH):
            image, score = learned[at]
            top, left = (
                int(rng.integers(room - length + 1))
                for room, length in zip(image.shape[:2], (height, width), strict=True)
            )
            part = slice(top, top + height), slice(left, left + width)
            gain = np.float32(np.exp(rng.uniform(-_LIGHT, _LIGHT)))
            shown.append((image[part] * gain).clip(0, 255))
            sure.append(_cells(score[part], threshold))
        windows = torch.from_numpy(grouped(np.stack(shown))).permute(0, 3, 1, 2).contiguous()
        return windows, torch.from_numpy(np.stack(sure))

    return batch


def _window(
    large: Sequence[Picture], size: tuple[int, int], rng: np.random.Generator
) -> tuple[Picture, NDArray[np.uint8]]:
    """A window of good cloth; three of four have defects drawn into its cloth, whose numbers are told."""
    image = large[int(rng.integers(len(large)))]
    top, left = (int(rng.integers(room - side + 1)) for room, side in zip(image.shape[:2], size, strict=True))
    window = image[top : top + size[0], left : left + size[1]].copy()
    woven = cloth_within(beside(to_rgb(window)), _STRIP) or (slice(None), slice(None))
    drawn = np.zeros(size, np.uint8)
    for number in range(1, 1 + (_DEFECTS if rng.random() < 0.75 else 0)):
        kind = DRAWN_KINDS[int(rng.integers(len(DRAWN_KINDS)))]
        window[woven], where = draw_defect(window[woven], kind, rng)
        drawn[woven][where] = number
    return window, drawn


def _cells(score: ScoreMap, threshold: float) -> Float[NDArray[np.float32], "i j"]:
    """How sure the engine is in each cell: the logistic of its margin over the threshold."""
    rows, columns = score.shape[0] // CELL, score.shape[1] // CELL
    highest = score.reshape(rows, CELL, columns, CELL).max((1, 3))
    margin = logits(highest) - logits(threshold)
    return np.asarray(1 / (1 + np.exp(-margin)), np.float32)
