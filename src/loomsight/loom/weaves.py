"""Structures: which yarn is on top where. Lift plans of woven cloth, loops of knitted cloth.

A lift plan is a table, picks × ends: true where the warp end passes over the pick (CAN/ISO 2959 notation,
"twill 2/1" is two over, one under). :class:`Pattern` is one repeat of it drawn finely, so that a picture
is made by looking up instead of by computing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Structure = Literal[
    "plain", "twill 2/1", "twill 2/2", "twill 3/1", "satin 5", "basket 2/2", "herringbone", "jersey"
]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)

FINE = 12
"""Samples of a pattern per end and per pick."""


def lift_plan(structure: Structure) -> NDArray[np.bool_]:
    """Picks × ends of one repeat; true where the warp is on top. A jersey has none: its one cell is false."""
    if structure == "plain":
        return np.array([[True, False], [False, True]])
    if structure == "basket 2/2":
        return np.kron(np.array([[True, False], [False, True]]), np.ones((2, 2), bool)).astype(bool)
    if structure == "satin 5":  # one binding point in each end, moved by two picks: they never touch
        return np.array([[(pick * 2 - end) % 5 != 0 for end in range(5)] for pick in range(5)])
    if structure == "herringbone":  # a 2/2 twill that turns every eight ends
        right = _twill(2, 2)
        wide = np.tile(right, (1, 2))
        return np.hstack([wide, wide[:, ::-1]])
    if structure == "jersey":
        return np.zeros((1, 1), bool)
    over, under = (int(part) for part in structure.split()[1].split("/"))
    return _twill(over, under)


def _twill(over: int, under: int) -> NDArray[np.bool_]:
    repeat = over + under
    return np.array([[(end + pick) % repeat < over for end in range(repeat)] for pick in range(repeat)])


@dataclass(frozen=True, slots=True)
class Pattern:
    """One repeat, drawn with FINE samples an end and a pick: every table is (picks · FINE, ends · FINE).

    Attributes:
        picks, ends: size of the repeat.
        warp_up: float32, 1 where the warp is on top.
        warp_height, weft_height: float32 in [0, 1], 1 where that yarn is highest.
        loop: pixels from the middle of the loop's leg, signed; None in woven cloth.
    """

    picks: int
    ends: int
    warp_up: NDArray[np.float32]
    warp_height: NDArray[np.float32]
    weft_height: NDArray[np.float32]
    loop: NDArray[np.float32] | None = None


def pattern(structure: Structure, px_per_end: float, px_per_pick: float) -> Pattern:
    """Draw the repeat of a structure."""
    if structure == "jersey":
        return _jersey(px_per_end, px_per_pick)
    plan = lift_plan(structure)
    up = np.kron(plan, np.ones((FINE, FINE))).astype(np.float32)
    return Pattern(
        picks=plan.shape[0],
        ends=plan.shape[1],
        warp_up=up,
        warp_height=_height(plan.T).T.copy(),
        weft_height=_height(~plan),
    )


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


def _jersey(wale: float, course: float) -> Pattern:
    """The face of a jersey: each loop shows its two legs as a V, its foot under the loop below it.

    A leg is an S-curve from the narrow foot to the wide shoulder (after Leaf and Glaskin's loop, seen flat).
    """
    y, x = (np.mgrid[:FINE, :FINE].astype(np.float64) + 0.5) / FINE
    best = np.full((FINE, FINE), -np.inf)
    distance = np.zeros((FINE, FINE))
    height = np.zeros((FINE, FINE))
    for row in (-1, 0, 1):
        for side in (-1.0, 1.0):
            along = (
                0.5 - (y - row - 0.5) / 1.25
            )  # 0 at the foot, 1 at the shoulder: the leg is 1.25 courses long
            bend = 3 * np.clip(along, 0, 1) ** 2 - 2 * np.clip(along, 0, 1) ** 3
            middle = 0.5 + side * (0.11 + 0.24 * bend)
            slope = np.hypot(1.0, 0.36 * wale / (1.25 * course))  # px across the leg, not across the cloth
            away = (x - middle) * wale / slope
            beyond = np.maximum(np.abs(along - 0.5) - 0.5, 0) * course * 1.25
            away = np.where(beyond > 0, np.hypot(away, 3 * beyond), away)
            high = np.clip(1 - 1.4 * np.square(along - 0.55), 0, 1)
            score = high - 0.35 * np.square(away / (0.22 * wale))
            take = score > best
            best = np.where(take, score, best)
            distance = np.where(take, away, distance)
            height = np.where(take, high, height)
    flat = np.zeros((FINE, FINE), np.float32)
    return Pattern(1, 1, flat, flat, height.astype(np.float32), loop=distance.astype(np.float32))
