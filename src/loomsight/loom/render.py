"""Cloth as the camera sees it: every pixel looks up its end, its pick and which of them is on top.

Good cloth is rendered in strips where the end depends on the column alone and the pick on the row alone,
which makes all look-ups cheap. A :class:`Window` renders any rectangle of the same cloth pixel by pixel, to
the same bits, and there the yarns may be bent, thickened, lifted or taken out.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.loom.camera import Camera
from loomsight.loom.spec import ClothSpec
from loomsight.loom.surface import Surface, SurfaceMaker
from loomsight.loom.weaves import FINE, pattern
from loomsight.loom.yarns import MARGIN, Creel, Table

_STRIP = 32  # rows rendered at a time: its tables stay in the processor's cache


@dataclass(slots=True)
class Threads:
    """What lies over one set of pixels; arrays broadcast to (rows, columns). A defect changes them.

    Attributes:
        off_warp, off_weft: pixels from the middle of the yarn.
        half_warp, half_weft: half the yarn's width, pixels.
        tone_warp, tone_weft: brightness of the yarn.
        up: 1 where the warp is on top.
        high_warp, high_weft: height of the yarn in [0, 1].
        dye_warp, dye_weft: 0 where the yarn has the warp's colour, 1 where the weft's.
    """

    off_warp: Table
    off_weft: Table
    half_warp: Table
    half_weft: Table
    tone_warp: Table
    tone_weft: Table
    up: Table
    high_warp: Table
    high_weft: Table
    dye_warp: Table
    dye_weft: Table


class Renderer:
    """One cloth: from threads to what the lens sees, without the lens."""

    def __init__(self, spec: ClothSpec, seed: int, width: int) -> None:
        self.spec, self.width = spec, width
        self.creel = Creel(spec, seed, width)
        self.pattern = pattern(spec.structure, spec.px_per_end, spec.px_per_pick)
        self.surface = SurfaceMaker(spec, self.creel, width)
        self.camera = Camera(spec, self.creel, self.surface, width)
        colours = np.array(
            [spec.warp_colour, spec.weft_colour, spec.gap_colour, spec.print_colour], np.float32
        )
        if spec.grey:
            colours = colours @ np.array([[0.299], [0.587], [0.114]], np.float32)
        self.colours: Table = colours[:3]  # warp, weft, gap × channels
        self._ink: Table = 1 - colours[3] / 255  # what the printed ink takes of the light
        self.dye_warp = _dyes(spec.warp_order, 0)
        self.dye_weft = _dyes(spec.weft_order, 1)
        self.u = np.arange(width) / spec.px_per_end
        self._ends = np.floor(self.u).astype(np.int64)
        self._off_warp = ((self.u - self._ends - 0.5) * spec.px_per_end).astype(np.float32)
        self._fine_columns = _fine(self.u, self.pattern.ends)

    def rows_v(self, first: int, rows: int) -> NDArray[np.float64]:
        """The pick coordinate of each row; its floor is the pick."""
        return np.arange(first, first + rows) / self.spec.px_per_pick

    def strip(self, first: int, rows: int) -> Table:
        """Good cloth, (rows, width, channels) float32, before the lens."""
        out = np.empty((rows, self.width, self.colours.shape[1]), np.float32)
        warp = self.creel.warp(first, rows)
        v = self.rows_v(first, rows)
        picks = np.floor(v).astype(np.int64)
        weft = self.creel.weft(int(picks[0]), int(picks[-1] - picks[0]) + 1)
        ends = self._ends + MARGIN
        lines = picks - picks[0]
        middle = ((v - picks - 0.5) * self.spec.px_per_pick).astype(np.float32)[:, None]
        fine_rows = _fine(v, self.pattern.picks)
        # laid out by columns once a repeat, and then only whole rows are copied
        tables = self.pattern
        up, high_warp, high_weft = (
            np.take(table, self._fine_columns, axis=1)
            for table in (tables.warp_up, tables.warp_height, tables.weft_height)
        )
        warp_off, weft_off = (
            None if table is None else np.take(table, self._fine_columns, axis=1)
            for table in (tables.warp_off, tables.weft_off)
        )
        dye_warp = self.dye_warp[self._ends % len(self.dye_warp)]
        surface = self.surface.at(first, rows)
        for y in range(0, rows, _STRIP):
            part = slice(y, min(rows, y + _STRIP))
            line, fine = lines[part], fine_rows[part]
            threads = Threads(
                off_warp=(self._off_warp if warp_off is None else warp_off[fine])
                - np.take(warp.shift[part], ends, axis=1),
                off_weft=(middle[part] if weft_off is None else weft_off[fine]) - weft.shift[line],
                half_warp=np.take(warp.half[part], ends, axis=1),
                half_weft=weft.half[line],
                tone_warp=np.take(warp.tone[part], ends, axis=1),
                tone_weft=weft.tone[line],
                up=up[fine],
                high_warp=high_warp[fine],
                high_weft=high_weft[fine],
                dye_warp=dye_warp,
                dye_weft=self.dye_weft[picks[part] % len(self.dye_weft)][:, None],
            )
            out[part] = self.shade(threads, surface.part(part, slice(None)))
        return out

    def shade(self, threads: Threads, surface: Surface) -> Table:
        """From threads to colour: (rows, columns, channels) float32."""
        spec = self.spec
        bend = np.float32(0.25 + 0.45 * spec.sheen)
        low, rise = np.float32(1 - spec.relief), np.float32(spec.relief)
        weft_cover, weft = _yarn(threads.off_weft, threads.half_weft, bend)
        weft *= threads.tone_weft
        weft *= surface.lit
        weft *= low + rise * threads.high_weft
        if not self.pattern.has_warp:
            if spec.twist:
                weft *= _twisted(threads.off_weft, threads.half_weft, surface.turns_down)
            colour = self._colour(np.zeros_like(weft), weft_cover, weft, weft, threads)
            return self._overlaid(colour, surface)
        warp_cover, warp = _yarn(threads.off_warp, threads.half_warp, bend)
        warp *= threads.tone_warp
        warp *= surface.lit
        warp *= low + rise * threads.high_warp
        if spec.twist:
            weft *= _twisted(threads.off_weft, threads.half_weft, surface.turns_across)
            warp *= _twisted(threads.off_warp, threads.half_warp, surface.turns_down)
        # what is on top hides what is under it, as far as it covers the pixel
        seen_warp = warp_cover * (1 - weft_cover * (1 - threads.up))
        seen_weft = weft_cover * (1 - warp_cover * threads.up)
        colour = self._colour(seen_warp, seen_weft, warp, weft, threads)
        return self._overlaid(colour, surface)

    def _colour(
        self, seen_warp: Table, seen_weft: Table, warp: Table, weft: Table, threads: Threads
    ) -> Table:
        gap = 1 - seen_warp - seen_weft
        warp, weft = seen_warp * warp, seen_weft * weft
        if len(self.dye_warp) + len(self.dye_weft) > 2:  # yarns of both colours in one direction
            other = warp * threads.dye_warp + weft * threads.dye_weft
            warp, weft = warp + weft - other, other
        planes = cv2.merge([warp, weft, gap])
        colour = cv2.transform(planes, self.colours.T.copy())
        return np.asarray(colour, np.float32).reshape(*gap.shape, -1)

    def _overlaid(self, colour: Table, surface: Surface) -> Table:
        """Ink on the cloth, and what lies beside it."""
        if surface.ink is not None:
            colour *= 1 - surface.ink[:, :, None] * self._ink
        if surface.bare is not None:
            colour += surface.bare[:, :, None] * (np.float32(self.surface.outside) - colour)
        return colour


def _twisted(off: Table, half: Table, turns: Table) -> Table:
    """Light and dark of the plies, which cross the yarn on a slant."""
    at = turns + np.float32(0.5) * off / half
    return np.float32(0.86) + np.float32(0.56) * np.abs(at - np.floor(at) - np.float32(0.5))


def _yarn(off: Table, half: Table, bend: np.float32) -> tuple[Table, Table]:
    """How much of a pixel a yarn covers, and how bright its round section is there."""
    cover = np.clip(half - np.abs(off) + np.float32(0.5), 0, 1)
    across = off / half
    across *= across
    bright = 1 - bend * np.minimum(across, np.float32(1.3))
    return cover, bright


def _dyes(order: tuple[int, ...], first: int) -> Table:
    """One repeat of an order: 0 for a yarn of the warp's colour, 1 for one of the weft's."""
    counts = order or (1,)
    return np.repeat([(first + k) % 2 for k in range(len(counts))], counts).astype(np.float32)


def _fine(at: NDArray[np.float64], repeat: int) -> NDArray[np.int64]:
    """Index into a pattern of `repeat` yarns."""
    return np.floor(at * FINE).astype(np.int64) % (repeat * FINE)


class Window:
    """A rectangle of the cloth whose yarns can be changed.

    Bend the coordinates `u` (ends) and `v` (picks) first, then call `lay()`, then change `threads`.
    """

    def __init__(self, cloth: Renderer, top: int, left: int, bottom: int, right: int) -> None:
        self.cloth = cloth
        self.top, self.left = top, max(0, left)
        self.bottom, self.right = bottom, min(cloth.width, right)
        self.rows, self.columns = self.bottom - self.top, self.right - self.left
        self.y = np.arange(self.top, self.bottom, dtype=np.float64)[:, None]
        self.x = np.arange(self.left, self.right, dtype=np.float64)[None, :]
        self.u = np.broadcast_to(cloth.u[None, self.left : self.right], (self.rows, self.columns))
        self.v = np.broadcast_to(cloth.rows_v(self.top, self.rows)[:, None], (self.rows, self.columns))
        surface = cloth.surface.at(self.top, self.rows)
        self.surface = surface.part(slice(None), slice(self.left, self.right))
        self.lay()

    def lay(self) -> None:
        """Find end, pick and yarn of every pixel from `u` and `v`."""
        cloth, spec = self.cloth, self.cloth.spec
        self.end = np.clip(np.floor(self.u).astype(np.int64), -MARGIN, cloth.creel.ends - MARGIN - 1)
        self.pick = np.floor(self.v).astype(np.int64)
        first = int(self.pick.min())
        warp = cloth.creel.warp(self.top, self.rows)
        weft = cloth.creel.weft(first, int(self.pick.max()) - first + 1)
        row = np.arange(self.rows)[:, None]
        column = np.arange(self.left, self.right)[None, :]
        at_warp, at_weft = (row, self.end + MARGIN), (self.pick - first, column)
        off_weft = ((self.v - self.pick - 0.5) * spec.px_per_pick).astype(np.float32)
        cells = self.cells(self.v, self.u)
        off_warp = ((self.u - self.end - 0.5) * spec.px_per_end).astype(np.float32)
        if cloth.pattern.weft_off is not None:
            off_weft = cloth.pattern.weft_off[cells]
        if cloth.pattern.warp_off is not None:
            off_warp = cloth.pattern.warp_off[cells]
        self.threads = Threads(
            off_warp=off_warp - warp.shift[at_warp],
            off_weft=off_weft - weft.shift[at_weft],
            half_warp=warp.half[at_warp],
            half_weft=weft.half[at_weft],
            tone_warp=warp.tone[at_warp],
            tone_weft=weft.tone[at_weft],
            up=cloth.pattern.warp_up[cells],
            high_warp=cloth.pattern.warp_height[cells],
            high_weft=cloth.pattern.weft_height[cells],
            dye_warp=cloth.dye_warp[self.end % len(cloth.dye_warp)],
            dye_weft=cloth.dye_weft[self.pick % len(cloth.dye_weft)],
        )

    def cells(
        self, v: NDArray[np.float64], u: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Index of every pixel into the pattern's tables, where picks and ends are those of `v` and `u`."""
        return _fine(v, self.cloth.pattern.picks), _fine(u, self.cloth.pattern.ends)

    def seen(self) -> Table:
        """(rows, columns, channels) float32, before the camera."""
        return self.cloth.shade(self.threads, self.surface)
