"""Faults of the yarns of a woven cloth: a yarn breaks, is missing, runs double, floats, thickens, snarls."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.loom.faults import (
    DefectSpec,
    bent,
    extent,
    fluff,
    here,
    lay_thread,
    length_of,
    shape_of,
    thinned,
    yarn_at,
    yarn_colour,
)
from loomsight.loom.render import Window
from loomsight.loom.shapes import blob, cloud, thread, wander
from loomsight.loom.spec import ClothSpec
from loomsight.loom.yarns import Table


def broken_end(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The end is gone over a length, its neighbours close in; a tail of it lies where it broke."""
    seen = _without_end(window, defect, rng, ramp=1.5)
    spec = window.cloth.spec
    y, x = here(window, defect)
    n = 12
    down = np.linspace(0, 1, n) * min(length_of(window, defect) / 3, rng.uniform(1.5, 4) / spec.mm_per_px)
    aside = 0.4 * spec.px_per_end * np.cumsum(rng.normal(0, 0.8, n))
    side = -1 if rng.random() < 0.5 else 1
    points = np.stack([x + aside, y - side * 0.5 * length_of(window, defect) + side * down], 1)
    return lay_thread(
        seen, points, 0.75 * spec.cover * spec.px_per_end * _slim(spec), yarn(window, defect, 0)
    )


def missing_end(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The end is not there all along; its neighbours have closed in."""
    return _without_end(window, defect, rng, ramp=8.0)


def _without_end(window: Window, defect: DefectSpec, rng: np.random.Generator, ramp: float) -> Table:
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    gone = extent(window.y, defect.y, length_of(window, defect), ramp * spec.px_per_pick)
    window.u = bent(window.u, end + 0.5, (0.1 + 0.5 * (1 - defect.strength)) * gone)
    window.lay()
    threads, there = window.threads, (window.end == end) * gone
    threads.half_warp = thinned(threads.half_warp, there)
    threads.up = threads.up * (1 - there).astype(np.float32)
    lying = np.float32(rng.uniform(0.5, 0.9))  # the weft is not bound there and lies flat
    threads.high_weft = np.where(there > 0.5, np.maximum(threads.high_weft, lying), threads.high_weft)
    return window.seen()


def double_end(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Two ends drawn into one heddle: the next end goes the way of this one, and both lie closer."""
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    both = extent(window.y, defect.y, length_of(window, defect), rng.uniform(1, 4) * spec.px_per_pick)
    window.u = bent(window.u, end + 1.0, (0.15 + 0.25 * defect.strength) * both)
    window.lay()
    threads, second = window.threads, (window.end == end + 1) & (both > 0.5)
    _work_alike(window, window.v, window.u - second)
    pair = ((window.end == end) | (window.end == end + 1)) * both
    threads.half_warp = threads.half_warp * (1 + 0.2 * pair).astype(np.float32)
    threads.high_warp = np.maximum(threads.high_warp, (0.55 * pair).astype(np.float32))
    return window.seen()


def _work_alike(window: Window, v: NDArray[np.float64], u: NDArray[np.float64]) -> None:
    """The yarns cross as they would at the places (v, u) of the plan."""
    repeat, threads = window.cloth.pattern, window.threads
    cells = window.cells(v, u)
    threads.up = repeat.warp_up[cells]
    threads.high_warp, threads.high_weft = repeat.warp_height[cells], repeat.weft_height[cells]
    if repeat.warp_off is not None:
        threads.off_warp = repeat.warp_off[cells]


def missing_pick(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The pick is not there: the warp floats over the gap, the reed has pushed its neighbours together."""
    spec = window.cloth.spec
    _, pick = yarn_at(window, defect)
    gone = extent(window.x, defect.x, length_of(window, defect), rng.uniform(1, 4) * spec.px_per_end)
    window.v = bent(window.v, pick + 0.5, (0.1 + 0.5 * (1 - defect.strength)) * gone)
    window.lay()
    threads, there = window.threads, (window.pick == pick) * gone
    threads.half_weft = thinned(threads.half_weft, there)
    threads.up = np.maximum(threads.up, there).astype(np.float32)
    lying = np.float32(rng.uniform(0.4, 0.8))
    threads.high_warp = np.where(there > 0.5, np.maximum(threads.high_warp, lying), threads.high_warp)
    return window.seen()


def broken_pick(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The pick broke: it is gone over a length, and the broken end of it curls on the cloth."""
    seen = missing_pick(window, defect, rng)
    spec = window.cloth.spec
    y, x = here(window, defect)
    n = 12
    along = np.linspace(0, 1, n) * min(length_of(window, defect) / 3, rng.uniform(1.5, 4) / spec.mm_per_px)
    aside = 0.4 * spec.px_per_pick * np.cumsum(rng.normal(0, 0.8, n))
    side = -1 if rng.random() < 0.5 else 1
    points = np.stack([x - side * 0.5 * length_of(window, defect) + side * along, y + aside], 1)
    return lay_thread(
        seen, points, 0.75 * spec.cover * spec.px_per_pick * _slim(spec), yarn(window, defect, 1)
    )


def double_pick(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Two picks in one shed: the next pick goes the way of this one, and both lie closer."""
    spec = window.cloth.spec
    _, pick = yarn_at(window, defect)
    both = extent(window.x, defect.x, length_of(window, defect), rng.uniform(1, 4) * spec.px_per_end)
    window.v = bent(window.v, pick + 1.0, (0.15 + 0.25 * defect.strength) * both)
    window.lay()
    threads, second = window.threads, (window.pick == pick + 1) & (both > 0.5)
    _work_alike(window, window.v - second, window.u)
    pair = ((window.pick == pick) | (window.pick == pick + 1)) * both
    threads.half_weft = threads.half_weft * (1 + 0.15 * pair).astype(np.float32)
    threads.high_weft = np.maximum(threads.high_weft, (0.5 * pair).astype(np.float32))
    return window.seen()


def mispick(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A pick in the wrong shed: it binds as another pick of the repeat does."""
    _, pick = yarn_at(window, defect)
    there = extent(window.x, defect.x, length_of(window, defect), 1.0) > 0.5
    wrong = (window.pick == pick) & there
    by = int(rng.integers(1, max(2, window.cloth.pattern.picks)))
    _work_alike(window, window.v + by * wrong, window.u)
    tone = np.float32(1 + (0.06 + 0.1 * defect.strength) * rng.choice([-1, 1]))
    window.threads.tone_weft = np.where(wrong, tone * window.threads.tone_weft, window.threads.tone_weft)
    window.threads.high_weft = np.where(
        wrong, np.minimum(1, window.threads.high_weft + np.float32(0.15)), window.threads.high_weft
    )
    return window.seen()


def float_(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A yarn passes over several others unbound."""
    spec = window.cloth.spec
    end, pick = yarn_at(window, defect)
    length = length_of(window, defect)
    threads = window.threads
    # where the warp already lies on top most of the time, only a float of the weft is a fault, and conversely
    share = float(window.cloth.pattern.warp_up.mean())
    tone = np.float32(rng.uniform(1.0, 1.15))
    if share < 0.6 and (share < 0.4 or rng.random() < 0.5):
        there = (window.end == end) * extent(window.y, defect.y, length, spec.px_per_pick)
        threads.up = np.maximum(threads.up, there).astype(np.float32)
        threads.high_warp = np.maximum(threads.high_warp, there).astype(np.float32)
        threads.tone_warp = np.where(there > 0, tone * threads.tone_warp, threads.tone_warp)
    else:
        there = (window.pick == pick) * extent(window.x, defect.x, length, spec.px_per_end)
        threads.up = (threads.up * (1 - there)).astype(np.float32)
        threads.high_weft = np.maximum(threads.high_weft, there).astype(np.float32)
        threads.tone_weft = np.where(there > 0, tone * threads.tone_weft, threads.tone_weft)
    return window.seen()


def slub(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A stretch of one yarn is spun two to four times as thick and pushes its neighbours aside."""
    end, pick = yarn_at(window, defect)
    in_warp = window.cloth.pattern.has_warp and rng.random() < 0.5
    at, middle = (window.y, defect.y) if in_warp else (window.x, defect.x)
    along = (at - middle) / (0.5 * length_of(window, defect))
    uneven = 1 + 0.2 * wander(rng, at.size, 5).reshape(at.shape)
    swell = np.exp(-2 * np.square(along)) * np.clip(uneven, 0.5, 1.5)
    push = -np.clip((0.4 + 0.35 * defect.strength) * swell, 0, 0.8)
    if in_warp:
        window.u = bent(window.u, end + 0.5, push)
    else:
        window.v = bent(window.v, pick + 0.5, push)
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


def knot(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Two yarn ends tied: a lump that stands up, its shadow, and the two tails."""
    radius = 0.5 * length_of(window, defect)
    y, x = here(window, defect)
    push = -0.6 * np.exp(-(np.square(window.y - defect.y) + np.square(window.x - defect.x)) / (2 * radius**2))
    spec = window.cloth.spec
    window.u = bent(window.u, defect.x / spec.px_per_end, push)
    window.v = bent(window.v, defect.y / spec.px_per_pick, push)
    window.lay()
    seen = window.seen()
    shape = shape_of(window)
    lump = blob(shape, rng, radius, 0.75 * radius, at=(y, x), rough=0.2, edge=1.2, tilt=1.5)
    fall = max(1, round(0.5 * radius))
    shadow = cv2.GaussianBlur(np.roll(lump, (fall, fall), (0, 1)), (0, 0), 0.8 + 0.3 * radius)
    seen = np.asarray(seen * (1 - (0.3 + 0.3 * defect.strength) * shadow[:, :, None]), np.float32)
    yarn = yarn_colour(window, defect, rng)
    round_lump = 1.1 - 0.3 * ((window.y - defect.y) + (window.x - defect.x)) / (radius + 1)
    fibres = 1 + 0.15 * cloud(rng, shape, 1.5)
    lit = (np.clip(round_lump, 0.4, 1.35) * fibres)[:, :, None] * yarn
    seen = np.asarray(seen + lump[:, :, None] * (lit - seen), np.float32)
    for _ in range(2):
        turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.25, 8))
        steps = np.stack([np.cos(turn), np.sin(turn)], 1) * rng.uniform(1.5, 3.5) * radius / 8
        points = np.vstack([np.zeros(2), np.cumsum(steps, 0)]) + np.array([x, y])
        tail = thread(shape, points, np.full(9, 0.35 * radius), 0.7)
        seen = np.asarray(seen + tail[:, :, None] * (1.1 * yarn - seen), np.float32)
    return seen


def snarl(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Slack, lively yarn has twisted on itself and stands out of the cloth as a loop."""
    size = 0.5 * length_of(window, defect)
    y, x = here(window, defect)
    turn = np.linspace(-0.25, 1.25, 28) * 2 * math.pi
    lean = rng.uniform(-0.6, 0.6)
    loop_x = 0.45 * size * np.sin(turn) + 0.5 * size * np.linspace(-0.5, 0.5, 28)
    loop_y = -0.7 * size * (np.cos(turn) - np.cos(turn[0]))
    if rng.random() < 0.5:
        loop_x, loop_y = loop_y, loop_x
    points = np.stack([x + loop_x + lean * loop_y, y + loop_y], 1)
    return lay_thread(window.seen(), points, _loose(window), yarn_colour(window, defect, rng))


def weft_curling(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The weft came in slack: a row of small curls on the face."""
    length, size = length_of(window, defect), 0.9 * window.cloth.spec.px_per_pick
    y, x = here(window, defect)
    curls = max(2, round(length / (2.6 * size)))
    turn = np.linspace(0, curls, 16 * curls)
    grown = size * (0.7 + 0.5 * np.abs(wander(rng, turn.size))) * np.sin(np.pi * turn / curls) ** 0.3
    across = x + length * (turn / curls - 0.5) + 1.2 * grown * np.sin(2 * math.pi * turn)
    down = y - grown * (1 - np.cos(2 * math.pi * turn)) * (1 if rng.random() < 0.5 else -1)
    return lay_thread(window.seen(), np.stack([across, down], 1), _loose(window), yarn(window, defect, 1))


def reed_mark(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A bent dent of the reed holds two ends apart: a fine open line along the warp."""
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    along = extent(window.y, defect.y, length_of(window, defect), 8 * spec.px_per_pick)
    open_ = (0.35 + 0.35 * defect.strength) * along
    window.u = bent(window.u, end + 1.0, -open_, 1.4)
    window.lay()
    near = np.exp(-np.square((window.u - end - 1.0) / 1.2))
    window.threads.half_warp = (window.threads.half_warp * (1 - 0.75 * open_ * near)).astype(np.float32)
    return window.seen()


def weft_crack(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Two picks lie apart: a fine open line along the weft."""
    spec = window.cloth.spec
    _, pick = yarn_at(window, defect)
    along = extent(window.x, defect.x, length_of(window, defect), 6 * spec.px_per_end)
    open_ = (0.4 + 0.35 * defect.strength) * along
    window.v = bent(window.v, pick + 1.0, -open_, 1.4)
    window.lay()
    near = np.exp(-np.square((window.v - pick - 1.0) / 1.2))
    window.threads.half_weft = (window.threads.half_weft * (1 - 0.8 * open_ * near)).astype(np.float32)
    return window.seen()


def starting_mark(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The loom stood still: the first picks after it lie too open, the next ones too close."""
    spec = window.cloth.spec
    _, pick = yarn_at(window, defect)
    along = extent(window.x, defect.x, length_of(window, defect), 6 * spec.px_per_end)
    few = rng.uniform(2.0, 3.5)
    moved = (0.45 + 0.3 * defect.strength) * few * np.exp(-np.square((window.v - pick) / few)) * along
    rate = 1 - 2 * (window.v - pick) / few**2 * moved  # picks per pick: below 1 they lie apart
    window.v = window.v + np.where(moved < 0.03, 0.0, moved)
    window.lay()
    threads = window.threads
    open_ = np.where(moved < 0.03, 1.0, np.clip(rate, 0.35, 1.5))
    threads.half_weft = (threads.half_weft * open_).astype(np.float32)
    threads.tone_weft = (threads.tone_weft * (1 + 0.15 * (open_ - 1))).astype(np.float32)
    return window.seen()


def weft_bar(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A band of another lot of weft: other tone, other count."""
    return _bands(window, defect, rng, [(0.0, rng.uniform(3, 11))])


def barre(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Bands of other tone that come again and again across the cloth."""
    pitch = rng.uniform(8, 18)
    return _bands(window, defect, rng, [(k * pitch, rng.uniform(0.35, 0.5) * pitch) for k in (-1, 0, 1)])


def _bands(
    window: Window, defect: DefectSpec, rng: np.random.Generator, bands: list[tuple[float, float]]
) -> Table:
    """Bands across the cloth: (mm below the defect's middle, mm high) of each."""
    spec = window.cloth.spec
    across = extent(window.x, defect.x, length_of(window, defect), 0.1 * length_of(window, defect) + 4)
    picks = (window.pick + 0.5) * spec.px_per_pick  # a band begins and ends with a pick
    inside = np.zeros(shape_of(window))
    for below, high in bands:
        middle = defect.y + below / spec.mm_per_px
        inside = np.maximum(inside, extent(picks, middle, high / spec.mm_per_px, 1.0))
    amount = float(rng.choice([-1, 1])) * (0.07 + 0.1 * defect.strength) * inside * across
    threads = window.threads
    threads.tone_weft = (threads.tone_weft * (1 + amount)).astype(np.float32)
    threads.half_weft = (threads.half_weft * (1 + 0.5 * amount)).astype(np.float32)
    threads.tone_warp = (threads.tone_warp * (1 + 0.5 * amount)).astype(np.float32)
    return window.seen()


def burl_mark(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A thick place was picked out or worked in: yarns roughened and pushed about in a spot."""
    radius = 0.5 * length_of(window, defect)
    shape = shape_of(window)
    spot = blob(shape, rng, radius, 0.6 * radius, at=here(window, defect), edge=0.5 * radius, tilt=1.5)
    spec = window.cloth.spec
    grain = 1.2 * max(spec.px_per_end, spec.px_per_pick)
    window.u = window.u + (0.35 + 0.3 * defect.strength) * spot * cloud(rng, shape, grain)
    window.v = window.v + (0.35 + 0.3 * defect.strength) * spot * cloud(rng, shape, grain)
    window.lay()
    threads = window.threads
    rough = (1 + spot * (0.12 + 0.2 * cloud(rng, shape, 2.5))).astype(np.float32)
    threads.tone_warp, threads.tone_weft = threads.tone_warp * rough, threads.tone_weft * rough
    lifted = (0.8 * spot).astype(np.float32)
    threads.high_warp = np.maximum(threads.high_warp, lifted)
    threads.high_weft = np.maximum(threads.high_weft, lifted)
    return window.seen()


def smash(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The shuttle was trapped: many ends broken at once, the weft slack between them, tails hanging."""
    size = 0.5 * length_of(window, defect)
    shape, (y, x) = shape_of(window), here(window, defect)
    spec = window.cloth.spec
    spot = blob(shape, rng, size, 0.7 * size, at=(y, x), rough=0.2, edge=3.0, tilt=0.1)
    # each pick hangs in an arc of its own, as far as the next ends that hold it
    free = cv2.GaussianBlur(spot, (0, 0), 1.5 * spec.px_per_pick)
    reach, pick = 0.35 * size, 1.1 * spec.px_per_pick
    hanging = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), reach, sigmaY=pick)
    hanging = hanging / (hanging.std() + 1e-6) + 0.8 * np.square(spot)
    window.v = window.v - (0.35 + 0.45 * defect.strength) * hanging * free
    window.u = window.u + 0.25 * cloud(rng, shape, 3 * spec.px_per_end) * free
    window.lay()
    threads = window.threads
    torn, gone = rng.uniform(0.1, 1.3, 61), rng.random(61) < 0.55 + 0.3 * defect.strength
    broken = np.clip((spot - 0.4 * torn[window.end % 61]) * 6, 0, 1) * gone[window.end % 61]
    threads.half_warp = thinned(threads.half_warp, broken)
    threads.up = (threads.up * (1 - broken)).astype(np.float32)
    threads.high_weft = np.maximum(threads.high_weft, (0.7 * broken).astype(np.float32))
    threads.half_weft = (threads.half_weft * (1 - 0.3 * broken)).astype(np.float32)  # daylight between them
    seen = window.seen()
    for _ in range(int(rng.integers(3, 8))):
        turn = rng.choice([-0.5, 0.5]) * math.pi + np.cumsum(rng.normal(0, 0.35, 10))
        steps = np.stack([np.cos(turn), np.sin(turn)], 1) * size * rng.uniform(0.04, 0.1)
        start = np.array([x, y]) + rng.normal(0, 0.45, 2) * size
        points = np.vstack([start, start + np.cumsum(steps, 0)])
        seen = lay_thread(seen, points, _loose(window), yarn(window, defect, 0))
    return seen


def warp_ball(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """Fly and broken fibre rolled up along an end and woven in."""
    radius = 0.5 * length_of(window, defect)
    wide = max(0.35 * radius, 0.8 * window.cloth.spec.px_per_end)
    push = -0.5 * np.exp(-np.square((window.y - defect.y) / (0.7 * radius)))
    window.u = bent(window.u, defect.x / window.cloth.spec.px_per_end, push, 1.5)
    window.lay()
    colour = np.minimum(1.12 * yarn(window, defect, 0), 255).astype(np.float32)
    return fluff(window.seen(), rng, here(window, defect), (radius, wide), fibres=26, colour=colour)


def yarn(window: Window, defect: DefectSpec, which: int) -> Table:
    """The colour of the warp (0) or the weft (1) in the light of the place: (channels,)."""
    x = int(np.clip(defect.x, 0, window.cloth.width - 1))
    return np.asarray(window.cloth.colours[which] * window.cloth.surface.light[x], np.float32)


def _loose(window: Window) -> float:
    """Width of a yarn that nothing presses: pixels."""
    spec = window.cloth.spec
    return max(1.5, 0.5 * min(spec.px_per_end, spec.px_per_pick) * _slim(spec))


def _slim(spec: ClothSpec) -> float:
    return 0.3 if spec.structure == "gauze" else 1.0
