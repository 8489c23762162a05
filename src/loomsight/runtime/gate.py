"""The gate: a tiny network says of most cloth that it is surely good, and only the rest is looked at in full.

Almost all cloth is good, and a segmenter spends thousands of multiplications on each of its pixels. The gate
spends a few hundred. It was distilled from the profile's own networks on the fabric's own cloth
(:mod:`loomsight.learn.gate`), so it need not know what a defect is, only where they would find something; its
threshold keeps all but the hundredth region that they find.

1. The gate looks at the whole picture: a logit for each cell of 32 pixels.
2. A *block* of 4 × 4 cells with one above the threshold *passes*: the networks have a quick look at it, with
   a little of its surroundings. Most of these are good all the same: they are nowhere near the threshold.
3. Around a block where they are near it, and at bars, which are too wide for a gate and are looked for in all
   cloth, they look once more, at the very tiles that their engine cuts a whole picture into: so the scores
   are the same, but that cloth that is stranger as a whole is not known as such. What is found is followed
   into the next tiles, so that no region is cut off, and no printed mark that was taught to be good.

Every :data:`AUDIT`-th picture is looked at in full, so that a line measures what the gate loses while it
runs. Where the networks had to look at so much of the last pictures that the gate did not pay, it stands
aside: then one picture in :data:`PROBED` goes through it, and it comes back when it pays again.

Two-stage inspection as in Viola and Jones, *Rapid Object Detection using a Boosted Cascade*, CVPR 2001.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.look import Look
from loomsight.fabric.regions import Grouping, faint_pixels, label_parts, label_regions, span
from loomsight.fabric.tiles import Tile
from loomsight.fabric.types import Box, Mask, Picture, Region, ScoreMap
from loomsight.runtime.compiled import Compiled, Pending
from loomsight.runtime.graphs import Graph

CELL = 32
"""Pixels a side of what the gate gives one logit for."""
BLOCK = 4 * CELL
"""Pixels a side of what passes or does not."""
CONTEXT = 16
"""Pixels around a block that the networks see with it, in a quick look."""
SIDE = BLOCK + 2 * CONTEXT
"""Pixels a side of a quick look; a smaller picture is looked at in full."""
OVERHEAD = (SIDE / BLOCK) ** 2
"""Pixels that the networks look at for each pixel of a block that passes."""
AUDIT = 100
"""One picture in so many is looked at in full; not the first, which may be the whole roll."""
PROBED = 10
"""One picture in so many goes through a gate that stands aside."""
GROUP = 4
"""Pixels of a row that the network takes as one, with their channels side by side."""
_WIDTHS = 16, 24, 24, 24  # of its layers
_FOLLOWED = 8  # times that a region is followed before all of the picture is looked at
_FIRST_AUDIT = 9  # pictures before the first that is looked at in full
_JUDGED = 10  # pictures, the last that went through the gate, by which it is judged whether it pays


class GateNetwork(nn.Module):
    """Four convolutions, the first at stride 4, the others at 8, and the highest answer of each cell.

    It takes the pixels of a row in groups, see :func:`grouped`: the first convolution, 8 × 8 pixels at stride
    4, is one of 8 × 2 groups then, of which a processor multiplies several channels at a time.

    Args:
        channels: 1 where the camera sees no colour, else 3.
        middle, spread: grey levels of good cloth.
    """

    def __init__(self, channels: int, middle: float = 127.0, spread: float = 50.0) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("level", torch.tensor([middle, spread]))
        first, *others = _WIDTHS
        layers = nn.ModuleList([nn.Conv2d(GROUP * channels, first, (8, 2), (4, 1), bias=False)])
        layers.append(nn.BatchNorm2d(first))
        for stride, before, after in zip((2, 1, 1), _WIDTHS[:-1], others, strict=True):
            layers.append(nn.Conv2d(before, after, 3, stride, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(after))
        self.layers, self.out = layers, nn.Conv2d(others[-1], 1, 1)

    def forward(self, x: Float[Tensor, "b cg h wg"]) -> Float[Tensor, "b i j"]:
        """The logit of each cell, of grouped pictures in grey levels whose sides :data:`CELL` divides."""
        x = (x - self.level[0]) / self.level[1]  # type: ignore[index]
        x = F.pad(x, (1, 0, 4, 0))  # an even kernel has no middle: it reaches back
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

    def forward(self, tiles: UInt8[Tensor, "b h wg cg"]) -> tuple[Float[Tensor, "b i j"]]:
        return (self.network(tiles.permute(0, 3, 1, 2).float()),)


@dataclass
class GateCount:
    """What a gate did.

    Attributes:
        pictures: all; aside: those that it stood aside for, being too small for it or since it did not pay.
        pixels, looked: of all pictures, and those that the networks looked at, quickly or more closely.
        audits: pictures that were looked at in full; regions, lost: what was found in these, and what the
            gate lost.
    """

    pictures: int = 0
    aside: int = 0
    pixels: int = 0
    looked: int = 0
    regions: int = 0
    lost: int = 0
    audits: int = 0

    @property
    def rate(self) -> float:
        """The share of the cloth that the networks looked at."""
        return self.looked / self.pixels if self.pixels else 0.0


class FullEngine(Protocol):
    """What a gate stands before."""

    @property
    def reach(self) -> int: ...

    def score(self, image: Picture) -> ScoreMap: ...

    def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]: ...

    def score_where(self, image: Picture, boxes: Sequence[Box]) -> tuple[ScoreMap, Mask]: ...

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]: ...

    def bars(self, image: Picture, threshold: float) -> Sequence[Box]: ...

    def corrected(self, image: Picture) -> Picture: ...

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]: ...


@dataclass
class _Job:
    """A picture as given and as corrected, what passed, its bars, and whether all is looked at."""

    given: Picture
    image: Picture
    passed: Bool[NDArray[np.bool_], "i j"]
    bars: Sequence[Box]
    whole: bool = False
    tiles: list[Tile] = field(default_factory=list)


class GatedEngine:
    """A gate before an engine.

    Args:
        gate: the gate, ready to run.
        threshold: the logit from which on a cell passes.
        near: the score in a quick look from which on a block is looked at once more.
        channels: of the gate; group: see :func:`grouped`.
        full: what looks at what passes.
        point: threshold and grouping of regions: what follows a region, and what is lost.
        worth: the share of blocks that may pass before looking at all of it would be quicker.
        audits: look at every :data:`AUDIT`-th picture in full, and stand aside where it does not pay.
    """

    def __init__(
        self,
        gate: Compiled,
        threshold: float,
        near: float,
        channels: int,
        full: FullEngine,
        *,
        point: tuple[float, Grouping],
        worth: float = 1.0,
        audits: bool = True,
        group: int = GROUP,
    ) -> None:
        self._gate, self._threshold, self._near, self._channels = gate, threshold, near, channels
        self._group = group
        self.full = full
        self._point, self._worth, self._audits = point, worth, audits
        self.count = GateCount()
        self._drawn = self._seen = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_JUDGED)  # pixels looked at, and of the picture

    def score(self, image: Picture) -> ScoreMap:
        """The score map of a picture, 0 where the gate is sure."""
        (look,) = self.looks([image])
        return look.dense()

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        """The regions with their types, see the engine behind the gate."""
        return self.full.name(image, regions)

    def looks(self, images: Iterable[Picture]) -> Iterator[Look]:
        """The scores of pictures in order, where the networks looked; pictures are drawn ahead."""
        for through, some in groupby(images, self._through):
            for look in self._behind(some) if through else self._beside(some):
                self.count.pictures += 1
                self.count.pixels += look.shape[0] * look.shape[1]
                yield look

    def _through(self, image: Picture) -> bool:
        """Whether a picture goes through the gate."""
        if min(image.shape[:2]) < SIDE:
            return False
        self._drawn += 1
        return self._pays or self._drawn % PROBED == 0

    @property
    def _pays(self) -> bool:
        """Whether the networks had less to look at than without the gate, lately."""
        looked, pixels = (sum(one[k] for one in self._recent) for k in (0, 1))
        return len(self._recent) < _JUDGED or looked <= self._worth * OVERHEAD * pixels

    def _beside(self, images: Iterable[Picture]) -> Iterator[Look]:
        """Pictures that the gate stands aside for, as if there were none."""
        for score in self.full.scores(images):
            self.count.aside += 1
            self.count.looked += score.size
            yield Look.whole(score)

    def _behind(self, images: Iterable[Picture]) -> Iterator[Look]:
        """Pictures that go through the gate."""
        begun: deque[_Job] = deque()

        def tiled() -> Iterator[tuple[Picture, Sequence[Tile]]]:
            for job in self._gated(images):
                begun.append(job)
                yield job.image, job.tiles

        for scores in self.full.jobs(tiled()):
            yield self._grown(begun.popleft(), scores)

    def _gated(self, images: Iterable[Picture]) -> Iterator[_Job]:
        """The gate's answers, in order."""
        flying: deque[tuple[Picture, Picture, Pending]] = deque()
        for given in images:
            image = self.full.corrected(given)
            flying.append((given, image, self._gate.start(self._input(image))))
            if len(flying) > self._gate.depth:
                yield self._judged(*flying.popleft())
        while flying:
            yield self._judged(*flying.popleft())

    def _judged(self, given: Picture, image: Picture, pending: Pending) -> _Job:
        """Which blocks of a picture pass, and the tiles that they are looked at in."""
        job = _Job(given, image, self._passing(pending), self.full.bars(image, self._point[0]))
        job.whole = self._audits and self._seen % AUDIT == _FIRST_AUDIT
        self._seen += 1
        job.tiles = [around(image, int(y), int(x)) for y, x in np.argwhere(job.passed)]
        return job

    def passed(self, image: Picture) -> Bool[NDArray[np.bool_], "i j"]:
        """Which blocks of a corrected picture pass."""
        return self._passing(self._gate.start(self._input(image)))

    def _input(self, image: Picture) -> UInt8[NDArray[np.uint8], "1 h wg cg"]:
        return grouped(gate_input(image, self._channels), self._group)[None]

    def _passing(self, pending: Pending) -> Bool[NDArray[np.bool_], "i j"]:
        (cells,) = pending.wait()
        return np.asarray(block_logits(cells[0]) >= self._threshold, np.bool_)

    def _grown(self, job: _Job, quick: list[ScoreMap]) -> Look:
        """What is seen of a picture, after a quick look at what passed."""
        image = job.image
        shape = image.shape[0], image.shape[1]
        near = [
            _box(image, int(y), int(x))
            for (y, x), tile, score in zip(np.argwhere(job.passed), job.tiles, quick, strict=True)
            if own(image, int(y), int(x), tile, score).max() >= self._near
        ]
        boxes = [*near, *job.bars]
        if job.whole:
            whole = self.full.score(job.given)
            self.count.looked += whole.size
            self._check(whole, _blocks_of(boxes, job.passed.shape))
            return Look.whole(whole)
        quickly = [_box(image, int(y), int(x)) for y, x in np.argwhere(job.passed)]
        if boxes:
            look, seen, work = self._closer(job, boxes)
            for x0, y0, x1, y1 in quickly:
                seen[y0:y1, x0:x1] = True
            self.count.looked += int(seen.sum())
        else:
            look, work = Look(shape, None, False), 0
            self.count.looked += sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in quickly)
        if self._audits:
            self._recent.append((work + len(job.tiles) * SIDE**2, shape[0] * shape[1]))
        return look

    def _closer(self, job: _Job, boxes: Sequence[Box]) -> tuple[Look, Mask, int]:
        """Boxes of a picture, as far as their regions reach; where that is, and how many pixels it took."""
        work = 0
        for _ in range(_FOLLOWED):
            score, known = self.full.score_where(job.image, boxes)
            work += int(known.sum())
            further = self._further(score, known)
            if not further:
                return Look((known.shape[0], known.shape[1]), score, bool(known.all())), known, work
            boxes = [*boxes, *further]
        whole = self.full.score(job.given)
        return Look.whole(whole), np.ones(whole.shape, np.bool_), work + whole.size

    def _further(self, score: ScoreMap, known: Mask) -> list[Box]:
        """Boxes beyond what is known that its regions may reach into."""
        threshold, grouping = self._point
        above = score >= threshold
        if known.all() or not above.any():
            return []
        joining = above | faint_pixels(score, grouping.faint)
        height, width = score.shape
        reach = 2 * max(grouping.merge_gap + 1, self.full.reach) + 1
        rows, columns = span(joining)
        top, left = max(0, rows.start - reach), max(0, columns.start - reach)
        part = slice(top, rows.stop + reach), slice(left, columns.stop + reach)
        count, parts = label_parts(joining[part])
        alarms = np.zeros(count + 1, np.bool_)
        alarms[parts[above[part]]] = True
        unknown = cv2.dilate((~known[part]).astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
        touching = (alarms[parts] & unknown).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(touching, connectivity=8)
        return [
            (
                max(0, left + x - reach),
                max(0, top + y - reach),
                min(width, left + x + wide + reach),
                min(height, top + y + high + reach),
            )
            for x, y, wide, high, _ in (tuple(int(value) for value in stats[k]) for k in range(1, count))
        ]

    def _check(self, whole: ScoreMap, passed: Bool[NDArray[np.bool_], "i j"]) -> None:
        """Count what the gate would have lost of a picture that was looked at in full."""
        found, lost = lost_regions(whole, passed, *self._point)
        self.count.audits += 1
        self.count.regions += found
        self.count.lost += lost


def gate_input(image: Picture, channels: int) -> UInt8[NDArray[np.uint8], "h w c"]:
    """A picture as a gate takes it: in its channels, its far sides repeated to whole cells."""
    seen = to_grey(image) if channels == 1 else to_rgb(image)
    below, beside = (-side % CELL for side in seen.shape[:2])
    if below or beside:
        seen = np.asarray(cv2.copyMakeBorder(seen, 0, below, 0, beside, cv2.BORDER_REPLICATE), np.uint8)
    return seen.reshape(*seen.shape[:2], channels)


def grouped(
    pixels: UInt8[NDArray[np.uint8], "*b h w c"], group: int = GROUP
) -> UInt8[NDArray[np.uint8], "*b h wg cg"]:
    """Pixels as a gate's network takes them: each ``group`` of a row as one, the channels side by side.

    Nothing is copied. The network does the same as with single pixels, in less time: a processor multiplies
    a dozen channels at once as quickly as three.
    """
    *before, width, channels = pixels.shape
    return pixels.reshape(*before, width // group, channels * group)


def block_logits(cells: Float[NDArray[np.float32], "i j"]) -> Float[NDArray[np.float32], "k l"]:
    """The highest logit of each block's cells; blocks at the far sides may have fewer."""
    side = BLOCK // CELL
    below, beside = (-length % side for length in cells.shape)
    full = np.pad(cells, ((0, below), (0, beside)), constant_values=-np.inf)
    return np.asarray(full.reshape(full.shape[0] // side, side, -1, side).max((1, 3)), np.float32)


def _blocks_of(boxes: Sequence[Box], shape: tuple[int, int]) -> Bool[NDArray[np.bool_], "i j"]:
    """The blocks that boxes lie in."""
    blocks = np.zeros(shape, np.bool_)
    for x0, y0, x1, y1 in boxes:
        blocks[y0 // BLOCK : -(-y1 // BLOCK), x0 // BLOCK : -(-x1 // BLOCK)] = True
    return blocks


def lost_regions(
    whole: ScoreMap, passed: Bool[NDArray[np.bool_], "i j"], threshold: float, grouping: Grouping
) -> tuple[int, int]:
    """How many regions a map has, and how many of them lie in no block that passed."""
    count, labels = label_regions(whole, threshold, grouping)
    if not count:
        return 0, 0
    looked = np.kron(passed, np.ones((BLOCK, BLOCK), np.bool_))[: whole.shape[0], : whole.shape[1]]
    met = np.zeros(count + 1, np.bool_)
    met[np.unique(labels[looked])] = True
    return count, int((~met[1:]).sum())


def around(image: Picture, row: int, column: int) -> Tile:
    """The tile that a block is looked at in; at the picture's border it is moved inwards."""
    y0, x0 = (
        min(max(0, at * BLOCK - CONTEXT), length - SIDE)
        for at, length in zip((row, column), image.shape[:2], strict=True)
    )
    return Tile(y0, x0, y0 + SIDE, x0 + SIDE)


def own(image: Picture, row: int, column: int, tile: Tile, score: ScoreMap) -> ScoreMap:
    """The scores of the block itself."""
    left, top, right, bottom = _box(image, row, column)
    return score[top - tile.y0 : bottom - tile.y0, left - tile.x0 : right - tile.x0]


def _box(image: Picture, row: int, column: int) -> Box:
    top, left = row * BLOCK, column * BLOCK
    return left, top, min(left + BLOCK, image.shape[1]), min(top + BLOCK, image.shape[0])
