"""The faults that the loom can weave: where they occur, how long they are, what making them shares.

:class:`DefectSpec` says which fault lies where. The makers in ``faults_yarn``, ``faults_knit`` and
``faults_cloth`` take a :class:`Window` of good cloth, change its yarns, and return what the lens sees there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from loomsight.config import Config
from loomsight.loom.render import Window
from loomsight.loom.shapes import between, thread
from loomsight.loom.spec import ClothSpec
from loomsight.loom.weaves import FINE, Construction
from loomsight.loom.yarns import Table

WovenKind = Literal[
    "broken end", "missing end", "double end", "broken pick", "missing pick", "double pick", "mispick",
    "float", "slub", "snarl", "knot", "reed mark", "weft bar", "barré", "starting mark", "weft crack",
    "weft curling", "burl mark", "smash", "warp ball",
    "ladder", "dropped stitch", "needle line", "sinker mark", "barriness", "spandex miss",
    "hole", "tear", "nep", "fuzzy ball", "oil stain", "stain", "colour spot", "contamination", "crease",
    "selvedge cut",
]  # fmt: skip
WOVEN_KINDS: tuple[WovenKind, ...] = get_args(WovenKind)
"""The defects that the loom can weave, by their names in `DEFECT_TYPES`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a type of defect occurs, and its size.

    Attributes:
        low, high: usual lengths, mm.
        runs: the way it runs; "both": it is as wide as long, or lies any way.
        made: the constructions of cloth that can have it.
        reach_mm: how far it spreads to each side of its run, beyond a few yarns.
        yarns: its least length, in yarns.
    """

    low: float
    high: float
    runs: Literal["warp", "weft", "both"]
    made: tuple[Construction, ...] = ("woven",)
    reach_mm: float = 0.0
    yarns: float = 1.5


_YARNS: tuple[Construction, ...] = ("woven", "knitted")
_KNIT: tuple[Construction, ...] = ("knitted",)
_ANY: tuple[Construction, ...] = ("woven", "knitted", "nonwoven")
FAULTS: dict[WovenKind, Fault] = {
    "broken end": Fault(5, 60, "warp", reach_mm=3, yarns=6),
    "missing end": Fault(60, 1500, "warp"),
    "double end": Fault(30, 800, "warp", yarns=8),
    "broken pick": Fault(8, 60, "weft", reach_mm=3, yarns=6),
    "missing pick": Fault(15, 300, "weft"),
    "double pick": Fault(15, 300, "weft"),
    "mispick": Fault(15, 300, "weft"),
    "float": Fault(2.5, 14, "both", yarns=6),
    "slub": Fault(2.5, 14, "both", _YARNS, yarns=6),
    "snarl": Fault(1.2, 5, "both", _YARNS, yarns=3),
    "knot": Fault(0.8, 2.2, "both", _YARNS),
    "reed mark": Fault(40, 1500, "warp"),
    "weft bar": Fault(60, 800, "weft", reach_mm=12),
    "barré": Fault(60, 800, "weft", reach_mm=24),
    "starting mark": Fault(60, 800, "weft", reach_mm=4),
    "weft crack": Fault(20, 300, "weft"),
    "weft curling": Fault(2, 10, "both", yarns=5),
    "burl mark": Fault(2, 8, "both", yarns=4),
    "smash": Fault(6, 25, "both", yarns=8),
    "warp ball": Fault(2, 9, "both", yarns=3),
    "ladder": Fault(5, 60, "warp", _KNIT, yarns=6),
    "dropped stitch": Fault(0.8, 3, "both", _KNIT, yarns=2.5),
    "needle line": Fault(40, 1500, "warp", _KNIT),
    "sinker mark": Fault(40, 1500, "warp", _KNIT),
    "barriness": Fault(60, 800, "weft", _KNIT, reach_mm=24),
    "spandex miss": Fault(60, 800, "weft", _KNIT, reach_mm=10),
    "hole": Fault(1.2, 7, "both", _ANY),
    "tear": Fault(4, 25, "both", _ANY, yarns=5),
    "nep": Fault(0.6, 2, "both", _ANY),
    "fuzzy ball": Fault(1.5, 7, "both", _ANY),
    "oil stain": Fault(1.5, 12, "both", _ANY),
    "stain": Fault(3, 25, "both", _ANY),
    "colour spot": Fault(0.8, 4, "both", _ANY),
    "contamination": Fault(3, 22, "both", _ANY),
    "crease": Fault(20, 400, "warp", _ANY, reach_mm=5),
    "selvedge cut": Fault(2.5, 10, "both", _ANY, yarns=3),
}


def kinds_of(spec: ClothSpec) -> tuple[WovenKind, ...]:
    """The defects that this cloth can have, as pictured."""
    return tuple(
        kind
        for kind, fault in FAULTS.items()
        if spec.construction in fault.made and (kind != "selvedge cut" or spec.selvedges != "none")
    )


class DefectSpec(Config):
    """One defect to weave. Places are pixels: `y` from the start of the cloth, `x` from its left border."""

    type: WovenKind
    y: float
    x: float
    length_mm: float = Field(gt=0, le=5000)
    strength: float = Field(default=0.6, ge=0, le=1)
    """Its severity: 0 just seen, 1 as bad as it gets."""
    seed: int = Field(default=0, ge=0)

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        spec: ClothSpec,
        *,
        rows: tuple[int, int],
        width: int,
        kind: WovenKind | None = None,
    ) -> DefectSpec:
        """Any defect with its middle in `rows` (first, past the last), on the cloth in `width` pixels."""
        possible = kinds_of(spec)
        chosen = possible[int(rng.integers(len(possible)))] if kind is None else kind
        fault = FAULTS[chosen]
        yarn_mm = spec.mm_per_px * max(spec.px_per_end, spec.px_per_pick)
        length = max(between(rng, fault.low, fault.high), fault.yarns * yarn_mm)
        left, right = spec.cloth_columns(width)
        x = float(rng.uniform(left + 0.03 * (right - left), right - 0.03 * (right - left)))
        if chosen == "selvedge cut":
            x = (
                left
                if spec.selvedges == "left" or (spec.selvedges == "both" and rng.random() < 0.5)
                else right
            )
        return cls(
            type=chosen,
            y=float(rng.uniform(*rows)),
            x=x,
            length_mm=length,
            strength=float(rng.random()),
            seed=int(rng.integers(2**31)),
        )


# --- what the makers share -----------------------------------------------------------------------------


def extent(at: NDArray[Any], middle: float, length: float, ramp: float) -> NDArray[np.float64]:
    """1 along `length` pixels around `middle`, falling to 0 over `ramp` pixels at its ends."""
    along: NDArray[np.float64] = np.clip((0.5 * length - np.abs(at - middle)) / ramp + 0.5, 0.0, 1.0)
    return along


def bent(
    at: NDArray[np.float64], middle: float, amount: NDArray[np.float64] | float, yarns: float = 1.1
) -> NDArray[np.float64]:
    """Yarn coordinates drawn to `middle` (amount > 0, up to 1) or pushed from it (< 0, down to −0.9)."""
    away = at - middle
    moved = away * amount * np.exp(-np.square(away / yarns))
    # what nobody could see is no change: the cloth farther off stays as it was, to the bit
    return np.asarray(at + np.where(np.abs(moved) < 0.02, 0.0, moved))


def thinned(half: Table, gone: NDArray[np.float64]) -> Table:
    """Half widths of yarns that run out: below nothing where they are gone, never exactly nothing."""
    thin = half - gone * (half + 0.6)
    return np.where(np.abs(thin) < 1e-3, 1e-3, thin).astype(np.float32)


def shape_of(window: Window) -> tuple[int, int]:
    """Rows and columns of a window."""
    return window.rows, window.columns


def here(window: Window, defect: DefectSpec) -> tuple[float, float]:
    """The defect's middle (y, x) in its window."""
    return defect.y - window.top, defect.x - window.left


def straight(window: Window) -> Table:
    """Pixels from the middle of a yarn that lies straight in its course, as a float of a knit does."""
    off = (window.v - window.pick - 0.5) * window.cloth.spec.px_per_pick
    return off.astype(np.float32)


def yarn_at(window: Window, defect: DefectSpec) -> tuple[int, int]:
    """The end and the pick at the defect's middle; in corduroy the nearest end that no pile hides."""
    spec, repeat = window.cloth.spec, window.cloth.pattern
    end, pick = math.floor(defect.x / spec.px_per_end), math.floor(defect.y / spec.px_per_pick)
    shows = repeat.warp_up[:, FINE // 2 :: FINE].max(axis=0) > 0
    if repeat.has_warp:
        near = sorted(range(-repeat.ends, repeat.ends), key=abs)
        end += next(step for step in near if shows[(end + step) % repeat.ends])
    return end, pick


def length_of(window: Window, defect: DefectSpec) -> float:
    """Its length in pixels."""
    return defect.length_mm / window.cloth.spec.mm_per_px


def yarn_colour(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The colour of a yarn that lies on the cloth there: warp or weft, in its light. (channels,)"""
    which = int(rng.integers(2)) if window.cloth.pattern.has_warp else 1
    x = int(np.clip(defect.x, 0, window.cloth.width - 1))
    return np.asarray(window.cloth.colours[which] * window.cloth.surface.light[x], np.float32)


def lay_thread(seen: Table, points: NDArray[np.float64], width: float, colour: Table) -> Table:
    """A loose yarn on top of the cloth through points (n, 2) xy, with its shadow and its round section."""
    shape = (seen.shape[0], seen.shape[1])
    body = thread(shape, points, np.full(len(points), width), 0.6)
    core = thread(shape, points, np.full(len(points), max(1.0, 0.45 * width)), 0.9)
    drop = np.array([[1, 0, 0.35 * width], [0, 1, 0.45 * width]])
    shadow = cv2.warpAffine(cv2.GaussianBlur(body, (0, 0), 0.35 * width + 0.4), drop, (shape[1], shape[0]))
    shaded = seen * (1 - 0.4 * np.maximum(shadow - body, 0))[:, :, None]
    lit = (0.72 + 0.4 * core)[:, :, None] * colour
    return np.asarray(shaded + body[:, :, None] * (lit - shaded), np.float32)


def fluff(
    seen: Table,
    rng: np.random.Generator,
    at: tuple[float, float],
    radii: tuple[float, float],
    *,
    fibres: int,
    colour: Table,
) -> Table:
    """A tangle of fibres around (y, x), radii (y, x) pixels: dense in the middle, hairs outside."""
    shape = (seen.shape[0], seen.shape[1])
    cover: NDArray[Any] = np.zeros(shape, np.float32)
    for _ in range(fibres):
        turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.7, 9))
        steps = np.stack([np.cos(turn) * radii[1], np.sin(turn) * radii[0]], 1) * rng.uniform(0.1, 0.24)
        start = np.array([at[1] + radii[1] * rng.normal(0, 0.3), at[0] + radii[0] * rng.normal(0, 0.3)])
        hair = thread(shape, np.vstack([start, start + np.cumsum(steps, 0)]), np.ones(10), 0.8)
        cover = 1 - (1 - cover) * (1 - 0.6 * hair)
    drop = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    shadow = cv2.warpAffine(cv2.GaussianBlur(cover, (0, 0), 1.5), drop, (shape[1], shape[0]))
    shaded = seen * (1 - 0.45 * np.maximum(shadow - 0.6 * cover, 0))[:, :, None]
    lit = (0.8 + 0.35 * cv2.GaussianBlur(cover, (0, 0), 0.7))[:, :, None] * colour
    return np.asarray(shaded + cover[:, :, None] * (lit - shaded), np.float32)
