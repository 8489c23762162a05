"""The gate: a tiny network says of most cloth that it is surely good, and only the rest is looked at in full.

Almost all cloth is good, and a segmenter spends thousands of multiplications on each of its pixels. The gate
spends a few hundred. It was distilled from the profile's own networks on the fabric's own cloth
(:mod:`loomsight.learn.gate`), so it need not know what a defect is, only where they would find something; its
threshold keeps all but the hundredth region that they find.

1. The gate looks at the whole picture: a logit for each cell of 32 pixels.
2. A *block* of 4 × 4 cells with one above the threshold *passes*: the networks look at it, with context
   around it as they would in a whole picture.
3. Where what they find reaches the block's edge, the neighbour is looked at too, so that a region is never
   cut off by a block.

Every :data:`AUDIT`-th picture is looked at in full. So a line measures what the gate loses while it runs, and
where it passes so much that it does not pay, it is switched off.

Two-stage inspection as in Viola and Jones, *Rapid Object Detection using a Boosted Cascade*, CVPR 2001.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.regions import label_parts
from loomsight.fabric.sparse import SparseMap
from loomsight.fabric.tiles import Tile
from loomsight.fabric.types import Picture, Region, ScoreMap
from loomsight.runtime.compiled import Compiled, Pending
from loomsight.runtime.graphs import Graph

if TYPE_CHECKING:
    from loomsight.runtime.engine import SegmenterEngine, UnionEngine

CELL = 32
"""Pixels a side of what the gate gives one logit for."""
BLOCK = 4 * CELL
"""Pixels a side of what passes or does not."""
CONTEXT = 32
"""Pixels around a block that the networks see with it."""
OVERHEAD = ((BLOCK + 2 * CONTEXT) / BLOCK) ** 2
"""Pixels that the networks look at for each pixel of a block that passes."""
AUDIT = 100
"""One picture in so many is looked at in full."""
_WIDTH = 24
_JUDGED = 20  # pictures after which the gate is switched off if it has not paid


class GateNetwork(nn.Module):
    """Four convolutions at strides 4 and 8, and the highest answer of each cell.

    Args:
        channels: 1 where the camera sees no colour, else 3.
        middle, spread: grey levels of good cloth.
    """

    def __init__(self, channels: int, middle: float = 127.0, spread: float = 50.0) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("level", torch.tensor([middle, spread]))
        wide, layers = _WIDTH, nn.ModuleList()
        for before, kernel, stride in ((channels, 8, 4), (wide, 3, 1), (wide, 3, 2), (wide, 3, 1)):
            layers.append(nn.Conv2d(before, wide, kernel, stride, padding=(kernel - 1) // 2, bias=False))
            layers.append(nn.BatchNorm2d(wide))
        self.layers, self.out = layers, nn.Conv2d(wide, 1, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b i j"]:
        """The logit of each cell, of pictures in grey levels whose sides :data:`CELL` divides."""
        x = (x - self.level[0]) / self.level[1]  # type: ignore[index]
        x = F.pad(x, (0, 1, 0, 1))  # an even kernel has no middle: one pixel more at the far sides
        for convolution, norm in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = norm(convolution(x)).relu()
        return F.max_pool2d(self.out(x), CELL // 8)[:, 0]


class GateGraph(Graph):
    """A gate: the logit of each cell."""

    outputs = ("cells",)
    step = CELL

    def __init__(self, network: GateNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: UInt8[Tensor, "b h w c"]) -> tuple[Float[Tensor, "b i j"]]:
        return (self.network(tiles.permute(0, 3, 1, 2).float()),)


@dataclass
class GateCount:
    """What a gate did.

    Attributes:
        blocks, passed: how many it saw, and how many of them the networks looked at.
        regions, lost: in the pictures that were looked at in full, what was found, and what the gate lost.
        off: whether it was switched off because it passed too much to pay.
    """

    blocks: int = 0
    passed: int = 0
    regions: int = 0
    lost: int = 0
    audits: int = 0
    off: bool = False

    @property
    def rate(self) -> float:
        """The share of the blocks that passed."""
        return self.passed / self.blocks if self.blocks else 0.0


class FullEngine(Protocol):
    """What a gate stands before."""

    def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]: ...

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]: ...

    def corrected(self, image: Picture) -> Picture: ...


@dataclass
class _Job:
    """A picture on its way: which of its blocks passed, and whether it is looked at in full."""

    image: Picture
    passed: Bool[NDArray[np.bool_], "i j"]
    audit: bool = False
    tiles: list[Tile] = field(default_factory=list)


class GatedEngine:
    """A gate before an engine.

    Args:
        gate: the gate, ready to run.
        threshold: the logit from which on a cell passes.
        channels: of the gate.
        full: what looks at what passes.
        point: threshold, min_area and merge_gap of regions: what follows a region, and what is lost.
        worth: the share of blocks that may pass before looking at all of it would be quicker.
        audits: look at every :data:`AUDIT`-th picture in full.
    """

    def __init__(
        self,
        gate: Compiled,
        threshold: float,
        channels: int,
        full: SegmenterEngine | UnionEngine,
        *,
        point: tuple[float, int, int],
        worth: float = 1.0,
        audits: bool = True,
    ) -> None:
        self._gate, self._threshold, self._channels, self.full = gate, threshold, channels, full
        self._point, self._worth, self._audits = point, worth, audits
        self.count = GateCount()
        self._seen = 0

    def score(self, image: Picture) -> ScoreMap:
        """The score map of a picture, 0 where the gate is sure."""
        (look,) = self.looks([image])
        return look.dense()

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        """The regions with their types, see the engine behind the gate."""
        return self.full.name(image, regions)

    def looks(self, images: Iterable[Picture]) -> Iterator[SparseMap]:
        """The scores of pictures in order, where the networks looked; pictures are drawn ahead."""
        begun: deque[_Job] = deque()

        def tiled() -> Iterator[tuple[Picture, Sequence[Tile]]]:
            for job in self._gated(images):
                begun.append(job)
                yield job.image, job.tiles

        for scores in self.full.jobs(tiled()):
            yield self._grown(begun.popleft(), scores)

    def _gated(self, images: Iterable[Picture]) -> Iterator[_Job]:
        """The gate's answers, in order."""
        flying: deque[tuple[Picture, Pending]] = deque()
        for image in images:
            corrected = self.full.corrected(image)
            flying.append((corrected, self._gate.start(self.input(corrected)[None])))
            if len(flying) > self._gate.depth:
                yield self._judged(*flying.popleft())
        while flying:
            yield self._judged(*flying.popleft())

    def _judged(self, image: Picture, pending: Pending) -> _Job:
        """Which blocks of a picture pass, and the tiles that they are looked at in."""
        job = _Job(image, self._passing(pending))
        small = min(image.shape[:2]) < BLOCK + 2 * CONTEXT
        job.audit = (self._audits and self._seen % AUDIT == 0) or small or self.count.off
        self._seen += 1
        self.count.blocks += job.passed.size
        self.count.passed += int(job.passed.sum())
        if self._audits and self._seen == _JUDGED and self.count.rate > self._worth:
            self.count.off = True
        if not job.audit:
            job.tiles = [_around(image, int(y), int(x)) for y, x in np.argwhere(job.passed)]
        return job

    def passed(self, image: Picture) -> Bool[NDArray[np.bool_], "i j"]:
        """Which blocks of a corrected picture pass."""
        return self._passing(self._gate.start(self.input(image)[None]))

    def _passing(self, pending: Pending) -> Bool[NDArray[np.bool_], "i j"]:
        (cells,) = pending.wait()
        return blocks_of(cells[0] >= self._threshold)

    def input(self, image: Picture) -> UInt8[NDArray[np.uint8], "h w c"]:
        """A picture as the gate takes it: in its channels, its far sides repeated to whole cells."""
        seen = to_grey(image) if self._channels == 1 else to_rgb(image)
        below, beside = (-side % CELL for side in seen.shape[:2])
        if below or beside:
            seen = np.asarray(cv2.copyMakeBorder(seen, 0, below, 0, beside, cv2.BORDER_REPLICATE), np.uint8)
        return seen.reshape(*seen.shape[:2], self._channels)

    def _grown(self, job: _Job, scores: list[ScoreMap]) -> SparseMap:
        """The map of a picture: what passed, and the neighbours that its regions reach into."""
        image = job.image
        if job.audit:
            (whole,) = self.full.scores([image])
            self._check(whole, job.passed)
            return SparseMap.whole(whole)
        if not job.tiles:
            return SparseMap((image.shape[0], image.shape[1]), [])
        known = {}
        places = [(int(y), int(x)) for y, x in np.argwhere(job.passed)]
        while True:
            for place, tile, score in zip(places, job.tiles, scores, strict=True):
                known[place] = _own(image, place, tile, score)
            places = self._reached(image, known)
            if not places:
                return SparseMap((image.shape[0], image.shape[1]), _windows(known))
            job.tiles = [_around(image, y, x) for y, x in places]
            (scores,) = self.full.jobs([(image, job.tiles)])

    def _reached(self, image: Picture, known: dict[tuple[int, int], ScoreMap]) -> list[tuple[int, int]]:
        """Blocks that are not known, beside one whose region reaches its edge."""
        threshold, _, gap = self._point
        rows, columns = (-(-side // BLOCK) for side in image.shape[:2])
        reached = set()
        for (y, x), score in known.items():
            sure = score >= threshold
            if not sure.any():
                continue
            deep = gap + 1
            for down, right, edge in (
                (-1, 0, sure[:deep]), (1, 0, sure[-deep:]), (0, -1, sure[:, :deep]), (0, 1, sure[:, -deep:])
            ):  # fmt: skip
                place = y + down, x + right
                if 0 <= place[0] < rows and 0 <= place[1] < columns and place not in known and edge.any():
                    reached.add(place)
        return sorted(reached)

    def _check(self, whole: ScoreMap, passed: Bool[NDArray[np.bool_], "i j"]) -> None:
        """Count what the gate would have lost of a picture that was looked at in full."""
        found, lost = lost_regions(whole, passed, *self._point)
        self.count.audits += 1
        self.count.regions += found
        self.count.lost += lost


def blocks_of(cells: Bool[NDArray[np.bool_], "i j"]) -> Bool[NDArray[np.bool_], "k l"]:
    """Which blocks have a cell that passes; blocks at the far sides may have fewer cells."""
    side = BLOCK // CELL
    below, beside = (-length % side for length in cells.shape)
    full = np.pad(cells, ((0, below), (0, beside)))
    return np.asarray(full.reshape(full.shape[0] // side, side, -1, side).any((1, 3)), np.bool_)


def lost_regions(
    whole: ScoreMap, passed: Bool[NDArray[np.bool_], "i j"], threshold: float, min_area: int, merge_gap: int
) -> tuple[int, int]:
    """How many regions a map has, and how many of them lie in no block that passed."""
    count, labels = label_parts(whole >= threshold, merge_gap)
    if not count:
        return 0, 0
    large = np.bincount(labels.ravel(), minlength=count + 1) >= min_area
    large[0] = False
    looked = np.kron(passed, np.ones((BLOCK, BLOCK), np.bool_))[: whole.shape[0], : whole.shape[1]]
    met = np.zeros(count + 1, np.bool_)
    met[np.unique(labels[looked])] = True
    return int(large.sum()), int((large & ~met).sum())


def _around(image: Picture, row: int, column: int) -> Tile:
    """The tile that a block is looked at in; at the picture's border it is moved inwards."""
    side = BLOCK + 2 * CONTEXT
    y0, x0 = (
        min(max(0, at * BLOCK - CONTEXT), length - side)
        for at, length in zip((row, column), image.shape[:2], strict=True)
    )
    return Tile(y0, x0, y0 + side, x0 + side)


def _own(image: Picture, place: tuple[int, int], tile: Tile, score: ScoreMap) -> ScoreMap:
    """The scores of the block itself, copied."""
    top, left = place[0] * BLOCK, place[1] * BLOCK
    bottom, right = min(top + BLOCK, image.shape[0]), min(left + BLOCK, image.shape[1])
    return score[top - tile.y0 : bottom - tile.y0, left - tile.x0 : right - tile.x0].copy()


def _windows(known: dict[tuple[int, int], ScoreMap]) -> list[tuple[int, int, ScoreMap]]:
    """Blocks that touch joined to one window."""
    rows, columns = (max(place[axis] for place in known) + 1 for axis in (0, 1))
    there = np.zeros((rows, columns), np.bool_)
    for place in known:
        there[place] = True
    count, labels = label_parts(there)
    windows = []
    for number in range(1, count + 1):
        places = [(int(y), int(x)) for y, x in np.argwhere(labels == number)]
        if len(places) == 1:
            ((y, x),) = places
            windows.append((y * BLOCK, x * BLOCK, known[y, x]))
            continue
        top, left = (min(place[axis] for place in places) * BLOCK for axis in (0, 1))
        bottom = max(y * BLOCK + known[y, x].shape[0] for y, x in places)
        right = max(x * BLOCK + known[y, x].shape[1] for y, x in places)
        joined = np.zeros((bottom - top, right - left), np.float32)
        for y, x in places:
            own = known[y, x]
            at = y * BLOCK - top, x * BLOCK - left
            joined[at[0] : at[0] + own.shape[0], at[1] : at[1] + own.shape[1]] = own
        windows.append((top, left, joined))
    return windows
