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
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from loomsight.errors import UsageError
from loomsight.fabric.types import Mask, Picture
from loomsight.loom.shapes import Plane, between, blob, cloud, thread, wander


@dataclass(frozen=True, slots=True)
class _Ground:
    """The good cloth a defect is drawn into, turned so that the defect's yarn runs along x."""

    pixels: Plane  # H W C, C is 1 or 3
    contrast: float  # grey levels: standard deviation of the weave, lighting left out
    softness: float  # pixels: sigma of the blur the camera left
    along: float  # pixels: repeat of the pattern along the yarn
    across: float  # pixels: repeat across the yarn
    strength: float  # peak change of tone, in units of contrast
    size: float  # pixels: the length of a line, the diameter of a spot
    at: tuple[float, float]  # y, x: the middle of the defect

    @property
    def yarn(self) -> float:
        """Pixels: about how wide a yarn is; the repeat of a twill or a pattern is several yarns."""
        return float(np.clip(self.across, 2.5, 8.0))

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


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
    contrast, hum, softness, repeat = _measure(good)
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
        ground = _Ground(part, contrast, softness, repeat[0], repeat[1], strength, extent, at)
        changed = np.clip(np.rint(draw(ground, rng)), 0, 255)
        seen = _visible(changed - part, contrast, softness)
        if _stands_out(changed - part, seen, max(0.75 * contrast, 2.5 * hum)):
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


def _measure(good: Picture) -> tuple[float, float, float, tuple[float, float]]:
    """Contrast and unevenness (grey levels), softness (pixels), repeat (along x, along y) of the cloth."""
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
    return contrast, hum, float(np.clip(softness, 0.5, 1.3)), (_repeat(texture[::2]), _repeat(texture.T[::2]))


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


def _stands_out(change: Plane, seen: Mask, tone: float) -> bool:
    """Whether a defect would be noticed: by its extent or, when small, by more than a change of `tone`."""
    area = int(np.count_nonzero(seen))
    if area >= 150:
        return True
    grey = change[:, :, 0] if change.shape[2] == 1 else cv2.cvtColor(change, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    return area >= 8 and float(np.abs(smooth).max()) > tone


_DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


def _mark(ground: _Ground, rng: np.random.Generator) -> tuple[Plane, Mask]:
    """A small plain spot: for cloth so dark or so bright that its own measures show nothing."""
    spot = blob(ground.shape, rng, 4.0, 4.0, at=ground.at)
    way = -90.0 if float(ground.pixels.mean()) > 128 else 90.0
    changed = np.clip(np.rint(ground.pixels + way * spot[:, :, None]), 0, 255)
    return changed, np.asarray(spot > 0.3)


# --- random shapes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """A yarn's path: signed distance across it (HW, pixels), half width (W) and presence (W in [0, 1])."""

    across: Plane
    half: Plane
    present: Plane

    def cover(self, softness: float, wider: float = 1.0, offset: float = 0.0) -> Plane:
        """HW in [0, 1]: how much of each pixel the yarn covers, as soft as the picture is."""
        edge = max(0.7, softness)
        inside = (self.half * wider)[None, :] - np.abs(self.across - np.float32(offset))
        cover: Plane = np.clip(0.5 + inside / (2 * edge), 0.0, 1.0) * self.present[None, :]
        return cover


def _line(ground: _Ground, rng: np.random.Generator, width: float, *, stray: float = 1.0) -> _Line:
    """A nearly straight line along x of about `ground.size` pixels, at a random place, with ragged ends."""
    height, length = ground.shape
    x = np.arange(length, dtype=np.float32)
    y0, middle = ground.at
    slope = rng.normal(0.0, 0.05) if rng.random() < 0.6 else rng.normal(0.0, 0.01)
    path = y0 + slope * (x - middle) + stray * rng.uniform(0.0, 1.5) * wander(rng, length, 3)
    across = np.arange(height, dtype=np.float32)[:, None] - path.astype(np.float32)[None, :]
    half = 0.5 * width * np.clip(1.0 + 0.3 * wander(rng, length, 5), 0.4, 1.8)
    ramp = between(rng, 3.0, max(4.0, 0.3 * ground.size))
    inside = 0.5 * ground.size - np.abs(x - np.float32(middle)) + 0.8 * ramp * wander(rng, length, 5)
    present = np.clip(inside / np.float32(ramp), 0.0, 1.0)
    half = half * (0.45 + 0.55 * present)  # a yarn runs out, it does not stop
    return _Line(across, half.astype(np.float32), present.astype(np.float32))


# --- what a defect does to the cloth --------------------------------------------------------------


def _tint(ground: _Ground, rng: np.random.Generator, colour: float = 0.12) -> Plane:
    """How a change of tone shows in each channel: mostly as the cloth is lit, a little off its hue."""
    channels = ground.pixels.shape[2]
    if channels == 1:
        return np.ones(1, np.float32)
    mean = ground.pixels[::4, ::4].mean(axis=(0, 1)) + 8.0
    share = rng.uniform(0.3, 1.0)
    tint = share * mean / mean.mean() + (1 - share) + rng.normal(0.0, colour, channels)
    return np.asarray(tint, np.float32)


def _tone(ground: _Ground, rng: np.random.Generator, dark: float = 0.7) -> float:
    """A signed change of tone in grey levels; `dark` is how often it is darker."""
    tone = ground.strength * ground.contrast
    level = float(ground.pixels[::4, ::4].mean())
    # black cloth cannot get much darker: its defects are the light ones
    if rng.random() < dark and level > 0.7 * tone + 15:
        return -tone
    return tone if level + 0.7 * tone < 245 else -tone


def _grain(ground: _Ground, rng: np.random.Generator) -> Plane:
    """The cloth's own fine grain, taken from another place of it, so that no fill is noise-free."""
    height, width = ground.shape
    fine = ground.pixels - cv2.blur(ground.pixels, (3, 3)).reshape(ground.pixels.shape)
    return np.roll(fine, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))


def _smeared(ground: _Ground, rng: np.random.Generator) -> Plane:
    """The cloth with its weave lost: smeared along the yarn or all round, some grain put back."""
    along = 2 * round(min(ground.along, 12.0) * rng.uniform(0.4, 1.2)) + 1
    across = 2 * round(ground.yarn * rng.uniform(0.0, 0.4)) + 1
    smear = cv2.blur(ground.pixels, (along, across)).reshape(ground.pixels.shape)
    return smear + np.float32(rng.uniform(0.3, 1.0)) * _grain(ground, rng)


def _shifted(ground: _Ground, rng: np.random.Generator) -> Plane:
    """The cloth half a repeat out of step: what a neighbour shows where a yarn gave way."""
    dx = round(ground.along * rng.uniform(0.35, 0.65))
    dy = round(ground.across * rng.uniform(-0.6, 0.6))
    return np.roll(ground.pixels, (dy, dx), (0, 1))


def _pushed(ground: _Ground, dx: Plane | None, dy: Plane | None) -> Plane:
    """The cloth displaced by a field in pixels."""
    x = np.broadcast_to(np.arange(ground.shape[1], dtype=np.float32)[None, :], ground.shape)
    y = np.broadcast_to(np.arange(ground.shape[0], dtype=np.float32)[:, None], ground.shape)
    x = x if dx is None else x + dx
    y = y if dy is None else y + dy
    moved = cv2.remap(ground.pixels, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REFLECT_101)  # fmt: skip
    return moved.reshape(ground.pixels.shape)


def _lay(ground: _Ground, cover: Plane, under: Plane, tone: Plane | float, tint: Plane) -> Plane:
    """Put `under` plus a tone where the defect covers the cloth."""
    share = cover[:, :, None]
    tones = np.asarray(tone, np.float32)
    change = under - ground.pixels + (tones[:, :, None] if tones.ndim == 2 else tones) * tint
    return ground.pixels + share * change


# --- the defects ----------------------------------------------------------------------------------


def _lost_yarn(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A yarn that is not there: a thin line where the weave smears, slips or opens onto the dark."""
    line = _line(ground, rng, float(np.clip(ground.yarn * rng.uniform(0.4, 1.0), 1.6, 5.0)))
    cover = line.cover(ground.softness)
    way = rng.random()
    if way < 0.45:
        under = _smeared(ground, rng)
    elif way < 0.7:
        under = _shifted(ground, rng)
    else:  # the neighbours close in on the gap
        pull = np.float32(rng.uniform(0.2, 0.5) * ground.yarn)
        field = pull * np.tanh(line.across / 2) * np.exp(-np.square(line.across / ground.yarn)) * line.present
        under = _pushed(ground, None, field)
        cover = np.maximum(cover, line.cover(ground.softness, 3.0))
    tone = 0.7 * _tone(ground, rng, dark=0.72) * _along(ground, rng)
    tones = tone[None, :] * line.cover(ground.softness)
    return _lay(ground, cover, under, tones, _tint(ground, rng))


def _along(ground: _Ground, rng: np.random.Generator) -> Plane:
    """How a yarn's tone changes along it: unevenly, and often in step with the yarns that cross it."""
    width = ground.shape[1]
    tone = 0.75 + 0.35 * wander(rng, width, 6)
    if rng.random() < 0.6:
        beat = ground.along * rng.choice([1.0, 2.0]) * rng.uniform(0.95, 1.05)
        phase = np.arange(width) * (2 * math.pi / beat) + rng.uniform(0, 6.28)
        tone = tone * (1 + rng.uniform(0.3, 1.2) * np.sin(phase))
    return tone.astype(np.float32)


def _double_yarn(ground: _Ground, rng: np.random.Generator) -> Plane:
    """Two yarns where one belongs: a raised line, lit on one side and shaded on the other."""
    line = _line(ground, rng, float(np.clip(ground.yarn * rng.uniform(0.6, 1.2), 1.8, 6.0)), stray=0.6)
    swell = np.float32(rng.uniform(0.25, 0.5) * ground.yarn)
    near = np.exp(-np.square(line.across / (2 * swell))) * line.present
    # a slope under 1 stretches the weave, a steeper one would fold it
    under = _pushed(ground, None, -swell * np.tanh(line.across / (1.5 * swell)) * near)
    lit = line.cover(ground.softness)
    side = np.float32(rng.choice([-1.0, 1.0]) * max(1.5, 0.6 * ground.yarn))
    shade = line.cover(ground.softness, 0.8, float(side))
    tone = 0.6 * _tone(ground, rng, dark=0.4)
    tones = tone * (lit - rng.uniform(0.3, 0.9) * shade) * _along(ground, rng)
    return _lay(ground, np.maximum(near, np.maximum(lit, shade)), under, tones, _tint(ground, rng))


def _float(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A yarn that does not interlace: a row of light and dark dashes, or one long bright thread."""
    line = _line(ground, rng, float(np.clip(ground.yarn * rng.uniform(0.5, 1.0), 1.6, 5.0)), stray=0.4)
    cover = line.cover(ground.softness)
    if rng.random() < 0.6:
        x = np.arange(ground.shape[1])
        beat = max(4.0, ground.along * rng.choice([1.0, 2.0]) * rng.uniform(0.9, 1.1))
        dash = np.clip(0.5 + 1.5 * np.sin(2 * math.pi * x / beat + rng.uniform(0, 6.28)), 0.0, 1.0)
        cover = cover * dash.astype(np.float32)
    smooth = np.float32(rng.uniform(0.4, 1.0))  # of a long float one sees the yarn's own fibres
    under = _smeared(ground, rng) if rng.random() < 0.6 else _shifted(ground, rng)
    under = ground.pixels + smooth * (under - ground.pixels)
    round_yarn = 1 - 0.5 * np.square(np.clip(line.across / (line.half[None, :] + 0.5), -1, 1))
    tones = 0.9 * _tone(ground, rng, dark=0.4) * _along(ground, rng)[None, :] * round_yarn
    return _lay(ground, cover, under, tones, _tint(ground, rng))


def _slub(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A thick place in a yarn: a spindle that pushes its neighbours aside and hides the weave."""
    height, width = ground.shape
    y0, x0 = ground.at
    x = np.arange(width, dtype=np.float32)
    path = (y0 + 0.8 * wander(rng, width, 3)).astype(np.float32)
    half = np.float32(np.clip(ground.yarn * rng.uniform(0.35, 0.9), 1.0, 4.0))
    skew = rng.uniform(0.6, 1.6)  # one end draws out longer than the other
    from_middle = (x - np.float32(x0)) / np.float32(0.5 * ground.size + 1)
    spindle = np.exp(-2 * np.square(np.where(from_middle < 0, from_middle * skew, from_middle / skew)))
    thick = half * spindle * np.clip(1 + 0.25 * wander(rng, width, 6), 0.3, 1.7)
    across = np.arange(height, dtype=np.float32)[:, None] - path[None, :]
    line = _Line(across, thick.astype(np.float32), np.clip(spindle * 3 - 0.3, 0, 1).astype(np.float32))
    body = line.cover(ground.softness)
    near = (np.exp(-np.square(across / (2.5 * half))) * spindle[None, :]).astype(np.float32)
    under = _pushed(ground, None, -0.7 * half * np.tanh(across / half) * near)
    under = under + body[:, :, None] * (_smeared(ground, rng) - under) * np.float32(rng.uniform(0.5, 1.0))
    shade = line.cover(ground.softness, 0.7, float(rng.choice([-1, 1]) * (half + 1)))
    tones = 0.7 * _tone(ground, rng, dark=0.45) * (body - rng.uniform(0.2, 0.8) * shade)
    return _lay(ground, np.maximum(near, np.maximum(body, shade)), under, tones, _tint(ground, rng))


def _nep(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A knot or nep: a spot of a few pixels, blurred and shaded, often stretched along its yarn."""
    at = ground.at
    radius = 0.5 * ground.size
    stretch = rng.uniform(1.0, 1.9)
    body = blob(ground.shape, rng, radius * stretch, radius / stretch, at=at, edge=max(1.2, 0.6 * radius))
    cover = cv2.GaussianBlur(body, (0, 0), ground.softness)
    lit = rng.normal(0, 0.7, 2) * radius
    shade = np.roll(cover, (round(lit[0]), round(lit[1])), (0, 1))
    tone = _tone(ground, rng, dark=0.85)
    core = 0.9 + 0.2 * cloud(rng, ground.shape, max(2.0, 0.7 * radius))
    tones = tone * (cover * core - rng.uniform(-0.4, 0.4) * shade)
    halo = np.maximum(cover, 0.8 * shade)
    out = _lay(ground, halo, _smeared(ground, rng), tones, _tint(ground, rng))
    if rng.random() < 0.35:  # the tails of a knot
        out = _hairs(ground, rng, out, radius=radius, tone=tone)
    return out


def _hairs(ground: _Ground, rng: np.random.Generator, out: Plane, *, radius: float, tone: float) -> Plane:
    """Fibres that stand out of a spot."""
    tint = _tint(ground, rng)
    for _ in range(int(rng.integers(1, 4))):
        reach = radius * rng.uniform(1.2, 3.0) + 2
        turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.35, 7))
        steps = np.stack([np.cos(turn), np.sin(turn)], 1) * (reach / 7)
        points = np.cumsum(np.vstack([np.array(ground.at[::-1])[None, :], steps]), 0).astype(np.float32)
        hair = thread(ground.shape, points, np.full(8, rng.uniform(0.6, 1.3), np.float32), ground.softness)
        out = out + (0.7 * tone * hair)[:, :, None] * tint
    return out


def _fuzz(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A fuzzy ball: loose fibres that veil the weave, ragged and cloudy."""
    at = ground.at
    radius = 0.5 * ground.size
    stretch = rng.uniform(1.0, 1.8)
    long, short = radius * stretch, radius / stretch**0.5
    body = blob(ground.shape, rng, long, short, at=at, rough=0.35, edge=radius * 0.7, tilt=0.8)
    wool = np.clip(0.65 + 0.45 * cloud(rng, ground.shape, max(2.5, 0.35 * radius)), 0.0, 1.3)
    cover = np.clip(cv2.GaussianBlur(body * wool, (0, 0), ground.softness), 0.0, 1.0)
    tone = 0.8 * _tone(ground, rng, dark=0.45)
    out = _lay(ground, cover, _smeared(ground, rng), tone, _tint(ground, rng))
    return _hairs(ground, rng, out, radius=radius, tone=0.6 * tone) if rng.random() < 0.6 else out


def _balls(ground: _Ground, rng: np.random.Generator) -> Plane:
    """Warp balls: loose fibre rolled along a yarn, a chain of veiled swellings on a frayed line."""
    width = ground.shape[1]
    line = _line(ground, rng, rng.uniform(1.5, 3.5), stray=1.5)
    swell = np.square(np.clip(wander(rng, width, 5), 0, 1.5)) * rng.uniform(1.5, 4.0)
    line = _Line(line.across, (line.half + swell).astype(np.float32), line.present)
    wool = np.clip(0.7 + 0.4 * cloud(rng, ground.shape, 3.5), 0.0, 1.2)
    cover = np.clip(line.cover(1.5 * ground.softness) * wool, 0.0, 1.0)
    tone = 0.5 * _tone(ground, rng, dark=0.4)
    tones = tone * np.clip(0.8 + 0.4 * cloud(rng, ground.shape, 7.0), 0.2, 1.5)
    return _lay(ground, cover, _smeared(ground, rng), tones, _tint(ground, rng))


def _hole(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A hole: the ground behind the cloth, a torn and fuzzy rim, yarns that still cross it."""
    at = ground.at
    radius = 0.5 * ground.size
    stretch = rng.uniform(1.0, 2.2)
    return _torn(ground, rng, at, (radius * stretch, radius / stretch**0.5))


def _torn(
    ground: _Ground,
    rng: np.random.Generator,
    at: tuple[float, float],
    radii: tuple[float, float],
    tilt: float = 0.6,
) -> Plane:
    """The cloth with a torn opening at `at` (y, x)."""
    long, short = radii
    body = blob(ground.shape, rng, long, short, at=at, rough=0.3, edge=1.0, tilt=tilt)
    rim = cv2.GaussianBlur(body, (0, 0), max(1.2, 0.25 * short))
    rim = 4 * rim * (1 - rim)
    # yarns crossing: the weave's dark and light decide where the hole's edge frays
    fray = 0.5 * cloud(rng, ground.shape, max(2.0, 0.5 * ground.across)) * rim
    cover = np.clip(cv2.GaussianBlur(np.clip(body + fray, 0, 1), (0, 0), 0.7 * ground.softness), 0, 1)
    level: Plane = ground.pixels[::4, ::4].mean(axis=(0, 1))
    lightest = 255 - level.mean()
    behind = (
        level * rng.uniform(0.1, 0.55) if rng.random() < 0.75 else level + lightest * rng.uniform(0.3, 0.8)
    )
    floor = behind[None, None, :] + 0.15 * ground.contrast * cloud(rng, ground.shape, 9.0)[:, :, None]
    floor = floor + np.float32(rng.uniform(0.2, 0.6)) * _grain(ground, rng)
    dark_is_far = np.float32(np.sign(float(level.mean() - behind.mean())) or 1.0)
    pale = np.float32(rng.uniform(0.0, 0.8) * ground.contrast) * dark_is_far
    out: Plane = ground.pixels + (pale * rim)[:, :, None]
    out = out + cover[:, :, None] * (floor - out)
    for _ in range(int(rng.integers(0, 4)) if short > 4 else 0):
        y, x = at[0] + rng.uniform(-0.7, 0.7) * short, at[1]
        points = np.stack([np.linspace(x - 1.2 * long, x + 1.2 * long, 12), y + 1.5 * wander(rng, 12)], 1)
        widths = np.full(12, rng.uniform(0.8, 0.4 * ground.yarn + 0.9), np.float32)
        yarn = thread(ground.shape, points.astype(np.float32), widths, ground.softness) * cover
        out = out + yarn[:, :, None] * (ground.pixels - out)
    return out


def _cut(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A cut selvedge: torn in from the border along the weft, running out in a loosened pick."""
    width = ground.shape[1]
    left = ground.at[1] < width / 2
    edge = (ground.at[0], 0.0 if left else float(width))
    line = _line(
        replace(ground, at=edge, size=2 * ground.size), rng, float(np.clip(0.8 * ground.yarn, 1.6, 5.0))
    )
    under = _smeared(ground, rng)
    cover = line.cover(ground.softness)
    loosened = _lay(ground, cover, under, 0.5 * _tone(ground, rng, 0.8) * cover, _tint(ground, rng))
    depth = min(rng.uniform(0.1, 0.5) * ground.size, 0.4 * width)
    torn = (depth, float(np.clip(rng.uniform(0.05, 0.25) * depth, 1.5, 8.0)))
    return _torn(replace(ground, pixels=loosened), rng, edge, torn, tilt=0.08)


def _oil(ground: _Ground, rng: np.random.Generator) -> Plane:
    """An oil stain: cloth wetted darker, its weave still there; run along a yarn, or in drops."""
    radius = 0.5 * ground.size
    long, short = (radius * rng.uniform(1.0, 2.2), radius * rng.uniform(0.4, 1.0))
    edge = max(1.5, rng.uniform(0.3, 1.2) * short)
    at = ground.at
    wet = blob(ground.shape, rng, long, short, at=at, edge=edge, tilt=0.5)
    for _ in range(int(rng.integers(0, 4))):
        drop = (at[0] + rng.normal(0, 1.5) * short, at[1] + rng.normal(0, 1.5) * long)
        small = rng.uniform(0.15, 0.4) * short
        wet = np.maximum(wet, blob(ground.shape, rng, small * 1.3, small, at=drop, edge=1.5))
    wet = wet * np.clip(0.85 + 0.25 * cloud(rng, ground.shape, max(3.0, 0.5 * radius)), 0, 1.2)
    # yarns on top soak up more than the valleys do, or less
    relief = (ground.pixels.mean(axis=2) - ground.pixels.mean()) / (3 * ground.contrast)
    wet = wet * np.clip(1 + rng.uniform(-0.5, 0.5) * relief, 0.4, 1.6)
    wet = cv2.GaussianBlur(wet.astype(np.float32), (0, 0), ground.softness)
    level = float(ground.pixels[::4, ::4].mean()) + 1
    depth = np.float32(min(0.75, 0.6 * ground.strength * ground.contrast / level))
    tint = _tint(ground, rng, 0.05) + (np.array([-0.2, 0.0, 0.25], np.float32) * rng.random()
                                       if ground.pixels.shape[2] == 3 else np.float32(0))  # fmt: skip
    dark: Plane = np.clip(depth * wet[:, :, None] * tint, 0.0, 0.95)
    wetted: Plane = ground.pixels * (1 - dark)
    return wetted


def _colour(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A spot of another colour: fibre dyed otherwise or a splash; the weave shows through."""
    radius = 0.5 * ground.size
    at = ground.at
    spot = blob(ground.shape, rng, radius * rng.uniform(1.0, 1.8), radius, at=at, rough=0.3,
                 edge=max(1.0, rng.uniform(0.2, 0.8) * radius), tilt=1.5)  # fmt: skip
    spot = cv2.GaussianBlur(spot, (0, 0), ground.softness) * np.float32(rng.uniform(0.6, 1.0))
    channels = ground.pixels.shape[2]
    pull = rng.standard_normal((channels,), dtype=np.float32)
    pull *= np.float32(ground.strength * ground.contrast / max(0.3, float(np.abs(pull).max())))
    if float(ground.pixels[::4, ::4].mean()) + float(pull.mean()) > 240:
        pull = -np.abs(pull)
    dye = (ground.pixels / (ground.pixels[::4, ::4].mean() + 1.0)).clip(0.4, 1.6)
    stained: Plane = ground.pixels + spot[:, :, None] * dye * pull
    return stained


def _foreign(ground: _Ground, rng: np.random.Generator) -> Plane:
    """Contamination: a foreign fibre that lies curved over the weave, or was spun into it."""
    n = 28
    bend = rng.normal(0, 0.10) + rng.normal(0, rng.choice([0.06, 0.3]), n)
    turn = rng.uniform(0, 2 * math.pi) + np.cumsum(bend)
    steps = np.stack([np.cos(turn), np.sin(turn)], 1) * (ground.size / n)
    points = np.cumsum(steps, 0)
    points += np.array(ground.at[::-1]) - points.mean(0)
    widths = rng.uniform(0.8, 2.6) * np.clip(1 + 0.3 * wander(rng, n), 0.4, 1.8)
    cover = thread(ground.shape, points.astype(np.float32), widths.astype(np.float32), ground.softness)
    if rng.random() < 0.4:  # spun in: the yarns on top hide it here and there
        relief = (ground.pixels.mean(axis=2) - ground.pixels.mean()) / ground.contrast
        cover = cover * np.clip(0.7 + rng.choice([-0.6, 0.6]) * relief, 0.1, 1.0)
    tint = _tint(ground, rng, 0.4 if rng.random() < 0.4 else 0.1)
    lose = np.float32(rng.uniform(0.3, 1.0))
    under = ground.pixels + lose * (_smeared(ground, rng) - ground.pixels)
    return _lay(ground, cover.astype(np.float32), under, _tone(ground, rng, 0.55), tint)


def _crease(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A crease: a soft fold, light on one flank and dark on the other, the weave drawn a little aslant."""
    height, width = ground.shape
    y0, x0 = ground.at
    x = np.arange(width, dtype=np.float32)
    slope = rng.normal(0, 0.25)
    path = y0 + slope * (x - x0) + rng.uniform(0, 4) * wander(rng, width, 3)
    across = np.arange(height, dtype=np.float32)[:, None] - path[None, :].astype(np.float32)
    across /= np.float32(np.hypot(1, slope))
    wide = np.float32(between(rng, 2.0, 9.0))
    there = np.clip((0.5 * ground.size - np.abs(x - x0)) / (0.25 * ground.size) + 0.3, 0, 1)[None, :]
    there = there * np.clip(0.85 + 0.3 * wander(rng, width, 4), 0.2, 1.4)
    u = across / wide
    ridge = np.exp(-u * u)
    flank = (1.6 * u * ridge).astype(np.float32)
    mix = rng.uniform(-1, 1)
    tone: Plane = 0.55 * _tone(ground, rng, 0.5) * there * (mix * ridge + (1 - abs(mix)) * flank)
    field = rng.uniform(-0.35, 0.35) * wide * ridge * there
    moved = _pushed(ground, field.astype(np.float32), (0.5 * field).astype(np.float32))
    folded: Plane = moved + tone.astype(np.float32)[:, :, None] * _tint(ground, rng)
    return folded


def _distorted(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A weft crack or curl: picks pushed apart or curled along a strip, and its shading."""
    line = _line(ground, rng, 2.0, stray=2.0)
    wide = np.float32(ground.yarn * rng.uniform(0.6, 1.3))
    u = line.across / wide
    near = np.exp(-u * u) * line.present[None, :]
    wave = wander(rng, ground.shape[1], 5)[None, :]
    if rng.random() < 0.5:  # pushed apart: a slit
        dy, dx = -rng.uniform(0.3, 0.6) * wide * np.tanh(1.3 * u) * near, 0.2 * wide * wave * near
    else:  # curled: the picks run up and down
        amount = rng.uniform(0.3, 0.8) * wide
        dy, dx = amount * wave * near, 0.5 * amount * np.roll(wave, 9, 1) * near
    moved = _pushed(ground, dx.astype(np.float32), dy.astype(np.float32))
    slit = np.exp(-np.square(2 * u)) * line.present[None, :]
    tones: Plane = 0.5 * _tone(ground, rng, 0.7) * slit * (0.7 + 0.5 * wave)
    return _lay(
        replace(ground, pixels=moved), np.ones(ground.shape, np.float32), moved, tones, _tint(ground, rng)
    )


def _snarl(ground: _Ground, rng: np.random.Generator) -> Plane:
    """A snarl: a loop of the cloth's own yarn that twisted on itself and stands up."""
    n = 20
    turn = rng.uniform(0, 6.28) + np.linspace(0, rng.uniform(3.5, 8.5), n) * rng.choice([-1, 1])
    steps = np.stack([np.cos(turn), 0.7 * np.sin(turn)], 1) * (2.2 * ground.size / n)
    points = np.cumsum(steps + np.array([rng.normal(0, 0.15), 0]), 0)
    points += np.array(ground.at[::-1]) - points.mean(0)
    width = float(np.clip(0.5 * ground.yarn, 1.2, 3.0))
    widths = np.full(n, width, np.float32)
    yarn = thread(ground.shape, points.astype(np.float32), widths, ground.softness)
    drop = np.array([rng.normal(0, 1), rng.uniform(0.5, 1.0)]) * width
    shade = thread(ground.shape, (points + drop).astype(np.float32), widths, 1.8 * ground.softness)
    tone = 0.8 * abs(_tone(ground, rng))
    tones = tone * (yarn - 0.8 * shade * (1 - yarn))
    return _lay(ground, np.maximum(yarn, shade), _smeared(ground, rng), tones, _tint(ground, rng))


_Draw = Callable[[_Ground, np.random.Generator], Plane]
_Reach = tuple[tuple[float, float], tuple[float, float]]
# how far from its middle a defect can change the cloth, down and along: (share of its size, pixels)
_LINE: _Reach = ((0.12, 28), (0.9, 24))
_WIDE: _Reach = ((0.4, 36), (0.9, 24))
_SPOT: _Reach = ((2.2, 14), (2.2, 14))
_TWIST: _Reach = ((1.3, 10), (1.3, 10))
_BORDER: _Reach = ((0.2, 36), (0.0, 4096))
_KINDS: dict[str, tuple[_Draw, Literal["weft", "warp", "any"], _Reach, tuple[float, float]]] = {
    # how it is drawn, the way its yarn runs, how far it reaches, its size in pixels
    "broken end": (_lost_yarn, "warp", _LINE, (16, 180)),
    "missing end": (_lost_yarn, "warp", _LINE, (90, 400)),
    "double end": (_double_yarn, "warp", _LINE, (40, 300)),
    "broken pick": (_lost_yarn, "weft", _LINE, (16, 180)),
    "missing pick": (_lost_yarn, "weft", _LINE, (90, 400)),
    "double pick": (_double_yarn, "weft", _LINE, (40, 300)),
    "broken yarn": (_lost_yarn, "any", _LINE, (8, 40)),
    "float": (_float, "any", _LINE, (10, 90)),
    "slub": (_slub, "any", _LINE, (8, 50)),
    "snarl": (_snarl, "any", _SPOT, (5, 14)),
    "weft crack": (_distorted, "weft", _LINE, (20, 160)),
    "weft curling": (_distorted, "weft", _LINE, (60, 300)),
    "warp ball": (_balls, "warp", _LINE, (25, 150)),
    "knot": (_nep, "any", _SPOT, (4, 12)),
    "nep": (_nep, "any", _SPOT, (3, 9)),
    "fuzzy ball": (_fuzz, "any", _SPOT, (6, 24)),
    "hole": (_hole, "any", _SPOT, (5, 32)),
    "oil stain": (_oil, "any", _SPOT, (6, 48)),
    "colour spot": (_colour, "any", _SPOT, (4, 20)),
    "contamination": (_foreign, "any", _TWIST, (12, 90)),
    "crease": (_crease, "any", _WIDE, (60, 300)),
    "selvedge cut": (_cut, "weft", _BORDER, (20, 110)),
}
DRAWN_KINDS: tuple[str, ...] = tuple(_KINDS)
"""The defects that :func:`draw_defect` can draw, by their names in `DEFECT_TYPES`."""
