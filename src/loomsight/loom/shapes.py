"""Random shapes that cloth and its defects are made of: uneven lines, clouds, ragged spots, thin threads."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[Any]
"""Floats, HW, or HWC where it carries the cloth's channels; float32 where it is large."""


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A random scale, log-uniform: as many small ones as large ones."""
    return float(low * (high / low) ** rng.random())


def wander(rng: np.random.Generator, n: int, octaves: int = 4) -> Plane:
    """A 1/f random line of n values, of the order of ±1."""
    at = np.linspace(0.0, 1.0, n)
    line = np.zeros(n)
    for octave in range(octaves):
        knots = 2 + 2**octave
        line += np.interp(at * (knots - 1), np.arange(knots), rng.standard_normal(knots)) / 2**octave
    return (0.7 * line).astype(np.float32)


def cloud(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Plane:
    """A soft random field of the order of ±1, its features about `grain` pixels wide."""
    rows, columns = (max(2, round(n / grain) + 1) for n in shape)
    field = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def blob(
    shape: tuple[int, int],
    rng: np.random.Generator,
    long: float,
    short: float,
    *,
    at: tuple[float, float],
    rough: float = 0.25,
    edge: float = 1.0,
    tilt: float = 0.3,
) -> Plane:
    """A spot with an irregular outline: HW in [0, 1], radii `long` × `short`, its edge `edge` pixels soft."""
    y0, x0 = at
    angle = rng.normal(0.0, tilt)
    spot = np.zeros(shape, np.float32)
    reach = math.ceil(max(long, short) * 1.9 + 2 * edge + 2)
    top, left = max(0, int(y0) - reach), max(0, int(x0) - reach)
    bottom, right = min(shape[0], int(y0) + reach), min(shape[1], int(x0) + reach)
    if top >= bottom or left >= right:
        return spot
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y0)
    dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x0)
    u = (dx * math.cos(angle) + dy * math.sin(angle)) / max(long, 0.5)
    v = (dy * math.cos(angle) - dx * math.sin(angle)) / max(short, 0.5)
    radius = np.sqrt(u * u + v * v)
    turn = np.arctan2(v, u)
    outline = np.ones_like(radius)
    for wave in range(2, 7):
        height = rough * rng.standard_normal() / wave**0.5
        outline += np.float32(height) * np.cos(wave * turn + np.float32(rng.uniform(0, 2 * math.pi)))
    outline = np.clip(outline, 0.35, 1.8)
    ramp = np.float32(min(long, short) / max(edge, 0.5))
    spot[top:bottom, left:right] = np.clip(0.5 + (outline - radius) * ramp, 0.0, 1.0)
    return spot


def thread(shape: tuple[int, int], points: Plane, widths: Plane, softness: float) -> Plane:
    """A thread through points (n, 2) xy, `widths` pixels wide: HW coverage in [0, 1], antialiased."""
    fine = 4
    canvas = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
    ends = np.rint(points * fine * 16).astype(np.int32)
    for start, stop, width in zip(ends[:-1], ends[1:], widths[1:], strict=True):
        thick = max(1, round(float(width) * fine))
        cv2.line(canvas, tuple(map(int, start)), tuple(map(int, stop)), 255, thick, cv2.LINE_8, 4)
    cover = cv2.resize(canvas, (shape[1], shape[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
    return cv2.GaussianBlur(cover, (0, 0), 0.6 * softness)
