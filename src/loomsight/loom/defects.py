"""Ten defects, made where they happen: at the yarn. A yarn breaks, thickens or floats; the rest follows.

Each function takes a :class:`Window` of good cloth around the defect, changes its yarns, and returns what the
lens would see there. The mask comes from the difference to the good cloth, so it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from loomsight.config import Config
from loomsight.fabric.types import Mask
from loomsight.loom.render import Renderer, Window
from loomsight.loom.shapes import between, blob, cloud, thread, wander
from loomsight.loom.spec import ClothSpec
from loomsight.loom.yarns import Table

WovenKind = Literal[
    "broken end", "missing pick", "double pick", "slub", "knot", "float", "hole", "oil stain", "colour spot",
    "contamination",
]  # fmt: skip
WOVEN_KINDS: tuple[WovenKind, ...] = get_args(WovenKind)
"""The defects that the loom can weave, by their names in `DEFECT_TYPES`."""

_LENGTHS: dict[WovenKind, tuple[float, float]] = {  # millimetres
    "broken end": (5, 60), "missing pick": (15, 300), "double pick": (15, 300), "slub": (2.5, 14),
    "knot": (0.8, 2.2), "float": (2.5, 14), "hole": (1.2, 7), "oil stain": (1.5, 12), "colour spot": (0.8, 4),
    "contamination": (3, 22),
}  # fmt: skip


class DefectSpec(Config):
    """One defect to weave. Places are pixels: `y` from the start of the cloth, `x` from its left border."""

    type: WovenKind
    y: float
    x: float
    length_mm: float = Field(gt=0, le=5000)
    strength: float = Field(default=0.6, ge=0, le=1)
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
        """Any defect with its middle in `rows` (first, past the last) and within `width` pixels."""
        chosen = WOVEN_KINDS[int(rng.integers(len(WOVEN_KINDS)))] if kind is None else kind
        low, high = _LENGTHS[chosen]
        yarn_mm = spec.mm_per_px * max(spec.px_per_end, spec.px_per_pick)
        length = max(
            between(rng, low, high), (6 if chosen in ("float", "slub", "broken end") else 1.5) * yarn_mm
        )
        return cls(
            type=chosen,
            y=float(rng.uniform(*rows)),
            x=float(rng.uniform(0.03 * width, 0.97 * width)),
            length_mm=length,
            strength=float(rng.random()),
            seed=int(rng.integers(2**31)),
        )


@dataclass(frozen=True, slots=True)
class Patch:
    """A woven defect: what it adds to the good cloth, and where it can be seen."""

    top: int
    left: int
    change: Table  # (rows, columns, channels), before the lens
    mask: Mask


def weave_defect(cloth: Renderer, defect: DefectSpec) -> Patch:
    """Weave the cloth around a defect twice, good and bad, and keep the difference."""
    rng = np.random.default_rng(defect.seed)
    make, runs = _MAKERS[defect.type]
    spec = cloth.spec
    length = defect.length_mm / spec.mm_per_px
    room = 6 * max(spec.px_per_end, spec.px_per_pick) + 8
    down, across = {"warp": (0.5, 0.0), "weft": (0.0, 0.5), "both": (0.9, 0.9)}[runs]
    rows, columns = math.ceil(down * length + room), math.ceil(across * length + room)
    y, x = int(defect.y), int(np.clip(defect.x, 0, cloth.width - 1))
    window = Window(cloth, y - rows, x - columns, y + rows, x + columns)
    good = window.seen()
    change = make(window, defect, rng) - good
    return Patch(window.top, window.left, change, _mask(cloth, change))


def _mask(cloth: Renderer, change: Table) -> Mask:
    """Through the lens, where the change is visible: 97 % of its energy, gaps of a pixel closed."""
    pad = cloth.reach
    wide = np.pad(change, ((pad, pad), (pad, pad), (0, 0)))
    amount = np.abs(cloth.blurred(wide)[pad : -pad or None, pad : -pad or None]).max(axis=2)
    peak = float(amount.max())
    if peak < 2.0:
        return np.zeros(amount.shape, np.bool_)
    order = np.sort(amount, axis=None)
    energy = np.cumsum(np.square(order, dtype=np.float64))
    enough = float(order[int(np.searchsorted(energy, 0.03 * energy[-1]))])
    mask = (amount >= max(1.25, min(0.3 * peak, enough))).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)


# --- what they share -----------------------------------------------------------------------------------


def _extent(at: NDArray[np.float64], middle: float, length: float, ramp: float) -> NDArray[np.float64]:
    """1 along `length` pixels around `middle`, falling to 0 over `ramp` pixels at its ends."""
    extent: NDArray[np.float64] = np.clip((0.5 * length - np.abs(at - middle)) / ramp + 0.5, 0.0, 1.0)
    return extent


def _bent(
    at: NDArray[np.float64], middle: float, amount: NDArray[np.float64] | float, yarns: float = 1.1
) -> NDArray[np.float64]:
    """Yarn coordinates drawn to `middle` (amount > 0, up to 1) or pushed from it (< 0, down to −0.9)."""
    away = at - middle
    moved = away * amount * np.exp(-np.square(away / yarns))
    # what nobody could see is no change: the cloth farther off stays as it was, to the bit
    bent: NDArray[np.float64] = at + np.where(np.abs(moved) < 0.02, 0.0, moved)
    return bent


def _thinned(half: Table, gone: NDArray[np.float64]) -> Table:
    """Half widths of yarns that run out: below nothing where they are gone, never exactly nothing."""
    thin = half - gone * (half + 0.6)
    return np.where(np.abs(thin) < 1e-3, 1e-3, thin).astype(np.float32)


def _shape(window: Window) -> tuple[int, int]:
    return window.rows, window.columns


def _here(window: Window, defect: DefectSpec) -> tuple[float, float]:
    """The defect's middle (y, x) in its window."""
    return defect.y - window.top, defect.x - window.left


def _straight(window: Window) -> Table:
    """Pixels from the middle of a yarn that lies straight in its course, as a float of a knit does."""
    off = (window.v - window.pick - 0.5) * window.cloth.spec.px_per_pick
    return off.astype(np.float32)


def _yarn_at(window: Window, defect: DefectSpec) -> tuple[int, int]:
    """The end and the pick at the defect's middle."""
    spec = window.cloth.spec
    return math.floor(defect.x / spec.px_per_end), math.floor(defect.y / spec.px_per_pick)


def _length(window: Window, defect: DefectSpec) -> float:
    return defect.length_mm / window.cloth.spec.mm_per_px


# --- the ten ---------------------------------------------------------------------------------------------


def _broken_end(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The end is gone over a length, its neighbours close in; in a knit the wale runs: a ladder."""
    spec = window.cloth.spec
    end, _ = _yarn_at(window, defect)
    gone = _extent(window.y, defect.y, _length(window, defect), 1.5 * spec.px_per_pick)
    window.u = _bent(window.u, end + 0.5, (0.1 + 0.5 * (1 - defect.strength)) * gone)
    window.lay()
    threads, there = window.threads, (window.end == end) * gone
    if spec.knitted:
        threads.off_weft = np.where(there > 0.5, _straight(window), threads.off_weft)
        threads.half_weft = np.where(there > 0.5, 0.6 * threads.half_weft, threads.half_weft)
        return window.seen()
    threads.half_warp = _thinned(threads.half_warp, there)
    threads.up = threads.up * (1 - there).astype(np.float32)
    lying = np.float32(rng.uniform(0.5, 0.9))  # the weft is not bound there and lies flat
    threads.high_weft = np.where(there > 0.5, np.maximum(threads.high_weft, lying), threads.high_weft)
    return window.seen()


def _missing_pick(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The pick is not there: the warp floats over the gap, the reed has pushed its neighbours together."""
    spec = window.cloth.spec
    _, pick = _yarn_at(window, defect)
    gone = _extent(window.x, defect.x, _length(window, defect), rng.uniform(1, 4) * spec.px_per_end)
    window.v = _bent(window.v, pick + 0.5, (0.1 + 0.5 * (1 - defect.strength)) * gone)
    window.lay()
    threads, there = window.threads, (window.pick == pick) * gone
    threads.half_weft = _thinned(threads.half_weft, there)
    if not spec.knitted:
        threads.up = np.maximum(threads.up, there).astype(np.float32)
        lying = np.float32(rng.uniform(0.4, 0.8))
        threads.high_warp = np.where(there > 0.5, np.maximum(threads.high_warp, lying), threads.high_warp)
    return window.seen()


def _double_pick(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Two picks in one shed: the next pick goes the way of this one, and both lie closer."""
    spec = window.cloth.spec
    _, pick = _yarn_at(window, defect)
    both = _extent(window.x, defect.x, _length(window, defect), rng.uniform(1, 4) * spec.px_per_end)
    window.v = _bent(window.v, pick + 1.0, (0.15 + 0.25 * defect.strength) * both)
    window.lay()
    threads, second = window.threads, (window.pick == pick + 1) & (both > 0.5)
    if spec.knitted:
        thick = (1 + (0.5 + 0.3 * defect.strength) * (window.pick == pick) * both).astype(np.float32)
        threads.half_weft = threads.half_weft * thick
        threads.tone_weft = threads.tone_weft * (1 + 0.15 * (thick - 1))
        return window.seen()
    repeat = window.cloth.pattern
    cells = window.cells(window.v - second)
    threads.up = repeat.warp_up[cells]
    threads.high_warp, threads.high_weft = repeat.warp_height[cells], repeat.weft_height[cells]
    pair = ((window.pick == pick) | (window.pick == pick + 1)) * both
    threads.half_weft = threads.half_weft * (1 + 0.15 * pair).astype(np.float32)
    threads.high_weft = np.maximum(threads.high_weft, (0.5 * pair).astype(np.float32))
    return window.seen()


def _slub(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A stretch of one yarn is spun two to four times as thick and pushes its neighbours aside."""
    end, pick = _yarn_at(window, defect)
    in_warp = not window.cloth.spec.knitted and rng.random() < 0.5
    at, middle = (window.y, defect.y) if in_warp else (window.x, defect.x)
    along = (at - middle) / (0.5 * _length(window, defect))
    uneven = 1 + 0.2 * wander(rng, at.size, 5).reshape(at.shape)
    swell = np.exp(-2 * np.square(along)) * np.clip(uneven, 0.5, 1.5)
    push = -np.clip((0.4 + 0.35 * defect.strength) * swell, 0, 0.8)
    if in_warp:
        window.u = _bent(window.u, end + 0.5, push)
    else:
        window.v = _bent(window.v, pick + 0.5, push)
    window.lay()
    threads = window.threads
    thick = ((window.end == end) if in_warp else (window.pick == pick)) * np.clip(swell, 0, 1)
    tone = np.float32(rng.choice([-0.12, 0.15, 0.25]))
    if in_warp:
        threads.tone_warp = (threads.tone_warp * (1 + tone * thick)).astype(np.float32)
        threads.high_warp = np.maximum(threads.high_warp, thick).astype(np.float32)
        threads.up = np.maximum(threads.up, np.clip(2 * thick - 0.9, 0, 1)).astype(np.float32)
    else:
        threads.tone_weft = (threads.tone_weft * (1 + tone * thick)).astype(np.float32)
        threads.high_weft = np.maximum(threads.high_weft, thick).astype(np.float32)
        threads.up = (threads.up * (1 - np.clip(2 * thick - 0.9, 0, 1))).astype(np.float32)
    return window.seen()


def _knot(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Two yarn ends tied: a lump that stands up, its shadow, and the two tails."""
    radius = 0.5 * _length(window, defect)
    y, x = _here(window, defect)
    push = -0.6 * np.exp(-(np.square(window.y - defect.y) + np.square(window.x - defect.x)) / (2 * radius**2))
    spec = window.cloth.spec
    window.u = _bent(window.u, defect.x / spec.px_per_end, push)
    window.v = _bent(window.v, defect.y / spec.px_per_pick, push)
    window.lay()
    seen = window.seen()
    shape = _shape(window)
    lump = blob(shape, rng, radius, 0.75 * radius, at=(y, x), rough=0.2, edge=1.2, tilt=1.5)
    fall = max(1, round(0.5 * radius))
    shadow = cv2.GaussianBlur(np.roll(lump, (fall, fall), (0, 1)), (0, 0), 0.8 + 0.3 * radius)
    seen = seen * (1 - (0.3 + 0.3 * defect.strength) * shadow[:, :, None])
    yarn = window.cloth.colours[int(rng.integers(2))] * window.cloth.light[int(x) + window.left]
    round_lump = 1.1 - 0.3 * ((window.y - defect.y) + (window.x - defect.x)) / (radius + 1)
    fibres = 1 + 0.15 * cloud(rng, shape, 1.5)
    lit = (np.clip(round_lump, 0.4, 1.35) * fibres)[:, :, None] * yarn
    seen = seen + lump[:, :, None] * (lit - seen)
    for _ in range(2):
        turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.25, 8))
        steps = np.stack([np.cos(turn), np.sin(turn)], 1) * rng.uniform(1.5, 3.5) * radius / 8
        points = np.vstack([np.zeros(2), np.cumsum(steps, 0)]) + np.array([x, y])
        tail = thread(shape, points, np.full(9, 0.35 * radius), 0.7)
        seen = seen + tail[:, :, None] * (1.1 * yarn - seen)
    return np.asarray(seen, np.float32)


def _float(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A yarn passes over several others unbound; in a knit a yarn missed its needles and lies straight."""
    spec = window.cloth.spec
    end, pick = _yarn_at(window, defect)
    length = _length(window, defect)
    threads = window.threads
    if spec.knitted:
        there = (window.pick == pick) * _extent(window.x, defect.x, length, 2.0) > 0.5
        threads.off_weft = np.where(there, _straight(window), threads.off_weft)
        threads.half_weft = np.where(there, 0.6 * threads.half_weft, threads.half_weft)
        return window.seen()
    # where the warp already lies on top most of the time, only a float of the weft is a fault, and conversely
    share = float(window.cloth.pattern.warp_up.mean())
    tone = np.float32(rng.uniform(1.0, 1.15))
    if share < 0.6 and (share < 0.4 or rng.random() < 0.5):
        there = (window.end == end) * _extent(window.y, defect.y, length, spec.px_per_pick)
        threads.up = np.maximum(threads.up, there).astype(np.float32)
        threads.high_warp = np.maximum(threads.high_warp, there).astype(np.float32)
        threads.tone_warp = np.where(there > 0, tone * threads.tone_warp, threads.tone_warp)
    else:
        there = (window.pick == pick) * _extent(window.x, defect.x, length, spec.px_per_end)
        threads.up = (threads.up * (1 - there)).astype(np.float32)
        threads.high_weft = np.maximum(threads.high_weft, there).astype(np.float32)
        threads.tone_weft = np.where(there > 0, tone * threads.tone_weft, threads.tone_weft)
    return window.seen()


def _hole(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Yarns broken, each at its own place: the ground shows, dark or lit from behind."""
    radius = 0.5 * _length(window, defect)
    long, short = radius * rng.uniform(1.0, 1.6), radius * rng.uniform(0.6, 1.0)
    if rng.random() < 0.5:
        long, short = short, long
    down, across = (window.y - defect.y) / long, (window.x - defect.x) / short
    away = np.hypot(down, across) * (1 + 0.15 * cloud(rng, _shape(window), max(2.0, radius)))
    torn = rng.normal(0, 0.22, 97)
    edge = 0.6 * min(long, short)
    spread = rng.uniform(0.1, 0.3)
    window.u = _bent(window.u, defect.x / window.cloth.spec.px_per_end, spread * np.exp(-(away**2) / 2), 3.0)
    window.lay()
    threads = window.threads
    warp_gone = np.clip((1 + torn[window.end % 97] - away) * edge, 0, 1)
    weft_gone = np.clip((1 + torn[(window.pick + 31) % 97] - away) * edge, 0, 1)
    threads.half_warp = _thinned(threads.half_warp, warp_gone)
    threads.half_weft = _thinned(threads.half_weft, weft_gone)
    seen = window.seen()
    behind = window.cloth.colours[2] * rng.uniform(0.3, 1.0)
    if rng.random() < 0.25:
        behind = np.full_like(behind, rng.uniform(235, 255))
    open_ = (warp_gone * weft_gone)[:, :, None]
    floor = behind * (1 + 0.1 * cloud(rng, _shape(window), 7.0))[:, :, None]
    return np.asarray(seen + open_ * (floor - seen), np.float32)


def _oil_stain(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Oil drawn in by the yarns: darker and browner, the weave still there, run out along warp or weft."""
    radius = 0.5 * _length(window, defect)
    at, shape = _here(window, defect), _shape(window)
    long, short = radius * rng.uniform(1.0, 1.5), radius * rng.uniform(0.6, 1.0)
    if rng.random() < 0.5:
        long, short = short, long
    wet = blob(shape, rng, long, short, at=at, edge=max(2.0, rng.uniform(0.2, 0.6) * radius))
    wet = wet * np.clip(0.9 + 0.15 * cloud(rng, shape, max(3.0, 0.6 * radius)), 0.3, 1.1)
    soaked = np.clip(1 + 0.15 * rng.standard_normal(61), 0.5, 1.4)  # one yarn takes more than another
    wet = wet * (0.6 + 0.2 * soaked[window.end % 61] + 0.2 * soaked[window.pick % 61])
    seen = window.seen()
    tint = np.array([0.85, 1.0, 1.3]) if seen.shape[2] == 3 else np.ones(1)
    depth = 0.2 + 0.4 * defect.strength
    return np.asarray(seen * (1 - np.clip(depth * wet[:, :, None] * tint, 0, 0.9)), np.float32)


def _colour_spot(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Fibre of another dye, or a splash of it: other colour, same weave."""
    radius = 0.5 * _length(window, defect)
    shape = _shape(window)
    spot = blob(shape, rng, radius, radius * rng.uniform(0.6, 1.0), at=_here(window, defect), rough=0.3,
                edge=max(1.5, 0.4 * radius), tilt=1.5)  # fmt: skip
    spot = spot * np.clip(0.85 + 0.2 * cloud(rng, shape, 3.0), 0.2, 1.0)
    seen = window.seen()
    cloth = seen.mean(axis=(0, 1))
    dye = rng.uniform(20, 235, seen.shape[2])
    if np.abs(dye - cloth).max() < 45:  # a spot of the cloth's own colour would be none
        dye = np.where(cloth > 128, cloth - 70, cloth + 70)
    share = (0.5 + 0.4 * defect.strength) * spot[:, :, None]
    return np.asarray(seen * (1 - share) + share * dye * seen / (cloth + 1), np.float32)


def _contamination(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A foreign fibre on the cloth, or under every other yarn of it."""
    n = 32
    turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.04) + rng.normal(0, 0.09, n))
    points = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1) * (_length(window, defect) / n), 0)
    points += np.array(_here(window, defect)[::-1]) - points.mean(0)
    spec = window.cloth.spec
    width = float(np.clip(rng.uniform(0.1, 0.35) / spec.mm_per_px, 1.0, 4.0))
    widths = width * np.clip(1 + 0.25 * wander(rng, n), 0.5, 1.6)
    fibre = thread(_shape(window), points, widths, 0.5)
    if rng.random() < 0.5:
        bound = window.threads.up if rng.random() < 0.5 else 1 - window.threads.up
        fibre = fibre * (1 - 0.7 * bound)
    seen = window.seen()
    cloth = seen.mean(axis=(0, 1))
    colour = rng.uniform(10, 245, seen.shape[2])
    if np.abs(colour - cloth).max() < 60:
        colour = np.where(cloth > 128, cloth - 85, cloth + 85)
    share = (0.55 + 0.4 * defect.strength) * fibre[:, :, None]
    return np.asarray(seen + share * (colour - seen), np.float32)


_MAKERS: dict[
    WovenKind,
    tuple[Callable[[Window, DefectSpec, np.random.Generator], Table], Literal["warp", "weft", "both"]],
] = {
    "broken end": (_broken_end, "warp"),
    "missing pick": (_missing_pick, "weft"),
    "double pick": (_double_pick, "weft"),
    "slub": (_slub, "both"),
    "knot": (_knot, "both"),
    "float": (_float, "both"),
    "hole": (_hole, "both"),
    "oil stain": (_oil_stain, "both"),
    "colour spot": (_colour_spot, "both"),
    "contamination": (_contamination, "both"),
}
