"""One defect, one box: what tiles of a picture found, joined where two tiles saw the same.

Neighbouring tiles overlap. Where they do, both look at the same cloth, so two boxes are of one defect when
they agree there: each is cut to the overlap, and what is left of them coincides. The boxes of one defect,
from as many tiles as it crosses, become their union. This is not non-maximum suppression, which would keep
the longest piece of a thread and drop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from loomsight.fabric.tiles import Tile
from loomsight.fabric.types import Region

AGREED = 0.3
"""Intersection over union, in the overlap of two tiles, from which two boxes are of one defect."""
DOUBLED = 0.6
"""Intersection over union within a tile from which two boxes are of one defect."""
_SLACK = 2.0  # pixels that a box may be off: threads are three pixels wide


@dataclass(frozen=True, slots=True)
class TileBoxes:
    """What a detector found in one tile.

    Attributes:
        tile: where it lies in the picture.
        boxes: float32 (n, 4), xyxy pixels of the picture.
        scores: float32 (n,), in [0, 1].
        classes: int64 (n,).
    """

    tile: Tile
    boxes: Float[NDArray[np.float32], "n 4"]
    scores: Float[NDArray[np.float32], " n"]
    classes: Int[NDArray[np.int64], " n"]


def join_tiles(found: Sequence[TileBoxes], types: Sequence[str]) -> list[Region]:
    """The defects of a picture.

    Args:
        found: of each tile; the tiles may overlap in any way.
        types: the name of each class.

    Returns:
        one region for each defect, surest first: its box is the union of its pieces, its score and type
        those of the surest. ``area`` is that of the box and ``length`` its longer side.
    """
    pieces = [(number, k) for number, one in enumerate(found) for k in range(len(one.boxes))]
    group = list(range(len(pieces)))

    def root(k: int) -> int:
        while group[k] != k:
            group[k] = group[group[k]]
            k = group[k]
        return k

    start = np.cumsum([0, *(len(one.boxes) for one in found)])
    for a, one in enumerate(found):
        for b in range(a, len(found)):
            other = found[b]
            zone = _zone(one.tile, other.tile)
            if zone is None or not (len(one.boxes) and len(other.boxes)):
                continue
            alike = _overlap(_cut(one.boxes, zone), _cut(other.boxes, zone))
            for i, j in np.argwhere(alike >= (DOUBLED if a == b else AGREED)):
                group[root(int(start[b] + j))] = root(int(start[a] + i))
    members: dict[int, list[tuple[int, int]]] = {}
    for k, piece in enumerate(pieces):
        members.setdefault(root(k), []).append(piece)
    regions = [_union([(found[n], k) for n, k in own], types) for own in members.values()]
    return sorted(regions, key=lambda region: (-region.score, region.box))


def _zone(a: Tile, b: Tile) -> tuple[int, int, int, int] | None:
    x0, y0, x1, y1 = max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _cut(boxes: Float[NDArray[np.float32], "n 4"], zone: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Boxes within a zone, a little larger; one that is not in it has no area."""
    x0, y0, x1, y1 = zone
    outside = (boxes[:, 2] <= x0) | (boxes[:, 0] >= x1) | (boxes[:, 3] <= y0) | (boxes[:, 1] >= y1)
    grown = boxes + np.array([-_SLACK, -_SLACK, _SLACK, _SLACK])
    cut = np.clip(grown, [x0, y0, x0, y0], [x1, y1, x1, y1])
    cut[outside] = 0
    return np.asarray(cut, np.float64)


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each with each, (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area = [np.prod(of[:, 2:] - of[:, :2], axis=1) for of in (a, b)]
    return np.asarray(shared / np.maximum(area[0][:, None] + area[1][None] - shared, 1e-9))


def _union(pieces: list[tuple[TileBoxes, int]], types: Sequence[str]) -> Region:
    one, k = max(pieces, key=lambda piece: float(piece[0].scores[piece[1]]))
    boxes = np.stack([tile.boxes[n] for tile, n in pieces])
    x0, y0 = (int(np.floor(v)) for v in boxes[:, :2].min(axis=0))
    x1, y1 = (int(np.ceil(v)) for v in boxes[:, 2:].max(axis=0))
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    return Region(
        box=(x0, y0, x1, y1),
        area=(x1 - x0) * (y1 - y0),
        length=float(max(x1 - x0, y1 - y0)),
        score=float(one.scores[k]),
        type=types[int(one.classes[k])],
    )
