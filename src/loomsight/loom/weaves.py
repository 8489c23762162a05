"""Structures: which yarn is on top where. Lift plans of woven cloth, loops of knitted cloth, and fleece.

A lift plan is a table, picks × ends: true where the warp end passes over the pick (CAN/ISO 2959 notation,
"twill 2/1" is two over, one under). :class:`Pattern` is one repeat of it drawn finely, so that a picture
is made by looking up instead of by computing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Structure = Literal[
    "plain", "twill 2/1", "twill 2/2", "twill 3/1", "satin 5", "basket 2/2", "herringbone", "jersey",
    "broken twill", "diamond twill", "satin 8", "dobby", "rib 1/1", "rib 2/2", "interlock", "pique",
    "corduroy", "gauze", "fleece",
]  # fmt: skip
STRUCTURES: tuple[Structure, ...] = get_args(Structure)

_KNITS: dict[Structure, tuple[str, ...]] = {
    "jersey": ("V",),
    "rib 1/1": ("Vp",),
    "rib 2/2": ("VVpp",),
    "interlock": ("Vh",),
    "pique": ("Vt", "VV", "tV", "VV"),
}
"""The loops of a repeat, course by course, a letter a wale: V a face loop (h one that lies half a course
lower), p a purl loop, t a tuck: the yarn is held at the needle and lies there as an arch."""

FINE = 12
"""Samples of a pattern per end and per pick."""


_DOBBY = (  # a spot of weft floats in plain cloth, as drawn on point paper: x where the warp is up
    "x.x.x.x.x.x.",
    ".x.x.x.x.x.x",
    "x.x.x...x.x.",
    ".x.x.....x.x",
    "x.x.......x.",
    ".x.x.....x.x",
    "x.x.x...x.x.",
    ".x.x.x.x.x.x",
)


Construction = Literal["woven", "knitted", "nonwoven"]


def construction(structure: Structure) -> Construction:
    """Whether it is made of warp and weft, of loops, or of fibres without yarns."""
    if structure == "fleece":
        return "nonwoven"
    return "knitted" if structure in _KNITS else "woven"


def lift_plan(structure: Structure) -> NDArray[np.bool_]:
    """Picks × ends of one repeat; true where the warp is on top. Of a knit courses × wales, all false."""
    if structure in _KNITS:
        rows = _KNITS[structure]
        return np.zeros((len(rows), len(rows[0])), bool)
    if structure == "fleece":
        return np.zeros((1, 1), bool)
    name, _, counts = structure.partition(" ")
    if name == "twill":
        over, under = (int(part) for part in counts.split("/"))
        return _twill(over, under)
    return _PLANS[structure]


def _twill(over: int, under: int) -> NDArray[np.bool_]:
    repeat = over + under
    return np.array([[(end + pick) % repeat < over for end in range(repeat)] for pick in range(repeat)])


def _satin(ends: int, step: int) -> NDArray[np.bool_]:
    """One binding point in each end, moved by some picks from end to end, so that they never touch."""
    return np.array([[(pick * step - end) % ends != 0 for end in range(ends)] for pick in range(ends)])


_POINT = (0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1)
_PLAIN = np.eye(2, dtype=bool)
_PLANS: dict[str, NDArray[np.bool_]] = {
    "plain": _PLAIN,
    "basket 2/2": np.kron(_PLAIN, np.ones((2, 2), bool)).astype(bool),
    "satin 5": _satin(5, 2),
    "satin 8": _satin(8, 3),
    # a 3/1 twill in the order 1, 2, 4, 3: no diagonal goes on
    "broken twill": _twill(3, 1)[:, [0, 1, 3, 2]],
    # a 2/2 twill that turns every eight ends, and is cut there: the ends that meet lie opposite
    "herringbone": np.hstack([np.tile(_twill(2, 2), (1, 2)), ~np.tile(_twill(2, 2), (1, 2))[:, ::-1]]),
    # a 2/2 twill on a pointed draft and with a pointed lift
    "diamond twill": np.tile(_twill(2, 2), (2, 2))[np.ix_(_POINT, _POINT)],
    "dobby": np.array([[mark == "x" for mark in row] for row in _DOBBY]),
    # weft floats over seven ends, cut open to a pile, between races of three ends in plain weave
    "corduroy": np.hstack([np.zeros((2, 7), bool), np.tile(_PLAIN, (1, 2))[:, :3]]),
    # one cell is a pair of ends, which cross between the picks: see _leno
    "gauze": np.ones((2, 1), bool),
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """One repeat, drawn with FINE samples an end and a pick: every table is (picks · FINE, ends · FINE).

    Attributes:
        picks, ends: size of the repeat.
        warp_up: float32, 1 where the warp is on top.
        warp_height, weft_height: float32 in [0, 1], 1 where that yarn is highest.
        warp_off, weft_off: float32, signed pixels from the middle of the yarn, where it does not simply lie
            along the middle of its row or column of the plan; else None.
        has_warp: whether there is one; a knit's loops and a fleece's fibres count as weft.
    """

    picks: int
    ends: int
    warp_up: NDArray[np.float32]
    warp_height: NDArray[np.float32]
    weft_height: NDArray[np.float32]
    warp_off: NDArray[np.float32] | None = None
    weft_off: NDArray[np.float32] | None = None
    has_warp: bool = True


def pattern(structure: Structure, px_per_end: float, px_per_pick: float) -> Pattern:
    """Draw the repeat of a structure."""
    if structure in _KNITS:
        return _knit(_KNITS[structure], px_per_end, px_per_pick)
    if structure == "fleece":
        flat = np.zeros((FINE, FINE), np.float32)
        return Pattern(1, 1, flat, flat, flat + np.float32(0.7), weft_off=flat, has_warp=False)
    if structure == "gauze":
        return _leno(px_per_end)
    plan = lift_plan(structure)
    up = np.kron(plan, np.ones((FINE, FINE))).astype(np.float32)
    drawn = Pattern(
        picks=plan.shape[0],
        ends=plan.shape[1],
        warp_up=up,
        warp_height=_height(plan.T).T.copy(),
        weft_height=_height(~plan),
    )
    return _with_pile(drawn, px_per_pick) if structure == "corduroy" else drawn


def _with_pile(ground: Pattern, px_per_pick: float) -> Pattern:
    """Corduroy's cords: the cut weft stands up over seven ends, leans over the race, leaves one end bare."""
    repeat = ground.ends
    across = (np.arange(ground.warp_up.shape[1]) + 0.5) / FINE
    away = np.abs((across - 3.5 + repeat / 2) % repeat - repeat / 2) / (repeat / 2 - 0.5)  # 1: the race
    pile, cord = away < 1, np.sqrt(np.clip(1 - away**2, 0, 1)).astype(np.float32)  # a cord is round
    down = ((np.arange(ground.warp_up.shape[0]) + 0.5) / FINE) % 1
    off = ((down - 0.5) * px_per_pick)[:, None] * (1 - 0.8 * np.minimum(1, 2 * cord))
    height = np.where(pile, cord, 0.5 * ground.weft_height).astype(np.float32)
    return replace(
        ground,
        warp_up=np.where(pile, 0, ground.warp_up).astype(np.float32),
        weft_height=height,
        warp_height=0.5 * ground.warp_height,
        weft_off=off.astype(np.float32),
    )


def _leno(px_per_end: float) -> Pattern:
    """Gauze: each end is a pair, a standing end under the picks and a doup end that crosses it over them."""
    y, x = (np.mgrid[: 2 * FINE, :FINE] + 0.5) / FINE
    sway = 0.25 * np.cos(np.pi * y)
    doup, standing = ((x - 0.5 - side * sway) * px_per_end for side in (1, -1))
    on_top = np.abs(doup) < np.maximum(np.abs(standing), 0.12 * px_per_end)
    up = on_top.astype(np.float32)
    off = np.where(on_top, doup, standing).astype(np.float32)
    low = (1 - 0.5 * np.sin(np.pi * (y % 1))).astype(np.float32)  # the standing end dips under each pick
    return Pattern(2, 1, up, np.where(on_top, 1.0, 0.6 * low).astype(np.float32), 0.8 * low, warp_off=off)


def _height(on_top: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How high each row's yarn is along its row: it falls in the half cell before it dives, and lies low."""
    along = (np.arange(FINE, dtype=np.float32) + 0.5) / FINE
    to_left = np.square(np.clip(1 - 2 * along, 0, 1))
    to_right = np.square(np.clip(2 * along - 1, 0, 1))
    dives_left = (~np.roll(on_top, 1, axis=1)).astype(np.float32)[:, :, None]
    dives_right = (~np.roll(on_top, -1, axis=1)).astype(np.float32)[:, :, None]
    high = 1 - 0.8 * (dives_left * to_left + dives_right * to_right)
    height = np.where(on_top[:, :, None], high, 0.15)
    return np.repeat(height.reshape(on_top.shape[0], -1), FINE, axis=0).astype(np.float32)


def _knit(rows: tuple[str, ...], wale: float, course: float) -> Pattern:
    """Each place of the cloth shows the yarn that lies highest there; it may reach in from the next loops.

    A face loop shows its two legs as a V, its foot under the loop below it: a leg is an S-curve from the
    narrow foot to the wide shoulder (after Leaf and Glaskin's loop, seen flat). A purl loop shows its head
    and foot, one wave a wale.
    """
    courses, wales = len(rows), len(rows[0])
    y, x = ((np.mgrid[: courses * FINE, : wales * FINE] + 0.5) / FINE).astype(np.float64)
    best = np.full(y.shape, -np.inf)
    distance, height = np.zeros(y.shape), np.zeros(y.shape)
    for row in range(-1, courses + 1):
        for column in range(-1, wales + 1):
            kind = rows[row % courses][column % wales]
            for away, high in _loop(kind, y - row, x - column, wale, course):
                score = high - 0.35 * np.square(away / (0.22 * wale))
                take = score > best
                best = np.where(take, score, best)
                distance, height = np.where(take, away, distance), np.where(take, high, height)
    flat = np.zeros(y.shape, np.float32)
    tables = (np.clip(height, 0, 1).astype(np.float32), distance.astype(np.float32))
    return Pattern(courses, wales, flat, flat, tables[0], weft_off=tables[1], has_warp=False)


def _loop(
    kind: str, y: NDArray[np.float64], x: NDArray[np.float64], wale: float, course: float
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Each stretch of a loop in the cell [0, 1]²: pixels from the yarn's middle, signed, and its height."""
    if kind == "p":
        wave = 0.5 + 0.38 * np.cos(2 * np.pi * x)
        slope = 0.38 * 2 * np.pi * np.sin(2 * np.pi * x) * course / wale
        outside = np.maximum(np.abs(x - 0.5) - 0.5, 0) * wale
        away = (y - wave) * course / np.hypot(1, slope)
        away = np.where(outside > 0, np.hypot(away, 3 * outside), away)
        return [(away, 0.6 - 0.25 * np.abs(np.sin(2 * np.pi * x)))]
    if kind == "t":
        arch = 0.75 - 0.5 * np.sin(np.pi * np.clip(x, 0, 1))
        outside = np.maximum(np.abs(x - 0.5) - 0.5, 0) * wale
        away = (y - arch) * course
        away = np.where(outside > 0, np.hypot(away, 3 * outside), away)
        return [(away, np.full(y.shape, 0.3))]
    if kind == "h":
        y = y - 0.5
    legs = []
    for side in (-1.0, 1.0):
        along = 0.5 - (y - 0.5) / 1.25  # 0 at the foot, 1 at the shoulder: the leg is 1.25 courses long
        bend = 3 * np.clip(along, 0, 1) ** 2 - 2 * np.clip(along, 0, 1) ** 3
        middle = 0.5 + side * (0.11 + 0.24 * bend)
        slope = np.hypot(1.0, 0.36 * wale / (1.25 * course))  # px across the leg, not across the cloth
        away = (x - middle) * wale / slope
        beyond = np.maximum(np.abs(along - 0.5) - 0.5, 0) * course * 1.25
        away = np.where(beyond > 0, np.hypot(away, 3 * beyond), away)
        high = np.clip(1 - 1.4 * np.square(along - 0.55), 0, 1)
        legs.append((away, high))
    return legs
