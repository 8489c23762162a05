"""Engines: a picture in, its score map or its boxes out, tile by tile at native resolution.

An engine cuts pictures into tiles, keeps several of them in flight in whatever runtime holds its network
(:mod:`loomsight.runtime.compiled`), and blends what comes back. All runtimes see the same tiles.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray

from loomsight.anomaly.bars import NONE
from loomsight.anomaly.calibration import UnionPoint
from loomsight.anomaly.memory import Memory
from loomsight.anomaly.normality import Normality
from loomsight.anomaly.student import padded_to
from loomsight.detection.deeplab import Segmenter
from loomsight.detection.joining import TileBoxes, join_tiles
from loomsight.detection.rtdetr import Detector
from loomsight.fabric.flat_field import FlatField
from loomsight.fabric.images import to_rgb
from loomsight.fabric.light import SMALLER
from loomsight.fabric.regions import find_regions, span
from loomsight.fabric.tiles import Mosaic, Tile, cut, plan_tiles, tile_side
from loomsight.fabric.types import UNKNOWN, Box, Mask, Picture, Region, ScoreMap
from loomsight.runtime.compiled import Answer, Compiled, Pending, TorchCompiled, answers
from loomsight.runtime.gate import GateGraph
from loomsight.runtime.graphs import (
    DetectorGraph,
    DetectorStages,
    FeaturesGraph,
    Graph,
    SegmenterGraph,
    StudentGraph,
    device,
)
from loomsight.runtime.tilesize import best_tile

BORDER = 32  # pixels of context where a tile has a neighbour
OVERLAP = 16
CERTAIN = 0.5
"""Share of the votes that a type needs; with less it is unknown."""
# Pixels a side of a region's surroundings that its type is read from: torch keeps a compiled form, a megabyte
# and more, of each layer for each size that it ever saw, so there are few.
_NAMED = (128, 256, 512)
_LOOKED_AT = 1.0  # margin below a union's threshold down to which a region may prove to be a known defect
LARGEST = (512, 512)
"""Pixels of a tile at most, unless measured otherwise; a smaller picture is one tile."""
GRAPHS: dict[str, type[Graph]] = {
    "segmenter": SegmenterGraph,
    "detector": DetectorStages,
    "features": FeaturesGraph,
    "student": StudentGraph,
    "gate": GateGraph,
}
"""What a profile's card calls the networks that are exported."""


class Engine(Protocol):
    """What inspects: any runtime behind one call."""

    def score(self, image: Picture) -> ScoreMap:
        """Score a picture of any size.

        Args:
            image: uint8, HW or HWC RGB.

        Returns:
            float32 HW in [0, 1].
        """


class SegmenterEngine:
    """A segmenter in any runtime; ``camera`` is corrected before it looks.

    Args:
        compiled: the network, ready to run.
        network: gives the network in torch, which names the types of regions; asked when there are any.
        camera: the lines that the camera draws.
        largest: height and width of a tile at most, multiples of the network's step; or measured, once
            there is a picture that is larger than :data:`LARGEST`.
    """

    def __init__(
        self,
        compiled: Compiled,
        network: Callable[[], Segmenter],
        camera: FlatField | None = None,
        *,
        largest: tuple[int, int] | Literal["measured"] = LARGEST,
    ) -> None:
        self._compiled, self._given, self._camera = compiled, network, camera
        self._largest = largest
        self._device = device()
        self._asked: Segmenter | None = None

    def score(self, image: Picture) -> ScoreMap:
        """Score a picture: see :class:`Engine`."""
        (score,) = self.scores([image])
        return score

    def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]:
        """Score pictures in order, which are drawn ahead so that the runtime never waits for the next."""
        flying: deque[tuple[Mosaic, Pending]] = deque()

        def landed() -> Iterator[ScoreMap]:
            mosaic, pending = flying.popleft()
            if mosaic.add(pending.wait()[0][0]):
                yield mosaic.map

        for image in images:
            corrected = self.corrected(image)
            mosaic = self._plan(corrected)
            for tile in mosaic.tiles:
                flying.append((mosaic, self._start(corrected, tile)))
                if len(flying) > self._compiled.depth:
                    yield from landed()
        while flying:
            yield from landed()

    def score_where(self, image: Picture, boxes: Sequence[Box]) -> tuple[ScoreMap, Mask]:
        """The scores of some boxes of a corrected picture, xyxy pixels, as :meth:`score` would give them.

        Returns:
            the map, 0 where it is not known; and where it is: in the boxes, and around them.
        """
        mosaic = self._plan(image, LARGEST)  # the tile that is best for whole pictures is too large
        needed = mosaic.covering(boxes)
        flying = [(number, self._start(image, mosaic.tiles[number])) for number in needed]
        for number, pending in flying:
            mosaic.put(number, pending.wait()[0][0])
        return mosaic.partial(needed)

    named_from = 0.0
    """The score of the map below which no region has a type, see :attr:`UnionEngine.named_from`."""

    @property
    def reach(self) -> int:
        """None: a segmenter knows no marks, see :attr:`UnionEngine.reach`."""
        return 0

    def bars(self, image: Picture, threshold: float) -> list[Box]:
        """None: a segmenter looks for no bars, see :meth:`UnionEngine.bars`."""
        return []

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
        """The scores of some tiles of each picture, which is corrected; the step divides the tiles' sides."""
        waiting: deque[list[Pending]] = deque()
        for image, tiles in jobs:
            waiting.append([self._start(image, tile) for tile in tiles])
            if len(waiting) > self._compiled.depth:
                yield [pending.wait()[0][0] for pending in waiting.popleft()]
        while waiting:
            yield [pending.wait()[0][0] for pending in waiting.popleft()]

    def _start(self, image: Picture, tile: Tile) -> Pending:
        return self._compiled.start(to_rgb(cut(image, tile))[None])

    @property
    def runtime(self) -> str:
        """What runs it, for people."""
        return self._compiled.runtime

    def corrected(self, image: Picture) -> Picture:
        """The picture without the camera's lines."""
        return image if self._camera is None else self._camera.correct(image)

    def _plan(self, image: Picture, most: tuple[int, int] | None = None) -> Mosaic:
        # No smaller than a tile with borders on both sides needs; a side that is shorter is mirrored.
        step, shared = self._compiled.step, OVERLAP + 2 * BORDER
        least = -(-(shared + 1) // step) * step
        largest = most or LARGEST
        if most is None and any(side > most for side, most in zip(image.shape[:2], LARGEST, strict=True)):
            if self._largest == "measured":
                self._largest = best_tile(self._compiled, shared=shared)
            largest = self._largest
        height, width = (
            max(tile_side(side, most, step=step, shared=shared), least)
            for side, most in zip(image.shape[:2], largest, strict=True)
        )
        return Mosaic((image.shape[0], image.shape[1]), tile=(height, width), overlap=OVERLAP, border=BORDER)

    @property
    def _network(self) -> Segmenter:
        if self._asked is None:
            self._asked = self._given().to(self._device).eval()
        return self._asked

    def name(self, image: Picture, regions: Sequence[Region], *, least: float = 0.0) -> list[Region]:
        """The regions with their types, as far as the network tells any apart and is sure of one.

        Args:
            image: the picture that was scored.
            regions: of its score map; one that has a type keeps it.
            least: a region whose own score is nowhere so high has no type.
        """
        if not self._network.types:
            return list(regions)
        rgb = to_rgb(self.corrected(image))
        named = list(regions)
        sharing: dict[Tile, list[int]] = {}
        for number, region in enumerate(regions):
            if region.type == UNKNOWN:
                sharing.setdefault(_surroundings(region.box, rgb.shape[:2]), []).append(number)
        for window, numbers in sharing.items():
            types = self._types(rgb, window, [regions[number].box for number in numbers], least)
            for number, name in zip(numbers, types, strict=True):
                named[number] = replace(regions[number], type=name)
        return named

    @torch.inference_mode()
    def _types(
        self, rgb: UInt8[NDArray[np.uint8], "h w 3"], window: Tile, boxes: Sequence[Box], least: float
    ) -> list[str]:
        """Of each box within a window the type with most weight on it, weighed by its score."""
        part = np.ascontiguousarray(rgb[window.y0 : window.y1, window.x0 : window.x1])
        low = [max(0, 2 * BORDER - side) for side in part.shape[:2]]
        part = np.pad(part, ((0, low[0]), (0, low[1]), (0, 0)), "symmetric")
        x = torch.from_numpy(part[None]).to(self._device).permute(0, 3, 1, 2).float() / 255
        height, width = ((side + 1) // 2 for side in part.shape[:2])
        inside = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=self._device)
        surest = []
        for own, (x0, y0, x1, y1) in zip(inside, boxes, strict=True):
            left, top = max(0, x0 - window.x0), max(0, y0 - window.y0)
            right, bottom = min(x1, window.x1) - window.x0, min(y1, window.y1) - window.y0
            own[top // 2 : (bottom + 1) // 2 + 1, left // 2 : (right + 1) // 2 + 1] = True
            surest.append((slice(top, bottom), slice(left, right)))
        places = inside.any(0)
        where, named = self._network.with_types(x, places[None])
        assert named is not None  # noqa: S101 — it tells types apart
        sure = where.float().sigmoid()[0, 0]
        shares = named.float().softmax(1)
        weight = torch.nn.functional.interpolate(sure[None, None], (height, width), mode="area")[0, 0]
        types = []
        for own, place in zip(inside, surest, strict=True):
            each = weight[places] * own[places]
            votes = each @ shares / each.sum().clamp(1e-6)
            best = int(votes.argmax())
            certain = float(sure[place].max()) >= least and float(votes[best]) >= CERTAIN
            types.append(self._network.types[best] if certain else UNKNOWN)
        return types


def _surroundings(box: Box, room: tuple[int, int]) -> Tile:
    """The window of a picture that a region is named in: of few sizes, and at few places."""
    spans = []
    for low, high, length in ((box[1], box[3], room[0]), (box[0], box[2], room[1])):
        side = next((side for side in _NAMED if high - low + 2 * BORDER <= side * 3 // 4), _NAMED[-1])
        step = side // 4
        start = round(((low + high - side) // 2) / step) * step
        start = max(0, min(start, length - side))
        spans.append((start, min(start + side, length)))
    (top, bottom), (left, right) = spans
    return Tile(top, left, bottom, right)


class TorchEngine(SegmenterEngine):
    """A segmenter run by torch as it was learned, on the GPU where there is one."""

    def __init__(self, network: Segmenter, camera: FlatField | None = None) -> None:
        super().__init__(TorchCompiled(SegmenterGraph(network)), lambda: network, camera)


class UnionEngine:
    """A segmenter for the defects it knows, and normality for all others: one map."""

    def __init__(self, known: SegmenterEngine, normality: Normality, point: UnionPoint) -> None:
        self.known, self._normality, self._point = known, normality, point

    def score(self, image: Picture) -> ScoreMap:
        """Score a picture: see :class:`Engine`."""
        (score,) = self.scores([image])
        return score

    def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]:
        """Score pictures in order, see :meth:`SegmenterEngine.scores`."""
        drawn: deque[Picture] = deque()

        def kept() -> Iterator[Picture]:
            for image in images:
                drawn.append(image)
                yield image

        for known in self.known.scores(kept()):
            strange, calmed = self._normality.look(self.known.corrected(drawn.popleft()))
            yield self._point.unite(known, strange, calmed)

    def score_where(self, image: Picture, boxes: Sequence[Box]) -> tuple[ScoreMap, Mask]:
        """The scores of some boxes of a corrected picture, see :meth:`SegmenterEngine.score_where`."""
        known, sure = self.known.score_where(image, boxes)
        strange, calmed, looked = self._normality.look_where(image, boxes)
        both = sure & looked
        score = np.zeros(both.shape, np.float32)
        part = span(both)  # the rest of the picture need not be united
        taught = None if calmed is None else calmed[part]
        score[part] = self._point.unite(known[part], strange[part], taught) * both[part]
        return score, both

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
        """The scores of some tiles of each picture, see :meth:`SegmenterEngine.jobs`."""
        drawn: deque[tuple[Picture, Sequence[Tile]]] = deque()

        def kept() -> Iterator[tuple[Picture, Sequence[Tile]]]:
            for job in jobs:
                drawn.append(job)
                yield job

        for known in self.known.jobs(kept()):
            image, tiles = drawn.popleft()
            strange = self._normality.look_at(image, tiles)
            yield [self._point.unite(own, *other) for own, other in zip(known, strange, strict=True)]

    @property
    def named_from(self) -> float:
        """The score of the map below which no region has a type: the segmenter is far from its threshold."""
        return 1 / (1 + math.exp(_LOOKED_AT))

    @property
    def reach(self) -> int:
        """Pixels around an alarm that are looked at too, so that no mark is cut that tells it to be good."""
        return self._normality.reach

    def bars(self, image: Picture, threshold: float) -> list[Box]:
        """Boxes of the bars of a corrected picture that reach a score: of a gate, which sees too little."""
        from scipy.special import expit

        small = self._normality.bars(image)
        if small is None or small.max() <= NONE:
            return []
        strange = np.asarray(expit(small), np.float32)
        above = self._point.unite(np.zeros_like(strange), strange) >= threshold
        height, width = image.shape[:2]
        found = (region.box for region in find_regions(above.astype(np.float32), 0.5))
        # the smaller picture is not smaller by exactly so much: a pixel of it more
        return [
            (
                x0 * SMALLER,
                y0 * SMALLER,
                min((x1 + 1) * SMALLER, width),
                min((y1 + 1) * SMALLER, height),
            )
            for x0, y0, x1, y1 in found
        ]

    @property
    def runtime(self) -> str:
        """What runs its segmenter, for people."""
        return self.known.runtime

    def corrected(self, image: Picture) -> Picture:
        """The picture without the camera's lines."""
        return self.known.corrected(image)

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        """The regions with their types, as :meth:`SegmenterEngine.name`; what is only strange has none."""
        return self.known.name(image, regions, least=self._point.segmenter)


def hasten(normality: Normality, features: Compiled | None, student: Compiled | None) -> None:
    """Let exported networks do the work of a normality, as far as there are any.

    Args:
        features: the frozen network that its memory compares by.
        student: its student.
    """
    for name, method in normality.by_name.items():
        if features is not None and isinstance(method, Memory):
            method.features.run_by(partial(_levels, features))
        if student is not None and name == "student":
            normality.replace(CompiledStudent(student))


def _levels(features: Compiled, even: Iterable[Picture]) -> Iterator[list[NDArray[np.float32]]]:
    for levels in answers(features, (one[None] for one in even)):
        yield [level[0] for level in levels]


class CompiledStudent:
    """A student in any runtime, see :class:`loomsight.anomaly.student.Student`."""

    name = "student"

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled

    def strangeness(self, even: Picture) -> ScoreMap:
        """A logarithm, of an evenly lit picture or tile."""
        (said,) = self.strangeness_of([even])
        return said

    def strangeness_of(self, even: Sequence[Picture]) -> Iterator[ScoreMap]:
        """The same of several, in order."""
        padded = (padded_to(one, self._compiled.step)[None] for one in even)
        for one, (said,) in zip(even, answers(self._compiled, padded), strict=True):
            yield said[0, : one.shape[0], : one.shape[1]].copy()

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Nothing: its weights are in its file."""
        return {}


SHARPER = 2.0
"""How many times a detector's logits of types are nearer to those of probabilities (temperature scaling; Guo
et al., *On Calibration of Modern Neural Networks*, ICML 2017): of each by itself, they are too cautious."""
SHARED = 48
"""Pixels that neighbouring tiles of a detector share at least: what is smaller lies whole in one of them."""
FAINT = 0.02
"""A box with a lower score is not kept: a detector gives a hundred and more for each tile."""
_MOST = 50  # boxes of a tile, the surest
_AT_ONCE = 4  # tiles


class DetectorEngine:
    """A detector in any runtime; ``camera`` is corrected before it looks.

    Args:
        compiled: the network, ready to run.
        types: what it tells apart.
        tile: pixels a side that it looks at.
    """

    def __init__(
        self, compiled: Compiled, types: Sequence[str], tile: int, camera: FlatField | None = None
    ) -> None:
        self._compiled, self._types, self._tile, self._camera = compiled, tuple(types), tile, camera

    def detect(self, image: Picture) -> list[Region]:
        """Find the defects of a picture of any size.

        Args:
            image: uint8, HW or HWC RGB.

        Returns:
            a region for each defect with a score above :data:`FAINT`, surest first.
        """
        if self._camera is not None:
            image = self._camera.correct(image)
        height, width = image.shape[:2]
        rgb = to_rgb(image)
        tiles = plan_tiles(height, width, tile=self._tile, overlap=SHARED)
        # What is in flight is one tile each; torch, which has nothing in flight, takes some at once.
        many = _AT_ONCE if self._compiled.depth == 0 else 1
        groups = [tiles[first : first + many] for first in range(0, len(tiles), many)]
        looked = answers(self._compiled, (np.stack([cut(rgb, tile) for tile in some]) for some in groups))
        found: list[TileBoxes] = []
        for some, answer in zip(groups, looked, strict=True):
            found += self._found(some, answer, (height, width))
        return join_tiles(found, self._types)

    def _found(self, tiles: list[Tile], answer: Answer, room: tuple[int, int]) -> list[TileBoxes]:
        scores, types, boxes, *_ = answer
        height, width = room
        looked = []
        for tile, own, score, kind in zip(tiles, boxes, scores, _certain(types), strict=True):
            at = own * self._tile + np.array([tile.x0, tile.y0, tile.x0, tile.y0], np.float32)
            at = at.clip(0, np.array([width, height, width, height], np.float32))
            inside = (at[:, 2] > at[:, 0]) & (at[:, 3] > at[:, 1])
            keep = (score >= FAINT) & inside
            if keep.sum() > _MOST:
                keep &= score >= np.sort(score[keep])[-_MOST]
            looked.append(TileBoxes(tile, at[keep], score[keep], kind[keep]))
        return looked


def _certain(types: Float[NDArray[np.float32], "n q types"]) -> Int[NDArray[np.int64], "n q"]:
    """From logits the most likely type; −1 where it is less likely than :data:`CERTAIN`."""
    from scipy.special import softmax

    likely = softmax(SHARPER * types, axis=-1)
    return np.where(likely.max(-1) >= CERTAIN, likely.argmax(-1), -1)


class TorchDetector(DetectorEngine):
    """A detector run by torch as it was learned, on the GPU where there is one."""

    def __init__(self, network: Detector, tile: int, camera: FlatField | None = None) -> None:
        super().__init__(TorchCompiled(DetectorGraph(network)), network.types, tile, camera)
