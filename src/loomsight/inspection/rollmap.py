"""The roll map: the whole roll as one band, every defect at its place, read at a glance.

From left to right runs the length of the roll, from top to bottom its width, left selvedge on top. A
defect is a disc, larger the longer it is and darker the surer; one that reaches beyond its disc, as a bar
across the web does, is a stripe as long as it lies on the map. Numbers are those of the pictures in the
report. Below, how many there are in each stretch, and what was not inspected is hatched in both. The
length is compressed: the band is not drawn to scale, its two axes say what is what.

Everything is rasterised into cells as wide as two pixels of the band, so that a roll with a million regions
takes the memory of one with ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from loomsight.fabric.types import Picture

WIDTH, HEIGHT = 1600, 660  # pixels of the finished picture
_SS = 2  # drawn twice as large and reduced, so that every edge is smooth
_LEFT, _RIGHT, _TOP, _BAND, _COLUMNS_TOP, _COLUMNS = 100, 1564, 142, 270, 462, 110
_CELLS = ((_RIGHT - _LEFT) // 2, _BAND // 2)  # along, across
_NUMBERED = 12
_DISC = 16  # pixels: the radius of the largest disc; what reaches further is a stripe
_STRIPE = 8  # pixels: how thick a stripe is at least
# Pillow brings one font, which is Latin. These, where the system has one, write Chinese too.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc")

Colour: TypeAlias = tuple[int, int, int]
INK, SOFT, FAINT, PAPER = (28, 34, 43), (98, 107, 120), (214, 219, 226), (255, 255, 255)
CLOTH, THREAD, SELVEDGE, GAP = (243, 239, 230), (235, 230, 219), (150, 138, 112), (150, 158, 170)
TITLE, SUBTITLE, LABEL, NUMBER = (34, INK), (21, SOFT), (18, SOFT), (20, INK)  # size in pixels, colour
# Sure defects are dark: it reads in black and white, and for those who do not tell red from green.
_RAMP = ((0.0, (250, 190, 70)), (0.5, (232, 98, 44)), (1.0, (140, 16, 42)))


@dataclass(frozen=True, slots=True)
class Mark:
    """A defect: the place of its middle on the roll, its length, its score, all in the map's units.

    Attributes:
        along: in the unit along the roll; across, length: in the unit across it.
        score: 0 to 1; number: of its picture in the report.
        extent: from its first to its last point along the roll, and across it.
    """

    along: float
    across: float
    length: float
    score: float
    number: int | None = None
    extent: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class RollMap:
    """What a roll map shows.

    Attributes:
        title, subtitle: two lines of text.
        length, width: of the roll, > 0, in ``unit`` and ``width_unit``.
        unit: "m" or "px" along the roll; width_unit: "mm" or "px" across it.
        threshold: the lowest score of a mark, where the colours begin.
    """

    title: str
    subtitle: str
    length: float
    width: float
    unit: str
    width_unit: str
    threshold: float

    def draw(self, marks: Iterable[Mark], gaps: Iterable[tuple[float, float]]) -> Picture:
        """Draw it.

        Args:
            marks: defects, in any order.
            gaps: start and end, in ``unit``, of what was not inspected.

        Returns:
            uint8 HWC RGB, 660 × 1600.
        """
        cells, numbered, total = self._gather(marks)
        gaps = list(_merged(gaps, self.length))
        sheet = Image.new("RGB", (WIDTH * _SS, HEIGHT * _SS), PAPER)
        pen = _Pen(sheet)
        self._heading(pen, total)
        self._band(pen, gaps)
        self._axes(pen)
        self._marks(pen, cells, numbered)
        self._histogram(pen, cells, gaps)
        return np.asarray(sheet.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))

    def _gather(self, marks: Iterable[Mark]) -> tuple[_Cells, list[Mark], int]:
        cells = _Cells.empty()
        numbered: list[Mark] = []
        total = 0
        for mark in marks:
            total += 1
            extent = mark.extent[0] / self.length, mark.extent[1] / self.width
            cells.add(
                mark, mark.along / self.length, mark.across / self.width, mark.length / self.width, extent
            )
            if mark.number is not None and mark.number <= _NUMBERED:
                numbered.append(mark)
        return cells, numbered, total

    def _x(self, along: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * min(max(along / self.length, 0.0), 1.0)

    def _y(self, across: float) -> float:
        return _TOP + _BAND * min(max(across / self.width, 0.0), 1.0)

    def _heading(self, pen: _Pen, total: int) -> None:
        pen.text(_LEFT, 22, self.title, TITLE)
        pen.text(_LEFT, 70, self.subtitle, SUBTITLE)
        # The legend, at the right of the same two lines.
        x = _RIGHT - 170
        pen.text(x - 12, 30, "less sure", LABEL, anchor="ra")
        for step in range(120):
            pen.box(x + step, 33, x + step + 1.5, 47, _colour(step / 119))
        pen.text(_RIGHT, 30, "sure", LABEL, anchor="ra")
        hatch = (x, 72, x + 36, 89)
        pen.box(*hatch, PAPER, outline=FAINT)
        pen.hatch(*hatch)
        pen.text(_RIGHT, 71, "not inspected", LABEL, anchor="ra")

    def _band(self, pen: _Pen, gaps: list[tuple[float, float]]) -> None:
        pen.box(_LEFT, _TOP, _RIGHT, _TOP + _BAND, CLOTH)
        for y in range(_TOP + 8, _TOP + _BAND, 8):
            pen.line(_LEFT, y, _RIGHT, y, THREAD)
        for start, stop in gaps:
            x0, x1 = self._x(start), max(self._x(stop), self._x(start) + 3)
            pen.box(x0, _TOP, x1, _TOP + _BAND, (233, 236, 240))
            pen.hatch(x0, _TOP, x1, _TOP + _BAND)
        for y in (_TOP, _TOP + _BAND):
            pen.line(_LEFT, y, _RIGHT, y, SELVEDGE, width=3)
        pen.text(_RIGHT, _TOP + _BAND + 8, "right selvedge", LABEL, anchor="ra")
        pen.text(_RIGHT, _TOP - 7, "left selvedge", LABEL, anchor="rs")

    def _axes(self, pen: _Pen) -> None:
        for value in ticks(self.length, 10):
            x = self._x(value)
            pen.line(x, _TOP, x, _TOP + _BAND, (222, 216, 203))
            pen.line(x, _COLUMNS_TOP + _COLUMNS, x, _COLUMNS_TOP + _COLUMNS + 5, SOFT)
            label = f"{value:,g}" if value < 1e6 else f"{value:,.0f}"
            pen.text(x, _COLUMNS_TOP + _COLUMNS + 10, label, NUMBER, anchor="ma")
        pen.text(
            _LEFT, _COLUMNS_TOP + _COLUMNS + 44, f"along the roll, {_unit(self.unit)} from its start", LABEL
        )
        for value in ticks(self.width, 4):
            y = self._y(value)
            pen.line(_LEFT - 6, y, _LEFT - 1, y, SOFT)
            pen.text(_LEFT - 10, y, f"{value:,g}", NUMBER, anchor="rm")
        pen.text(_LEFT - 10, _TOP - 19, self.width_unit, LABEL, anchor="rs")

    def _marks(self, pen: _Pen, cells: _Cells, numbered: list[Mark]) -> None:
        along, across = np.nonzero(cells.score > 0)
        crowded = len(along) > 400
        for index in np.argsort(cells.score[along, across], kind="stable"):
            i, j = int(along[index]), int(across[index])
            # A disc's area follows the length, between what the eye finds and what hides its neighbours.
            least, most = (3.4, 7) if crowded else (6.5, _DISC)
            radius = min(max(math.sqrt(float(cells.size[i, j])) * 26, least), most)
            right, down = cells.extent[i, j].astype(float) * (_RIGHT - _LEFT, _BAND) / 2
            if max(right, down) > _DISC:
                right, down = max(right, _STRIPE / 2), max(down, _STRIPE / 2)
            else:
                right = down = radius
            x, y = _LEFT + 2 * (i + 0.5), _TOP + 2 * (j + 0.5)
            pen.blob(x, y, right, down, _colour(self._sureness(float(cells.score[i, j]))))
        taken: list[tuple[float, float]] = []
        for mark in sorted(numbered, key=lambda mark: mark.number or 0):
            x, y = self._x(mark.along), self._y(mark.across)
            x = min(max(x, _LEFT + 16), _RIGHT - 16)
            # Above its disc, or below where there is no room; else the report's table alone has its place.
            levels = [y + off for off in (-25, 25) if _TOP + 13 <= y + off <= _TOP + _BAND - 13]
            free = [
                level
                for level in levels
                if not any(abs(x - other) < 36 and abs(level - lane) < 26 for other, lane in taken)
            ]
            if not free:
                continue
            taken.append((x, free[0]))
            pen.tag(x, free[0], str(mark.number))

    def _histogram(self, pen: _Pen, cells: _Cells, gaps: list[tuple[float, float]]) -> None:
        step = column_step(self.length, self.unit)
        counts = cells.columns(math.ceil(self.length / step - 1e-9), step / self.length)
        floor, top = _COLUMNS_TOP + _COLUMNS, max(int(counts.max()), 1)
        for start, stop in gaps:
            x0, x1 = self._x(start), max(self._x(stop), self._x(start) + 3)
            pen.hatch(x0, _COLUMNS_TOP, x1, floor)
        for value in sorted({top, top // 2} - {0}):
            y = floor - _COLUMNS * value / top
            pen.line(_LEFT, y, _RIGHT, y, FAINT)
            pen.text(_LEFT - 10, y, f"{value:,}", NUMBER, anchor="rm")
        for number, count in enumerate(counts):
            x0, x1 = self._x(number * step), self._x((number + 1) * step)
            if count:
                inset = 1.0 if x1 - x0 > 4 else 0.0
                pen.box(
                    x0 + inset, floor - _COLUMNS * count / top, max(x1 - inset, x0 + 1), floor, (70, 91, 122)
                )
        pen.line(_LEFT, floor, _RIGHT, floor, SOFT)
        what = "metre" if self.unit == "m" and step == 1 else f"{step:,g} {self.unit}"
        if self.unit == "m" and step < 1:
            what = f"{100 * step:g} cm"
        pen.text(_RIGHT, floor + 44, f"columns: regions in each {what} of the roll", LABEL, anchor="ra")

    def _sureness(self, score: float) -> float:
        return (score - self.threshold) / max(1.0 - self.threshold, 1e-6)


@dataclass(slots=True)
class _Cells:
    """The band cut into cells, and counts along the roll.

    Of each cell: its surest score, its longest defect, and how far the mark that is drawn longest reaches.
    """

    score: NDArray[np.float32]
    size: NDArray[np.float32]
    extent: NDArray[np.float32]
    count: NDArray[np.int64]

    @classmethod
    def empty(cls) -> _Cells:
        score, size, extent = (np.zeros(shape, np.float32) for shape in (_CELLS, _CELLS, (*_CELLS, 2)))
        return cls(score, size, extent, np.zeros(4096, np.int64))

    def add(self, mark: Mark, along: float, across: float, size: float, extent: tuple[float, float]) -> None:
        i = min(max(int(along * _CELLS[0]), 0), _CELLS[0] - 1)
        j = min(max(int(across * _CELLS[1]), 0), _CELLS[1] - 1)
        self.score[i, j] = max(self.score[i, j], mark.score, 1e-6)
        self.size[i, j] = max(self.size[i, j], size)
        drawn = _RIGHT - _LEFT, _BAND  # what a share of either side is, of the picture
        if np.multiply(extent, drawn).max() > (self.extent[i, j] * drawn).max():
            self.extent[i, j] = np.minimum(extent, 1.0)
        self.count[min(max(int(along * len(self.count)), 0), len(self.count) - 1)] += 1

    def columns(self, number: int, share: float) -> NDArray[np.int64]:
        """The counts in ``number`` columns, each ``share`` of the roll."""
        column = ((np.arange(len(self.count)) + 0.5) / len(self.count) / share).astype(int)
        return np.bincount(np.minimum(column, number - 1), weights=self.count, minlength=number).astype(
            np.int64
        )


class _Pen:
    """Draws in the units of the finished picture on a sheet that is twice as large."""

    def __init__(self, sheet: Image.Image) -> None:
        self._draw = ImageDraw.Draw(sheet)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, width: float = 1) -> None:
        self._draw.line([x0 * _SS, y0 * _SS, x1 * _SS, y1 * _SS], fill=colour, width=round(width * _SS))

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: Colour,
        *,
        outline: Colour | None = None,
    ) -> None:
        self._draw.rectangle(
            [x0 * _SS, y0 * _SS, x1 * _SS, y1 * _SS], fill=colour, outline=outline, width=_SS
        )

    def blob(self, x: float, y: float, right: float, down: float, colour: Colour) -> None:
        """A disc, or a stripe with round ends, that reaches so far from its middle."""
        corners = [(x - right) * _SS, (y - down) * _SS, (x + right) * _SS, (y + down) * _SS]
        self._draw.rounded_rectangle(
            corners, radius=min(right, down) * _SS, fill=colour, outline=PAPER, width=_SS
        )

    def hatch(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Diagonal lines inside a box."""
        height = y1 - y0
        start = x0 - height - (x0 - height) % 9  # on one grid, so that neighbouring boxes join
        while start < x1:
            left, right = max(start, x0), min(start + height, x1)
            if right > left:
                self.line(left, y1 - (left - start), right, y1 - (right - start), GAP)
            start += 9

    def tag(self, x: float, y: float, label: str) -> None:
        """A number on a small white plate beside its disc."""
        width = 12 * len(label) + 9
        x0 = x - width / 2
        shape = [x0 * _SS, (y - 12) * _SS, (x0 + width) * _SS, (y + 12) * _SS]
        self._draw.rounded_rectangle(shape, radius=5 * _SS, fill=PAPER, outline=SOFT, width=_SS)
        self.text(x, y, label, NUMBER, anchor="mm")

    def text(self, x: float, y: float, text: str, style: tuple[int, Colour], *, anchor: str = "la") -> None:
        size, colour = style
        text, font = _legible(text, size * _SS)
        self._draw.text((x * _SS, y * _SS), text, fill=colour, font=font, anchor=anchor)


def ticks(length: float, at_most: int) -> list[float]:
    """Round numbers from 0 to ``length``, 1, 2 or 5 times a power of ten apart, about ``at_most`` of them.

    Raises:
        ValueError: ``length`` is not above 0.
    """
    if not length > 0:
        raise ValueError(f"length must be above 0, got {length}")
    step = _round_step(length / at_most)
    return [round(step * number, 10) for number in range(int(length / step + 1e-9) + 1)]


def column_step(length: float, unit: str) -> float:
    """The stretch that one column of the histogram counts: a metre where that gives 12 to 240 of them."""
    if unit == "m" and 12 <= length <= 240:
        return 1.0
    return _round_step(length / 100)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _merged(gaps: Iterable[tuple[float, float]], length: float) -> Iterable[tuple[float, float]]:
    """Gaps that lie within a pixel of each other as one, so that they can be many."""
    near = length / (_RIGHT - _LEFT)
    start = stop = None
    for begin, end in gaps:
        if start is None or stop is None:
            start, stop = begin, end
        elif begin <= stop + near:
            stop = max(stop, end)
        else:
            yield start, stop
            start, stop = begin, end
    if start is not None and stop is not None:
        yield start, stop


def _colour(sureness: float) -> Colour:
    sureness = min(max(sureness, 0.0), 1.0)
    stops, colours = [stop for stop, _ in _RAMP], np.array([colour for _, colour in _RAMP])
    red, green, blue = (round(float(np.interp(sureness, stops, colours[:, channel]))) for channel in range(3))
    return red, green, blue


def _unit(unit: str) -> str:
    return {"m": "metres", "px": "pixels"}.get(unit, unit)


def _legible(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """A font for a text; without a font of the system for Chinese, its characters are left out."""
    if all(ord(char) < 0x250 or char in "–—…" for char in text):
        return text, _font("", size)
    for name in _WIDE_FONTS:
        font = _font(name, size)
        if font is not None:
            return text, font
    return "".join(char for char in text if ord(char) < 0x250).strip(" ·"), _font("", size)


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> Any:
    if not name:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
