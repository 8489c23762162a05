"""Faults of any cloth: it is torn, soiled, creased, or something foreign is in it."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from loomsight.loom.faults import (
    DefectSpec,
    bent,
    fluff,
    here,
    length_of,
    shape_of,
    thinned,
    yarn_colour,
)
from loomsight.loom.render import Window
from loomsight.loom.shapes import blob, cloud, thread, wander
from loomsight.loom.yarns import Table


def hole(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Yarns broken, each at its own place: the ground shows, dark or lit from behind."""
    radius = 0.5 * length_of(window, defect)
    return _opened(window, defect, rng, radius * rng.uniform(1.0, 1.6), radius * rng.uniform(0.6, 1.0))


def tear(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A slit with frayed edges, along warp or weft."""
    spec = window.cloth.spec
    long = 0.5 * length_of(window, defect)
    return _opened(window, defect, rng, long, max(0.12 * long, 0.8 * max(spec.px_per_end, spec.px_per_pick)))


def _opened(window: Window, defect: DefectSpec, rng: np.random.Generator, long: float, short: float) -> Table:
    """An opening with these half axes, pixels, long along the warp or the weft."""
    radius = min(long, short)
    if rng.random() < 0.5:
        long, short = short, long
    down, across = (window.y - defect.y) / long, (window.x - defect.x) / short
    away = np.hypot(down, across) * (1 + 0.15 * cloud(rng, shape_of(window), max(2.0, radius)))
    torn = rng.normal(0, 0.22, 97)
    edge = 0.6 * radius
    spread = rng.uniform(0.1, 0.3)
    window.u = bent(window.u, defect.x / window.cloth.spec.px_per_end, spread * np.exp(-(away**2) / 2), 3.0)
    window.lay()
    threads = window.threads
    warp_gone = np.clip((1 + torn[window.end % 97] - away) * edge, 0, 1)
    weft_gone = np.clip((1 + torn[(window.pick + 31) % 97] - away) * edge, 0, 1)
    threads.half_warp = thinned(threads.half_warp, warp_gone)
    threads.half_weft = thinned(threads.half_weft, weft_gone)
    seen = window.seen()
    behind = window.cloth.colours[2] * rng.uniform(0.3, 1.0)
    if rng.random() < 0.25:
        behind = np.full_like(behind, rng.uniform(235, 255))
    open_ = (warp_gone * weft_gone)[:, :, None]
    floor = behind * (1 + 0.1 * cloud(rng, shape_of(window), 7.0))[:, :, None]
    return np.asarray(seen + open_ * (floor - seen), np.float32)


def oil_stain(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Oil drawn in by the yarns: darker and browner, the weave still there, run out along warp or weft."""
    radius = 0.5 * length_of(window, defect)
    at, shape = here(window, defect), shape_of(window)
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


def colour_spot(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Fibre of another dye, or a splash of it: other colour, same weave."""
    radius = 0.5 * length_of(window, defect)
    shape = shape_of(window)
    spot = blob(shape, rng, radius, radius * rng.uniform(0.6, 1.0), at=here(window, defect), rough=0.3,
                edge=max(1.5, 0.4 * radius), tilt=1.5)  # fmt: skip
    spot = spot * np.clip(0.85 + 0.2 * cloud(rng, shape, 3.0), 0.2, 1.0)
    seen = window.seen()
    cloth = seen.mean(axis=(0, 1))
    dye = rng.uniform(20, 235, seen.shape[2])
    if np.abs(dye - cloth).max() < 45:  # a spot of the cloth's own colour would be none
        dye = np.where(cloth > 128, cloth - 70, cloth + 70)
    share = (0.5 + 0.4 * defect.strength) * spot[:, :, None]
    return np.asarray(seen * (1 - share) + share * dye * seen / (cloth + 1), np.float32)


def contamination(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A foreign fibre on the cloth, or under every other yarn of it."""
    n = 32
    turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.04) + rng.normal(0, 0.09, n))
    points = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1) * (length_of(window, defect) / n), 0)
    points += np.array(here(window, defect)[::-1]) - points.mean(0)
    spec = window.cloth.spec
    width = float(np.clip(rng.uniform(0.1, 0.35) / spec.mm_per_px, 1.0, 4.0))
    widths = width * np.clip(1 + 0.25 * wander(rng, n), 0.5, 1.6)
    fibre = thread(shape_of(window), points, widths, 0.5)
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


def nep(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A tiny tight knot of fibres, lighter than the yarn since it takes less dye."""
    radius = max(1.5, 0.5 * length_of(window, defect))
    colour = _fibre_colour(window, defect, rng, 0.2 + 0.3 * defect.strength)
    return fluff(window.seen(), rng, here(window, defect), (radius, radius), fibres=14, colour=colour)


def fuzzy_ball(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A loose ball of fibres on the cloth."""
    radius = 0.5 * length_of(window, defect)
    radii = (radius * rng.uniform(0.6, 1.0), radius * rng.uniform(0.6, 1.0))
    colour = _fibre_colour(window, defect, rng, 0.15 + 0.3 * defect.strength)
    fibres = int(rng.integers(24, 50))
    return fluff(window.seen(), rng, here(window, defect), radii, fibres=fibres, colour=colour)


def _fibre_colour(window: Window, defect: DefectSpec, rng: np.random.Generator, away: float) -> Table:
    """Undyed or greyed fibre: the yarn's colour, lighter on dark cloth and either way on light cloth."""
    yarn = yarn_colour(window, defect, rng)
    lighter = float(yarn.mean()) < 110 or rng.random() < 0.5
    return np.asarray(yarn + away * ((250 if lighter else 10) - yarn), np.float32)


def stain(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A dried wet spot: a wash of colour with a tide line around it, the weave untouched."""
    radius = 0.5 * length_of(window, defect)
    at, shape = here(window, defect), shape_of(window)
    wet = blob(shape, rng, radius, radius * rng.uniform(0.55, 1.0), at=at, rough=0.3, edge=3.0, tilt=1.5)
    inner = np.clip(cv2.GaussianBlur(wet, (0, 0), 0.12 * radius + 1.0), 0, 1)
    line = wet * (1 - np.clip(1.6 * inner - 0.6, 0, 1))
    wash = wet * (0.6 + 0.2 * cloud(rng, shape, max(4.0, 0.5 * radius)))
    depth = (0.10 + 0.16 * defect.strength) * np.clip(wash + 0.9 * line, 0, 1.5)
    seen = window.seen()
    if rng.random() < 0.3:  # bleached
        return np.asarray(seen + (depth[:, :, None] * (255 - seen)), np.float32)
    tint = rng.uniform(0.5, 1.4, 3) if seen.shape[2] == 3 else np.ones(1)
    return np.asarray(seen * (1 - np.clip(depth[:, :, None] * tint, 0, 0.8)), np.float32)


def crease(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A fold pressed in: a ridge that is bright on one flank and dark on the other."""
    spec = window.cloth.spec
    length, wide = length_of(window, defect), rng.uniform(0.35, 0.9) / spec.mm_per_px
    along = (window.y - defect.y) / (0.5 * length)
    line = defect.x + 1.5 / spec.mm_per_px * wander(rng, window.rows)[:, None]
    line = line + rng.uniform(-2, 2) / spec.mm_per_px * along
    away = (window.x - line) / wide
    fade = np.clip((1 - np.abs(along)) * 4, 0, 1)
    flank = -1.65 * away * np.exp(-np.square(away) / 2) * (1 if rng.random() < 0.5 else -1)
    deep = (0.12 + 0.22 * defect.strength) * fade * (1 + 0.25 * wander(rng, window.rows)[:, None])
    moved = 0.3 * fade * np.exp(-np.square(away) / 2)
    window.u = window.u + np.where(moved < 0.03, 0.0, moved)
    window.lay()
    change = deep * (flank - 0.4 * np.exp(-2 * np.square(away)))
    return np.asarray(window.seen() * (1 + change)[:, :, None], np.float32)


def selvedge_cut(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The edge is cut or torn in: what lies under the cloth shows."""
    radius = 0.5 * length_of(window, defect)
    notch = blob(shape_of(window), rng, radius * rng.uniform(0.8, 1.6), radius, at=here(window, defect),
                 rough=0.3, edge=1.5, tilt=0.8)  # fmt: skip
    bare = window.surface.bare
    if bare is None:
        raise ValueError("no selvedge in the picture")
    window.surface = replace(window.surface, bare=np.maximum(bare, notch).astype(np.float32))
    return window.seen()
