"""Damage to woven cloth, drawn: holes, selvedge cuts, stains, spots of colour, contamination and creases.

Each function takes the cloth, with where and how large the defect is, and gives the changed pixels: H W C
float, not yet rounded to grey levels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from loomsight.loom.drawn_ground import Ground, yarn_line
from loomsight.loom.shapes import Plane, between, blob, cloud, thread, wander


def hole(ground: Ground, rng: np.random.Generator) -> Plane:
    """A hole: the ground behind the cloth, a torn and fuzzy rim, yarns that still cross it."""
    at = ground.at
    radius = 0.5 * ground.size
    stretch = rng.uniform(1.0, 2.2)
    return _torn(ground, rng, at, (radius * stretch, radius / stretch**0.5))


def _torn(
    ground: Ground,
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
    floor = floor + np.float32(rng.uniform(0.2, 0.6)) * ground.grain(rng)
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


def selvedge_cut(ground: Ground, rng: np.random.Generator) -> Plane:
    """A cut selvedge: torn in from the border along the weft, running out in a loosened pick."""
    width = ground.shape[1]
    left = ground.at[1] < width / 2
    edge = (ground.at[0], 0.0 if left else float(width))
    line = yarn_line(
        replace(ground, at=edge, size=2 * ground.size), rng, float(np.clip(0.8 * ground.yarn, 1.6, 5.0))
    )
    under = ground.smeared(rng)
    cover = line.cover(ground.softness)
    loosened = ground.lay(cover, under, 0.5 * ground.tone(rng, 0.8) * cover, ground.tint(rng))
    depth = min(rng.uniform(0.1, 0.5) * ground.size, 0.4 * width)
    torn = (depth, float(np.clip(rng.uniform(0.05, 0.25) * depth, 1.5, 8.0)))
    return _torn(replace(ground, pixels=loosened), rng, edge, torn, tilt=0.08)


def oil_stain(ground: Ground, rng: np.random.Generator) -> Plane:
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
    tint = ground.tint(rng, 0.05) + (np.array([-0.2, 0.0, 0.25], np.float32) * rng.random()
                                       if ground.pixels.shape[2] == 3 else np.float32(0))  # fmt: skip
    dark: Plane = np.clip(depth * wet[:, :, None] * tint, 0.0, 0.95)
    wetted: Plane = ground.pixels * (1 - dark)
    return wetted


def colour_spot(ground: Ground, rng: np.random.Generator) -> Plane:
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


def contamination(ground: Ground, rng: np.random.Generator) -> Plane:
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
    tint = ground.tint(rng, 0.4 if rng.random() < 0.4 else 0.1)
    lose = np.float32(rng.uniform(0.3, 1.0))
    under = ground.pixels + lose * (ground.smeared(rng) - ground.pixels)
    return ground.lay(cover.astype(np.float32), under, ground.tone(rng, 0.55), tint)


def crease(ground: Ground, rng: np.random.Generator) -> Plane:
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
    tone: Plane = 0.55 * ground.tone(rng, 0.5) * there * (mix * ridge + (1 - abs(mix)) * flank)
    field = rng.uniform(-0.35, 0.35) * wide * ridge * there
    moved = ground.pushed(field.astype(np.float32), (0.5 * field).astype(np.float32))
    folded: Plane = moved + tone.astype(np.float32)[:, :, None] * ground.tint(rng)
    return folded
