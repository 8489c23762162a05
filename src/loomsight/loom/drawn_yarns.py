"""Defects of the yarn and the weave, drawn: yarns lost, doubled, floating, thick, knotted, curled or fuzzy.

Each function takes the cloth, with where and how large the defect is, and gives the changed pixels: H W C
float, not yet rounded to grey levels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from loomsight.loom.drawn_ground import Ground, Line, yarn_line
from loomsight.loom.shapes import Plane, blob, cloud, thread, wander


def lost_yarn(ground: Ground, rng: np.random.Generator) -> Plane:
    """A yarn that is not there: a thin line where the weave smears, slips or opens onto the dark."""
    line = yarn_line(ground, rng, float(np.clip(ground.yarn * rng.uniform(0.4, 1.0), 1.6, 5.0)))
    cover = line.cover(ground.softness)
    way = rng.random()
    if way < 0.45:
        under = ground.smeared(rng)
    elif way < 0.7:
        under = ground.shifted(rng)
    else:  # the neighbours close in on the gap
        pull = np.float32(rng.uniform(0.2, 0.5) * ground.yarn)
        field = pull * np.tanh(line.across / 2) * np.exp(-np.square(line.across / ground.yarn)) * line.present
        under = ground.pushed(None, field)
        cover = np.maximum(cover, line.cover(ground.softness, 3.0))
    tone = 0.7 * ground.tone(rng, dark=0.72) * _along(ground, rng)
    tones = tone[None, :] * line.cover(ground.softness)
    return ground.lay(cover, under, tones, ground.tint(rng))


def _along(ground: Ground, rng: np.random.Generator) -> Plane:
    """How a yarn's tone changes along it: unevenly, and often in step with the yarns that cross it."""
    width = ground.shape[1]
    tone = 0.75 + 0.35 * wander(rng, width, 6)
    if rng.random() < 0.6:
        beat = ground.along * rng.choice([1.0, 2.0]) * rng.uniform(0.95, 1.05)
        phase = np.arange(width) * (2 * math.pi / beat) + rng.uniform(0, 6.28)
        tone = tone * (1 + rng.uniform(0.3, 1.2) * np.sin(phase))
    return tone.astype(np.float32)


def double_yarn(ground: Ground, rng: np.random.Generator) -> Plane:
    """Two yarns where one belongs: a raised line, lit on one side and shaded on the other."""
    line = yarn_line(ground, rng, float(np.clip(ground.yarn * rng.uniform(0.6, 1.2), 1.8, 6.0)), stray=0.6)
    swell = np.float32(rng.uniform(0.25, 0.5) * ground.yarn)
    near = np.exp(-np.square(line.across / (2 * swell))) * line.present
    # a slope under 1 stretches the weave, a steeper one would fold it
    under = ground.pushed(None, -swell * np.tanh(line.across / (1.5 * swell)) * near)
    lit = line.cover(ground.softness)
    side = np.float32(rng.choice([-1.0, 1.0]) * max(1.5, 0.6 * ground.yarn))
    shade = line.cover(ground.softness, 0.8, float(side))
    tone = 0.6 * ground.tone(rng, dark=0.4)
    tones = tone * (lit - rng.uniform(0.3, 0.9) * shade) * _along(ground, rng)
    return ground.lay(np.maximum(near, np.maximum(lit, shade)), under, tones, ground.tint(rng))


def floating_yarn(ground: Ground, rng: np.random.Generator) -> Plane:
    """A yarn that does not interlace: a row of light and dark dashes, or one long bright thread."""
    line = yarn_line(ground, rng, float(np.clip(ground.yarn * rng.uniform(0.5, 1.0), 1.6, 5.0)), stray=0.4)
    cover = line.cover(ground.softness)
    if rng.random() < 0.6:
        x = np.arange(ground.shape[1])
        beat = max(4.0, ground.along * rng.choice([1.0, 2.0]) * rng.uniform(0.9, 1.1))
        dash = np.clip(0.5 + 1.5 * np.sin(2 * math.pi * x / beat + rng.uniform(0, 6.28)), 0.0, 1.0)
        cover = cover * dash.astype(np.float32)
    smooth = np.float32(rng.uniform(0.4, 1.0))  # of a long float one sees the yarn's own fibres
    under = ground.smeared(rng) if rng.random() < 0.6 else ground.shifted(rng)
    under = ground.pixels + smooth * (under - ground.pixels)
    round_yarn = 1 - 0.5 * np.square(np.clip(line.across / (line.half[None, :] + 0.5), -1, 1))
    tones = 0.9 * ground.tone(rng, dark=0.4) * _along(ground, rng)[None, :] * round_yarn
    return ground.lay(cover, under, tones, ground.tint(rng))


def slub(ground: Ground, rng: np.random.Generator) -> Plane:
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
    line = Line(across, thick.astype(np.float32), np.clip(spindle * 3 - 0.3, 0, 1).astype(np.float32))
    body = line.cover(ground.softness)
    near = (np.exp(-np.square(across / (2.5 * half))) * spindle[None, :]).astype(np.float32)
    under = ground.pushed(None, -0.7 * half * np.tanh(across / half) * near)
    under = under + body[:, :, None] * (ground.smeared(rng) - under) * np.float32(rng.uniform(0.5, 1.0))
    shade = line.cover(ground.softness, 0.7, float(rng.choice([-1, 1]) * (half + 1)))
    tones = 0.7 * ground.tone(rng, dark=0.45) * (body - rng.uniform(0.2, 0.8) * shade)
    return ground.lay(np.maximum(near, np.maximum(body, shade)), under, tones, ground.tint(rng))


def distorted_weave(ground: Ground, rng: np.random.Generator) -> Plane:
    """A weft crack or curl: picks pushed apart or curled along a strip, and its shading."""
    line = yarn_line(ground, rng, 2.0, stray=2.0)
    wide = np.float32(ground.yarn * rng.uniform(0.6, 1.3))
    u = line.across / wide
    near = np.exp(-u * u) * line.present[None, :]
    wave = wander(rng, ground.shape[1], 5)[None, :]
    if rng.random() < 0.5:  # pushed apart: a slit
        dy, dx = -rng.uniform(0.3, 0.6) * wide * np.tanh(1.3 * u) * near, 0.2 * wide * wave * near
    else:  # curled: the picks run up and down
        amount = rng.uniform(0.3, 0.8) * wide
        dy, dx = amount * wave * near, 0.5 * amount * np.roll(wave, 9, 1) * near
    moved = ground.pushed(dx.astype(np.float32), dy.astype(np.float32))
    slit = np.exp(-np.square(2 * u)) * line.present[None, :]
    tones: Plane = 0.5 * ground.tone(rng, 0.7) * slit * (0.7 + 0.5 * wave)
    return replace(ground, pixels=moved).lay(
        np.ones(ground.shape, np.float32), moved, tones, ground.tint(rng)
    )


def snarl(ground: Ground, rng: np.random.Generator) -> Plane:
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
    tone = 0.8 * abs(ground.tone(rng))
    tones = tone * (yarn - 0.8 * shade * (1 - yarn))
    return ground.lay(np.maximum(yarn, shade), ground.smeared(rng), tones, ground.tint(rng))


def nep(ground: Ground, rng: np.random.Generator) -> Plane:
    """A knot or nep: a spot of a few pixels, blurred and shaded, often stretched along its yarn."""
    at = ground.at
    radius = 0.5 * ground.size
    stretch = rng.uniform(1.0, 1.9)
    body = blob(ground.shape, rng, radius * stretch, radius / stretch, at=at, edge=max(1.2, 0.6 * radius))
    cover = cv2.GaussianBlur(body, (0, 0), ground.softness)
    lit = rng.normal(0, 0.7, 2) * radius
    shade = np.roll(cover, (round(lit[0]), round(lit[1])), (0, 1))
    tone = ground.tone(rng, dark=0.85)
    core = 0.9 + 0.2 * cloud(rng, ground.shape, max(2.0, 0.7 * radius))
    tones = tone * (cover * core - rng.uniform(-0.4, 0.4) * shade)
    halo = np.maximum(cover, 0.8 * shade)
    out = ground.lay(halo, ground.smeared(rng), tones, ground.tint(rng))
    if rng.random() < 0.35:  # the tails of a knot
        out = _hairs(ground, rng, out, radius=radius, tone=tone)
    return out


def _hairs(ground: Ground, rng: np.random.Generator, out: Plane, *, radius: float, tone: float) -> Plane:
    """Fibres that stand out of a spot."""
    tint = ground.tint(rng)
    for _ in range(int(rng.integers(1, 4))):
        reach = radius * rng.uniform(1.2, 3.0) + 2
        turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.35, 7))
        steps = np.stack([np.cos(turn), np.sin(turn)], 1) * (reach / 7)
        points = np.cumsum(np.vstack([np.array(ground.at[::-1])[None, :], steps]), 0).astype(np.float32)
        hair = thread(ground.shape, points, np.full(8, rng.uniform(0.6, 1.3), np.float32), ground.softness)
        out = out + (0.7 * tone * hair)[:, :, None] * tint
    return out


def fuzzy_ball(ground: Ground, rng: np.random.Generator) -> Plane:
    """A fuzzy ball: loose fibres that veil the weave, ragged and cloudy."""
    at = ground.at
    radius = 0.5 * ground.size
    stretch = rng.uniform(1.0, 1.8)
    long, short = radius * stretch, radius / stretch**0.5
    body = blob(ground.shape, rng, long, short, at=at, rough=0.35, edge=radius * 0.7, tilt=0.8)
    wool = np.clip(0.65 + 0.45 * cloud(rng, ground.shape, max(2.5, 0.35 * radius)), 0.0, 1.3)
    cover = np.clip(cv2.GaussianBlur(body * wool, (0, 0), ground.softness), 0.0, 1.0)
    tone = 0.8 * ground.tone(rng, dark=0.45)
    out = ground.lay(cover, ground.smeared(rng), tone, ground.tint(rng))
    return _hairs(ground, rng, out, radius=radius, tone=0.6 * tone) if rng.random() < 0.6 else out


def warp_balls(ground: Ground, rng: np.random.Generator) -> Plane:
    """Warp balls: loose fibre rolled along a yarn, a chain of veiled swellings on a frayed line."""
    width = ground.shape[1]
    line = yarn_line(ground, rng, rng.uniform(1.5, 3.5), stray=1.5)
    swell = np.square(np.clip(wander(rng, width, 5), 0, 1.5)) * rng.uniform(1.5, 4.0)
    line = Line(line.across, (line.half + swell).astype(np.float32), line.present)
    wool = np.clip(0.7 + 0.4 * cloud(rng, ground.shape, 3.5), 0.0, 1.2)
    cover = np.clip(line.cover(1.5 * ground.softness) * wool, 0.0, 1.0)
    tone = 0.5 * ground.tone(rng, dark=0.4)
    tones = tone * np.clip(0.8 + 0.4 * cloud(rng, ground.shape, 7.0), 0.2, 1.5)
    return ground.lay(cover, ground.smeared(rng), tones, ground.tint(rng))
