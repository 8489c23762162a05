"""Defects drawn into pictures of real good cloth, with exact masks: training samples for cloth never seen.

What a defect looks like was taken from inspected cloth: most are a few pixels wide, soft, and seldom much
brighter or darker than the cloth's own texture. What gives them away is that the *weave is lost*: a missing
yarn smears or shifts the pattern along a thin line, a knot blurs and shades it in a small spot. So every
defect here is made from the cloth's own pixels (smeared, shifted, displaced, grain put back) plus a tone in
units of the cloth's own contrast, with edges as soft as the picture is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

from loomsight.errors import UsageError
from loomsight.fabric.types import Mask, Picture
from loomsight.fabric.woven import visibilities
from loomsight.loom.drawn_damage import colour_spot, contamination, crease, hole, oil_stain, selvedge_cut
from loomsight.loom.drawn_ground import Ground
from loomsight.loom.drawn_yarns import (
    distorted_weave,
    double_yarn,
    floating_yarn,
    fuzzy_ball,
    lost_yarn,
    nep,
    slub,
    snarl,
    warp_balls,
)
from loomsight.loom.shapes import Plane, between, blob


def draw_defect(
    image: Picture,
    kind: str,
    rng: np.random.Generator,
    *,
    period: tuple[float, float] | None = None,
    size: float | None = None,
) -> tuple[Picture, Mask]:
    """Draw one defect somewhere into a picture of good cloth.

    Args:
        image: uint8 HW or HWC RGB, at least 32 × 32: real good cloth, warp upright.
        kind: one of :data:`DRAWN_KINDS`.
        rng: where every random choice comes from: the same state gives the same bytes.
        period: pixels, repeat of the weave (across, down); estimated from the picture when None.
        size: pixels, the length of a line or the diameter of a spot; drawn at random when None.

    Returns:
        The changed picture, like `image`, and the bool HW mask of what visibly changed, never empty.

    Raises:
        UsageError: an unknown kind, or a picture too small to hold a defect.
    """
    if kind not in _KINDS:
        raise UsageError("unknown defect", where=kind, do=f"one of: {', '.join(DRAWN_KINDS)}")
    if min(image.shape[:2]) < 32:
        raise UsageError("picture too small for a defect", where=f"{image.shape[1]}×{image.shape[0]} px")
    draw, runs, reach, sizes = _KINDS[kind]
    upright = runs == "warp" or (runs == "any" and rng.random() < 0.5)
    turned = np.asarray(cv2.transpose(image), np.uint8) if upright else image
    good = turned.reshape(*turned.shape[:2], -1)
    contrast, hum, softness, repeat, threads = _measure(good)
    if period is not None:
        repeat = period[::-1] if upright else period
    limit = 1.2 * max(image.shape[:2])
    strength = between(rng, 1.2, 4.5)
    extent = min(limit, between(rng, *sizes)) if size is None else float(size)
    at = (float(rng.uniform(4, good.shape[0] - 4)), float(rng.uniform(4, good.shape[1] - 4)))
    rows, columns = (math.ceil(share * extent + margin) for share, margin in reach)
    top, left = max(0, int(at[0]) - rows), max(0, int(at[1]) - columns)
    window = (slice(top, int(at[0]) + rows), slice(left, int(at[1]) + columns))
    part = np.ascontiguousarray(good[window], dtype=np.float32)
    at = (at[0] - top, at[1] - left)
    state = rng.bit_generator.state
    for _ in range(6):
        # a defect nobody could see would teach that good cloth is bad: drawn again, the same but stronger
        rng.bit_generator.state = state
        ground = Ground(part, contrast, softness, repeat[0], repeat[1], strength, extent, at)
        changed = np.clip(np.rint(draw(ground, rng)), 0, 255)
        seen = _visible(changed - part, contrast, softness)
        if _stands_out(changed - part, seen, max(0.75 * contrast, 2.5 * hum), threads):
            break
        strength *= 1.6
    else:
        changed, seen = _mark(ground, rng)
    drawn = good.copy()
    drawn[window] = changed
    mask = np.zeros(drawn.shape[:2], np.bool_)
    mask[window] = seen
    if upright:
        drawn, mask = np.asarray(cv2.transpose(drawn), np.uint8), np.ascontiguousarray(mask.T)
    return drawn.reshape(image.shape), mask


# --- the cloth's own measures --------------------------------------------------------------------


def _measure(good: Picture) -> tuple[float, float, float, tuple[float, float], Plane]:
    """Contrast and unevenness (grey levels), softness (pixels), repeat (along x, along y) of the cloth, and
    its texture."""
    side = 128
    corner = np.ascontiguousarray(good[:side, :side], dtype=np.float32)
    grey = corner[:, :, 0] if corner.shape[2] == 1 else cv2.cvtColor(corner, cv2.COLOR_RGB2GRAY)
    texture = grey - cv2.blur(grey, (25, 25))
    contrast = max(4.0, float(texture.std()))
    # what is left of the weave for an eye that does not resolve it: a small defect must exceed that
    hum = float(cv2.GaussianBlur(texture, (0, 0), 1.5).std())
    slope = np.diff(texture, axis=1)
    bend = np.diff(slope, axis=1)
    # white noise blurred by sigma has var(f'') / var(f') = 3 / (2 sigma²)
    softness = math.sqrt(1.5 * (float(slope.var()) + 1e-6) / (float(bend.var()) + 1e-6))
    repeat = (_repeat(texture[::2]), _repeat(texture.T[::2]))
    return contrast, hum, float(np.clip(softness, 0.5, 1.3)), repeat, texture


def _repeat(texture: Plane) -> float:
    """Repeat of the rows of a texture, in pixels: the first peak of their autocorrelation."""
    power = (np.abs(np.fft.rfft(texture, 2 * texture.shape[1], axis=1)) ** 2).mean(axis=0)
    likeness = np.fft.irfft(power)[:26]
    rising = np.flatnonzero(np.diff(likeness) > 0)
    if rising.size == 0:
        return 6.0
    first = int(rising[0])
    return float(np.clip(first + int(np.argmax(likeness[first:])), 3, 24))


def _visible(change: Plane, contrast: float, softness: float) -> Mask:
    """Where an inspector would see the change: well above the weave, closed over its gaps, no specks."""
    amount: Plane = np.abs(change)
    amount = amount[:, :, 0] if amount.shape[2] == 1 else np.maximum.reduce(cv2.split(amount))
    seen: Plane = cv2.GaussianBlur(amount, (0, 0), max(1.0, softness))
    peak = float(seen.max())
    level = max(0.33 * peak, 0.3 * contrast, 1.5)
    mask = cv2.morphologyEx((seen > level).astype(np.uint8), cv2.MORPH_CLOSE, _DISC)
    parts, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if parts > 2:
        areas = stats[:, cv2.CC_STAT_AREA].copy()
        keep = areas >= max(4, 0.04 * areas[1:].max())
        keep[0] = False
        return np.asarray(keep[labels])
    return np.asarray(mask > 0)


def _stands_out(change: Plane, seen: Mask, tone: float, threads: Plane) -> bool:
    """Whether a defect would be noticed: against what the cloth differs by itself, and by its extent or, when
    small, by more than a change of `tone`."""
    area = int(np.count_nonzero(seen))
    if not area or all(one < _NOTICED for one in visibilities(change, seen, threads)):
        return False
    if area >= 150:
        return True
    grey = change[:, :, 0] if change.shape[2] == 1 else cv2.cvtColor(change, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    return area >= 8 and float(np.abs(smooth).max()) > tone


_NOTICED = 1.0  # of a defect's visibility
_DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


def _mark(ground: Ground, rng: np.random.Generator) -> tuple[Plane, Mask]:
    """A small plain spot: for cloth so dark or so bright that its own measures show nothing."""
    spot = blob(ground.shape, rng, 4.0, 4.0, at=ground.at)
    way = -90.0 if float(ground.pixels.mean()) > 128 else 90.0
    changed = np.clip(np.rint(ground.pixels + way * spot[:, :, None]), 0, 255)
    return changed, np.asarray(spot > 0.3)


# --- the kinds -----------------------------------------------------------------------------------

_Draw = Callable[[Ground, np.random.Generator], Plane]
_Reach = tuple[tuple[float, float], tuple[float, float]]
# how far from its middle a defect can change the cloth, down and along: (share of its size, pixels)
_LINE: _Reach = ((0.12, 28), (0.9, 24))
_WIDE: _Reach = ((0.4, 36), (0.9, 24))
_SPOT: _Reach = ((2.2, 14), (2.2, 14))
_TWIST: _Reach = ((1.3, 10), (1.3, 10))
_BORDER: _Reach = ((0.2, 36), (0.0, 4096))
_KINDS: dict[str, tuple[_Draw, Literal["weft", "warp", "any"], _Reach, tuple[float, float]]] = {
    # how it is drawn, the way its yarn runs, how far it reaches, its size in pixels
    "broken end": (lost_yarn, "warp", _LINE, (16, 180)),
    "missing end": (lost_yarn, "warp", _LINE, (90, 400)),
    "double end": (double_yarn, "warp", _LINE, (40, 300)),
    "broken pick": (lost_yarn, "weft", _LINE, (16, 180)),
    "missing pick": (lost_yarn, "weft", _LINE, (90, 400)),
    "double pick": (double_yarn, "weft", _LINE, (40, 300)),
    "broken yarn": (lost_yarn, "any", _LINE, (8, 40)),
    "float": (floating_yarn, "any", _LINE, (10, 90)),
    "slub": (slub, "any", _LINE, (8, 50)),
    "snarl": (snarl, "any", _SPOT, (5, 14)),
    "weft crack": (distorted_weave, "weft", _LINE, (20, 160)),
    "weft curling": (distorted_weave, "weft", _LINE, (60, 300)),
    "warp ball": (warp_balls, "warp", _LINE, (25, 150)),
    "knot": (nep, "any", _SPOT, (4, 12)),
    "nep": (nep, "any", _SPOT, (3, 9)),
    "fuzzy ball": (fuzzy_ball, "any", _SPOT, (6, 24)),
    "hole": (hole, "any", _SPOT, (5, 32)),
    "oil stain": (oil_stain, "any", _SPOT, (6, 48)),
    "colour spot": (colour_spot, "any", _SPOT, (4, 20)),
    "contamination": (contamination, "any", _TWIST, (12, 90)),
    "crease": (crease, "any", _WIDE, (60, 300)),
    "selvedge cut": (selvedge_cut, "weft", _BORDER, (20, 110)),
}
DRAWN_KINDS: tuple[str, ...] = tuple(_KINDS)
"""The defects that :func:`draw_defect` can draw, by their names in `DEFECT_TYPES`."""
