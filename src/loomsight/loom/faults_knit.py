"""Faults of the loops of a knitted cloth."""

from __future__ import annotations

import numpy as np

from loomsight.loom.faults import DefectSpec, bent, extent, length_of, straight, thinned, yarn_at
from loomsight.loom.render import Window
from loomsight.loom.yarns import Table


def ladder(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A wale has run: its loops are gone over a length, and the yarn lies in straight rungs."""
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    gone = extent(window.y, defect.y, length_of(window, defect), 1.5 * spec.px_per_pick)
    window.u = bent(window.u, end + 0.5, (0.1 + 0.5 * (1 - defect.strength)) * gone)
    window.lay()
    threads, there = window.threads, (window.end == end) * gone > 0.5
    threads.off_weft = np.where(there, straight(window), threads.off_weft)
    threads.half_weft = np.where(there, 0.6 * threads.half_weft, threads.half_weft)
    return window.seen()


def dropped_stitch(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A needle let go of its loop: a small hole, with a slack loop hanging under it."""
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    down = (window.y - defect.y) / (0.5 * length_of(window, defect) + 0.3 * spec.px_per_pick)
    gone = np.clip(2.5 * (1 - np.hypot(down, (window.u - end - 0.5) / 0.75)), 0, 1)
    around = np.exp(-np.square((window.u - end - 0.5) / 1.3))
    window.u = bent(window.u, end + 0.5, -0.4 * defect.strength * gone, 1.5)
    window.lay()
    threads, there = window.threads, gone
    threads.half_weft = thinned(threads.half_weft, there)
    slack = extent(window.y, defect.y + 0.5 * length_of(window, defect) + 0.6 * spec.px_per_pick,
                   1.2 * spec.px_per_pick, 2.0)  # fmt: skip
    threads.half_weft = threads.half_weft * (1 + 0.45 * slack * around * (1 - there)).astype(np.float32)
    return window.seen()


def needle_line(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A worn or bent needle makes every loop of its wale too tight or too slack: a line along the cloth."""
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    along = extent(window.y, defect.y, length_of(window, defect), 4 * spec.px_per_pick)
    tight = float(rng.choice([-1, 1])) * (0.2 + 0.2 * defect.strength)
    window.u = bent(window.u, end + 0.5, tight * along, 0.9)
    window.lay()
    threads, there = window.threads, (window.end == end) * along
    threads.half_weft = (threads.half_weft * (1 - tight * there)).astype(np.float32)
    threads.tone_weft = (threads.tone_weft * (1 - 0.5 * tight * there)).astype(np.float32)
    return window.seen()


def sinker_mark(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """A worn sinker pulls two wales apart: an open line between them."""
    spec = window.cloth.spec
    end, _ = yarn_at(window, defect)
    along = extent(window.y, defect.y, length_of(window, defect), 4 * spec.px_per_pick)
    open_ = (0.3 + 0.35 * defect.strength) * along
    window.u = bent(window.u, end + 1.0, -open_, 0.8)
    window.lay()
    near = np.exp(-np.square((window.u - end - 1.0) / 0.5))
    window.threads.half_weft = (window.threads.half_weft * (1 - 0.8 * open_ * near)).astype(np.float32)
    return window.seen()


def spandex_miss(window: Window, defect: DefectSpec, rng: np.random.Generator) -> Table:
    """The elastic yarn is missing from some courses: they lie open, and the cloth is thin there."""
    spec = window.cloth.spec
    across = extent(window.x, defect.x, length_of(window, defect), 0.1 * length_of(window, defect) + 4)
    high = rng.uniform(2.5, 8) / spec.mm_per_px
    inside = extent((window.pick + 0.5) * spec.px_per_pick, defect.y, high, 1.0) * across
    thin = 1 - (0.15 + 0.25 * defect.strength) * inside
    window.threads.half_weft = (window.threads.half_weft * thin).astype(np.float32)
    window.threads.high_weft = (window.threads.high_weft * (1 - 0.15 * inside)).astype(np.float32)
    return window.seen()
