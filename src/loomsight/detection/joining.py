"""One defect, one box: what tiles of a picture found, joined where two tiles saw the same.

Neighbouring tiles overlap. Where they do, both look at the same cloth, so two boxes are of one defect when
they agree there: each is cut to the overlap, and what is left of them coincides. What then becomes of the
less sure one depends on why there are two:

* each tile's border cuts the defect where the other tile goes on, so each saw a *piece*: the pieces of one
  defect, from as many tiles as it crosses, become their union;
* one saw a piece and the other all of it: the whole takes the piece up;
* both saw all of it, or one tile answered twice: the surer box stays, as in non-maximum suppression.

Plain suppression would keep the longest piece of a thread and report the others as defects of their own. Any
other union is wrong: boxes of which a detector is not sure lie everywhere, and would make up giants.
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
PIECE = 0.6
"""A piece is at least this share as sure as the surest of its defect: a faint box extends no sure one."""
_SLACK = 2.0  # pixels that a box may be off: threads are three pixels wide
_CUT = 4.0  # pixels from a tile's border: a box that ends nearer is cut by it
_TAKEN = 0.8  # of a piece's area that lies in the whole


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
    if not any(len(one.boxes) for one in found):
        return []
    boxes = np.concatenate([one.boxes for one in found])
    scores = np.concatenate([one.scores for one in found])
    classes = np.concatenate([one.classes for one in found])
    owner = np.repeat(np.arange(len(found)), [len(one.boxes) for one in found])
    tiles = np.array([(one.tile.x0, one.tile.y0, one.tile.x1, one.tile.y1) for one in found])[owner]
    groups: list[list[int]] = []  # of each defect its pieces, the surest first
    group_of = np.full(len(boxes), -1)
    for k in np.argsort(-scores, kind="stable"):
        alike = _alike(int(k), np.flatnonzero(group_of >= 0), boxes, owner, found)
        if not len(alike):
            group_of[k] = len(groups)
            groups.append([int(k)])
            continue
        cut = _is_cut(boxes[alike], tiles[alike], tiles[k])
        met = cut & (_is_cut(boxes[k], tiles[k], tiles[alike]) | _lies_in(boxes[alike], boxes[k]))
        pieces = alike[met & (owner[alike] != owner[k])]
        joined = sorted(
            {int(group_of[j]) for j in pieces if scores[k] >= PIECE * scores[groups[group_of[j]][0]]}
        )
        if not joined:
            continue  # seen already, and surer
        first, *others = joined
        for other in others:
            groups[first] += groups[other]
            groups[other] = []
        groups[first] = sorted([*groups[first], int(k)], key=lambda member: -scores[member])
        group_of[groups[first]] = first
    regions = [
        _union(boxes[own], float(scores[own[0]]), types[int(classes[own[0]])]) for own in groups if own
    ]
    return sorted(regions, key=lambda region: (-region.score, region.box))


def _alike(
    k: int,
    among: NDArray[np.intp],
    boxes: Float[NDArray[np.float32], "n 4"],
    owner: NDArray[np.intp],
    found: Sequence[TileBoxes],
) -> NDArray[np.intp]:
    """Which boxes are of one defect with box ``k``."""
    alike: list[NDArray[np.intp]] = []
    for other in np.unique(owner[among]):
        zone = _zone(found[owner[k]].tile, found[other].tile)
        if zone is None:
            continue
        own = among[owner[among] == other]
        shared = _overlap(_cut(boxes[k : k + 1], zone), _cut(boxes[own], zone))[0]
        alike.append(own[shared >= (DOUBLED if other == owner[k] else AGREED)])
    return np.concatenate(alike) if alike else np.zeros(0, np.intp)


def _is_cut(
    boxes: Float[NDArray[np.float32], "*n 4"],
    tiles: Int[NDArray[np.int64], "*n 4"],
    others: Int[NDArray[np.int64], "*m 4"],
) -> NDArray[np.bool_]:
    """Which boxes end at a border of their own tile beyond which the other tile goes on."""
    (x0, y0, x1, y1), (left, top, right, bottom), other = boxes.T, tiles.T, others.T
    return np.asarray(
        ((x0 < left + _CUT) & (other[0] < left) & (left < other[2]))
        | ((y0 < top + _CUT) & (other[1] < top) & (top < other[3]))
        | ((x1 > right - _CUT) & (other[0] < right) & (right < other[2]))
        | ((y1 > bottom - _CUT) & (other[1] < bottom) & (bottom < other[3]))
    )


def _lies_in(
    pieces: Float[NDArray[np.float32], "n 4"], whole: Float[NDArray[np.float32], " 4"]
) -> NDArray[np.bool_]:
    low, high = whole[:2] - _SLACK, whole[2:] + _SLACK
    sides = np.minimum(pieces[:, 2:], high) - np.maximum(pieces[:, :2], low)
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    return np.asarray(shared >= _TAKEN * np.prod(pieces[:, 2:] - pieces[:, :2], axis=1))


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


def _union(boxes: Float[NDArray[np.float32], "n 4"], score: float, kind: str) -> Region:
    x0, y0 = (int(np.floor(v)) for v in boxes[:, :2].min(axis=0))
    x1, y1 = (int(np.ceil(v)) for v in boxes[:, 2:].max(axis=0))
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    area, length = (x1 - x0) * (y1 - y0), float(max(x1 - x0, y1 - y0))
    return Region((x0, y0, x1, y1), area, length, score, kind)
