"""One defect, one box: what tiles of a picture found, joined where two tiles saw the same.

Neighbouring tiles overlap. Where they do, both look at the same cloth, so two boxes are of one defect when
they agree there: each is cut to the overlap, and what is left of them coincides. Boxes of a slanted line do
not, for each is as high as the line climbs in all its tile: they agree where they share as much height as
the line climbs in the overlap. What then becomes of the less sure one depends on why there are two:

* each tile's border cuts the defect where the other tile goes on, so each saw a *piece*: the pieces of one
  defect, from as many tiles as it crosses, the surest of each, become their union;
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
from loomsight.fabric.types import UNKNOWN, Box, Region

AGREED = 0.3
"""Intersection over union, in the overlap of two tiles, from which two boxes are of one defect."""
DOUBLED = 0.6
"""Intersection over union within a tile from which two boxes are of one defect."""
PIECE = 0.6
"""A piece is at least this share as sure as the surest of its defect: a faint box extends no sure one."""
_SLACK = 2.0  # pixels that a box may be off: threads are three pixels wide
_CUT = 4.0  # pixels from a tile's border: a box that ends nearer is cut by it
_TAKEN = 0.8  # of a piece's area that lies in the whole
_STEADY = 1.5  # times as steep as in its tile, or as flat, a slanted line is where tiles overlap


@dataclass(frozen=True, slots=True)
class TileBoxes:
    """What a detector found in one tile.

    Attributes:
        tile: where it lies in the picture.
        boxes: float32 (n, 4), xyxy pixels of the picture.
        scores: float32 (n,), in [0, 1].
        classes: int64 (n,); one that is no type's number says that the type is unknown.
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
        one region for each defect, surest first: its box is the union of its pieces, its score that of the
        surest, its type that of the surest with one. ``area`` is that of the box and ``length`` its longer
        side.
    """
    if not any(len(one.boxes) for one in found):
        return []
    boxes = np.concatenate([one.boxes for one in found])
    scores = np.concatenate([one.scores for one in found])
    classes = np.concatenate([one.classes for one in found])
    owner = np.repeat(np.arange(len(found)), [len(one.boxes) for one in found])
    every = np.array([(one.tile.x0, one.tile.y0, one.tile.x1, one.tile.y1) for one in found])
    near = _near(boxes, every, owner)
    groups: list[list[int]] = []  # of each defect its pieces, the surest first
    group_of = np.full(len(boxes), -1)
    for k in np.argsort(-scores, kind="stable"):
        alike, pieces = near[k]
        seen = group_of[alike] >= 0
        alike, pieces = alike[seen], alike[seen & pieces]
        if not len(alike):
            group_of[k] = len(groups)
            groups.append([int(k)])
            continue
        joined = sorted(
            number
            for number in {int(group_of[j]) for j in pieces}
            if scores[k] >= PIECE * scores[groups[number][0]] and owner[k] not in owner[groups[number]]
        )
        if not joined:
            continue  # seen already, and surer: in its own tile, or beside a piece that its tile has given
        first, *others = joined
        for other in others:
            groups[first] += groups[other]
            groups[other] = []
        groups[first] = sorted([*groups[first], int(k)], key=lambda member: -scores[member])
        group_of[groups[first]] = first
    names = [types[k] if 0 <= k < len(types) else UNKNOWN for k in classes.tolist()]
    regions = [
        _union(boxes[own], float(scores[own[0]]), [names[piece] for piece in own]) for own in groups if own
    ]
    return sorted(regions, key=lambda region: (-region.score, region.box))


def _near(
    boxes: Float[NDArray[np.float32], "n 4"], every: Int[NDArray[np.int64], "t 4"], owner: NDArray[np.intp]
) -> list[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """For each box those of one defect with it, and which of them are pieces that it may be joined to."""
    found = []
    for number, tile in enumerate(every):
        own = np.flatnonzero(owner == number)
        others = np.flatnonzero(_meet(tile, every)[owner])
        if not len(own):
            continue
        low = np.maximum(boxes[own, None, :2], boxes[others, :2])
        high = np.minimum(boxes[own, None, 2:], boxes[others, 2:])
        first, second = np.nonzero((high - low > -_CUT).all(axis=-1))  # all others are nowhere near
        a, b = own[first], others[second]
        alike = _alike(boxes[a], every[owner[a]], boxes[b], every[owner[b]])
        a, b = a[alike], b[alike]
        here, beside = every[owner[a]], every[owner[b]]
        cut, own_cut = _cut_along(boxes[b], beside, here), _cut_along(boxes[a], here, beside)
        pieces = cut.any(-1) & (own_cut.any(-1) | _lies_in(boxes[b], boxes[a])) & (owner[a] != owner[b])
        ends = np.searchsorted(a, own[1:])
        found += list(zip(np.split(b, ends), np.split(pieces, ends), strict=True))
    return found


def _alike(
    box: Float[NDArray[np.float32], "n 4"],
    tile: Int[NDArray[np.int64], "n 4"],
    other: Float[NDArray[np.float32], "n 4"],
    beside: Int[NDArray[np.int64], "n 4"],
) -> NDArray[np.bool_]:
    """Which boxes are of one defect with their other, of the same tile or of one that overlaps it."""
    zones = np.concatenate([np.maximum(tile, beside)[:, :2], np.minimum(tile, beside)[:, 2:]], axis=1)
    shared = overlap(_cut(box, zones), _cut(other, zones))
    same = (tile == beside).all(axis=1)
    return np.asarray(
        np.where(same, shared >= DOUBLED, (shared >= AGREED) | _go_on(box, tile, other, beside))
    )


def _go_on(
    box: Float[NDArray[np.float32], "n 4"],
    tile: Int[NDArray[np.int64], "n 4"],
    other: Float[NDArray[np.float32], "n 4"],
    beside: Int[NDArray[np.int64], "n 4"],
) -> NDArray[np.bool_]:
    """Which boxes are of one line, slanted as it may be, with their other of another tile.

    Along the rows or the columns, facing borders cut both, or one of them, and the other box holds it in a
    corner; and the height that both share is what either climbs on the length that they share.
    """
    sides = np.minimum(box, other)[:, 2:] - np.maximum(box, other)[:, :2]
    slopes = [(of[:, 3] - of[:, 1]) / np.maximum(of[:, 2] - of[:, 0], 1) for of in (box, other)]
    ours, theirs = _cut_along(box, tile, beside), _cut_along(other, beside, tile)
    near = np.abs(other - box) < 2 * _CUT
    corner = (near[:, :2] | near[:, 2:]).all(axis=1)
    holds, held = ((of & corner)[:, None] for of in (_lies_in(box, other), _lies_in(other, box)))
    facing = (ours & theirs) | (ours & holds) | (theirs & held)
    rows, columns = sides[:, 1], sides[:, 0]
    steady = np.stack(
        [
            _steady(rows, columns * np.minimum(*slopes), columns * np.maximum(*slopes)),
            _steady(columns, rows / np.maximum(*slopes), rows / np.minimum(*slopes)),
        ],
        axis=1,
    )
    return np.asarray((facing & steady & (sides > 0)).any(axis=1))


def _steady(
    shared: NDArray[np.float32], least: NDArray[np.float32], most: NDArray[np.float32]
) -> NDArray[np.bool_]:
    return np.asarray((shared >= least / _STEADY - _CUT) & (shared <= most * _STEADY + _CUT))


def _cut_along(
    boxes: Float[NDArray[np.float32], "n 4"],
    tiles: Int[NDArray[np.int64], "n 4"],
    others: Int[NDArray[np.int64], "n 4"],
) -> NDArray[np.bool_]:
    """Which boxes end, along x and along y, at a border of their own tile beyond which the other goes on."""
    low = (boxes[:, :2] < tiles[:, :2] + _CUT) & (others[:, :2] < tiles[:, :2])
    high = (boxes[:, 2:] > tiles[:, 2:] - _CUT) & (tiles[:, 2:] < others[:, 2:])
    low &= tiles[:, :2] < others[:, 2:]
    high &= others[:, :2] < tiles[:, 2:]
    return np.asarray(np.stack([low, high]).any(0))


def _lies_in(
    pieces: Float[NDArray[np.float32], "n 4"], whole: Float[NDArray[np.float32], "n 4"]
) -> NDArray[np.bool_]:
    low, high = whole[:, :2] - _SLACK, whole[:, 2:] + _SLACK
    sides = np.minimum(pieces[:, 2:], high) - np.maximum(pieces[:, :2], low)
    shared = np.prod(np.clip(sides, 0, None), axis=-1)
    return np.asarray(shared >= _TAKEN * np.prod(pieces[:, 2:] - pieces[:, :2], axis=-1))


def _meet(tile: Int[NDArray[np.int64], " 4"], tiles: Int[NDArray[np.int64], "n 4"]) -> NDArray[np.bool_]:
    return np.asarray((np.maximum(tile[:2], tiles[:, :2]) < np.minimum(tile[2:], tiles[:, 2:])).all(axis=1))


def _cut(
    boxes: Float[NDArray[np.float32], "n 4"], zones: Int[NDArray[np.int64], "n 4"]
) -> Float[NDArray[np.float64], "n 4"]:
    """Each box within its zone, a little larger; one that is not in it has no area."""
    low, high = zones[:, :2], zones[:, 2:]
    grown = np.concatenate([boxes[:, :2] - _SLACK, boxes[:, 2:] + _SLACK], axis=-1).reshape(-1, 2, 2)
    cut = np.clip(grown, low[:, None], high[:, None]).reshape(-1, 4)
    outside = (boxes[:, 2:] <= low).any(axis=1) | (boxes[:, :2] >= high).any(axis=1)
    cut[outside] = 0
    return np.asarray(cut, np.float64)


def overlap(
    a: Float[NDArray[np.float64], "n 4"], b: Float[NDArray[np.float64], "n 4"]
) -> NDArray[np.float64]:
    """Intersection over union of each with its own."""
    shared = np.prod((np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0), axis=1)
    areas = (np.prod(of[:, 2:] - of[:, :2], axis=1) for of in (a, b))
    return np.asarray(shared / np.maximum(sum(areas) - shared, 1e-9))


def _union(boxes: Float[NDArray[np.float32], "n 4"], score: float, names: Sequence[str]) -> Region:
    x0, y0, x1, y1 = box = _whole([*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)])
    area, length = (x1 - x0) * (y1 - y0), float(max(x1 - x0, y1 - y0))
    kind = next((name for name in names if name != UNKNOWN), UNKNOWN)
    parts = tuple(_whole(piece) for piece in boxes) if len(boxes) > 1 else ()
    return Region(box, area, length, score, kind, parts)


def _whole(box: Sequence[float] | NDArray[np.float32]) -> Box:
    (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int).tolist(), np.ceil(box[2:]).astype(int).tolist()
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
