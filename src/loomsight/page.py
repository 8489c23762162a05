"""A report as one HTML file: pictures, tables and charts inside, no network, no script.

A :class:`Page` is filled from top to bottom and turned into text by :meth:`Page.html`. Every text is
escaped, and the page forbids scripts and foreign content to itself, so a file name can do no harm. It
can be mailed, opened from a stick on a PC without internet, read on a phone, and printed.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

import loomsight
from loomsight.files import write_text

Lang: TypeAlias = Literal["en", "zh"]

_WORDS: dict[Lang, dict[str, str]] = {
    "en": {"made by": "Made by loomsight", "threshold": "threshold", "nothing": "nothing to show"},
    "zh": {"made by": "本页由 loomsight 生成，版本", "threshold": "阈值", "nothing": "无数据"},
}
_COLOURS = ("#1f4e79", "#b4531a", "#4b7a33", "#6f4a8e", "#8a6d1b")  # apart for colour-blind eyes
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2")  # and apart on a black-and-white printer
_WIDTH, _HEIGHT = 640, 300  # of a chart, in its own units; 1 unit is a CSS pixel at full width
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 18, 44, 46


@dataclass(frozen=True, slots=True)
class Image:
    """A picture to be put into the page.

    Attributes:
        data: the bytes of a PNG or JPEG file.
        caption: the line below it.
        alt: what it shows, for those who cannot see it; the caption if empty.
    """

    data: bytes
    caption: str = ""
    alt: str = ""

    def __post_init__(self) -> None:
        self.media_type  # noqa: B018  (refuse other bytes where they are given, not when the page is written)

    @property
    def media_type(self) -> str:
        if self.data.startswith(b"\x89PNG\r\n\x1a\n"):
            return "image/png"
        if self.data.startswith(b"\xff\xd8\xff"):
            return "image/jpeg"
        raise ValueError(f"data must be the bytes of a PNG or JPEG file, got {self.data[:8]!r}…")


Cell: TypeAlias = str | int | float | Image | None


class Page:
    """A page that is written from top to bottom.

    Args:
        title: the heading of the page and the name of its window.
        subtitle: one line below it: what, when, from which source.
        lang: the language of the page's own few words, and of the text given to it.
    """

    def __init__(self, title: str, *, subtitle: str = "", lang: Lang = "en") -> None:
        self._title, self._subtitle, self._lang = title, subtitle, lang
        self._parts: list[str] = []

    def heading(self, text: str, *, level: Literal[2, 3] = 2) -> None:
        """A heading; level 2 begins a section, 3 a part of one."""
        self._parts.append(f"<h{level}>{_text(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{_text(text)}</p>")

    def note(self, text: str, *, kind: Literal["good", "info", "warning"] = "info") -> None:
        """A paragraph that must not be missed."""
        self._parts.append(f'<p class="note {kind}">{_text(text)}</p>')

    def figures(
        self, figures: Iterable[tuple[str, str | int | float] | tuple[str, str | int | float, str]]
    ) -> None:
        """A row of key figures: (what, value) or (what, value, a few words more)."""
        cells = []
        for what, value, *more in figures:
            small = f"<small>{_text(more[0])}</small>" if more else ""
            cells.append(f"<div><dt>{_text(what)}</dt><dd>{_number(value)}{small}</dd></div>")
        self._parts.append(f'<dl class="figures">{"".join(cells)}</dl>')

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str = "") -> None:
        """A table; columns of numbers are set to the right, an :class:`Image` stands small in its cell.

        Raises:
            ValueError: a row has not as many cells as the head.
        """
        body = [list(row) for row in rows]
        for row in body:
            if len(row) != len(head):
                raise ValueError(f"a row must have {len(head)} cells like its head, got {len(row)}")
        columns = [_column([row[i] for row in body]) for i in range(len(head))]
        marks = [' class="n"' if number else "" for number, _ in columns]
        lines = ["".join(f'<th scope="col"{m}>{_text(t)}</th>' for t, m in zip(head, marks, strict=True))]
        for cells in zip(*(column for _, column in columns), strict=True):
            line = "".join(f"<td{m}>{cell}</td>" for cell, m in zip(cells, marks, strict=True))
            lines.append(line)
        if not body:
            lines.append(f'<td class="nothing" colspan="{len(head)}">{_WORDS[self._lang]["nothing"]}</td>')
        top, *rest = [f"<tr>{line}</tr>" for line in lines]
        title = f"<caption>{_text(caption)}</caption>" if caption else ""
        inside = f"{title}<thead>{top}</thead><tbody>{''.join(rest)}</tbody>"
        self._parts.append(f'<div class="scroll"><table>{inside}</table></div>')

    def picture(self, image: Image) -> None:
        """One picture over the width of the page, at most at its own size."""
        self._parts.append(_figure(image))

    def grid(self, images: Iterable[Image], *, width: int = 160) -> None:
        """Pictures side by side, as many in a row as fit.

        Args:
            images: the pictures, in order.
            width: the least width of one, CSS pixels.
        """
        cells = "".join(_figure(image) for image in images)
        self._parts.append(f'<div class="grid" style="--least:{int(width)}px">{cells}</div>')

    def line_chart(
        self,
        series: Mapping[str, tuple[ArrayLike, ArrayLike]],
        *,
        x_label: str,
        y_label: str,
        caption: str = "",
    ) -> None:
        """Lines over a common axis, such as a learning curve.

        Args:
            series: name to (x, y), two equally long rows of numbers; a line breaks where one is not finite.
            x_label: what the x axis is, with its unit; y_label: the same for y.
            caption: the line below the chart.
        """
        lines = {name: _points(x, y) for name, (x, y) in series.items()}
        seen = np.concatenate([p[np.isfinite(p).all(axis=1)] for p in lines.values()] or [np.empty((0, 2))])
        if not len(seen):
            self.note(f"{caption or y_label}: {_WORDS[self._lang]['nothing']}")
            return
        axes = _Axes.around(seen[:, 0], np.append(seen[:, 1], 0.0) if seen[:, 1].min() >= 0 else seen[:, 1])
        parts = [axes.grid(x_label, y_label)]
        for points, colour, dash in zip(lines.values(), cycle(_COLOURS), cycle(_DASHES), strict=False):
            parts.append(
                f'<path d="{axes.path(points)}" fill="none" stroke="{colour}" stroke-width="2" '
                f'stroke-dasharray="{dash}" stroke-linejoin="round" stroke-linecap="round"/>'
            )
        self._chart([*parts, _legend(lines, _DASHES)], caption, f"{y_label} / {x_label}")

    def histogram(
        self,
        groups: Mapping[str, ArrayLike],
        *,
        x_label: str,
        y_label: str,
        threshold: float | None = None,
        bins: int = 40,
        log: bool = False,
        caption: str = "",
    ) -> None:
        """How often each value occurs, group over group, with a line at the threshold.

        Args:
            groups: name to values; values that are not finite are left out.
            x_label: what the values are; y_label: what is counted.
            threshold: where to draw the line, in units of the values.
            bins: how many bars, over the range of all groups and the threshold.
            log: draw counts on a logarithmic axis, log10(1 + count), where one bar dwarfs the rest.
            caption: the line below the chart.
        """
        values = {name: _finite(group) for name, group in groups.items()}
        seen = np.concatenate([*values.values(), [] if threshold is None else [threshold]])
        if not any(map(len, values.values())):
            self.note(f"{caption or x_label}: {_WORDS[self._lang]['nothing']}")
            return
        edges = np.linspace(*_range(seen), bins + 1)
        counts = {name: np.histogram(group, edges)[0].astype(float) for name, group in values.items()}
        if log:
            counts = {name: np.log10(1 + count) for name, count in counts.items()}
        axes = _Axes.around(edges, np.concatenate([[0.0], *counts.values()]), counted="log" if log else "yes")
        parts = [axes.grid(x_label, y_label)]
        for count, colour, fill in zip(counts.values(), cycle(_COLOURS), cycle((0.18, 0.38)), strict=False):
            steps = np.stack(
                [np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(count, 2), [0.0]])], axis=1
            )
            parts.append(
                f'<path d="{axes.path(steps)}Z" fill="{colour}" fill-opacity="{fill}" '
                f'stroke="{colour}" stroke-width="1.5" stroke-linejoin="round"/>'
            )
        if threshold is not None:
            parts.append(axes.mark(threshold, f"{_WORDS[self._lang]['threshold']} {_number(threshold)}"))
        self._chart([*parts, _legend(values, ("",))], caption, f"{y_label} / {x_label}")

    def _chart(self, parts: Sequence[str], caption: str, alt: str) -> None:
        below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure class="chart"><div class="scroll"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{_text(caption or alt)}">{"".join(parts)}</svg></div>{below}</figure>'
        )

    def html(self) -> str:
        """The whole page as text."""
        language = {"en": "en", "zh": "zh-Hans"}[self._lang]
        subtitle = f'<p class="subtitle">{_text(self._subtitle)}</p>' if self._subtitle else ""
        body = "\n".join(self._parts)
        footer = f"{_WORDS[self._lang]['made by']} {_text(loomsight.__version__)}"
        return (
            f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self._title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
            f"<header><h1>{_text(self._title)}</h1>{subtitle}</header>\n"
            f"<main>\n{body}\n</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page to ``path``, atomically.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        write_text(path, self.html())


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where values stand in a chart."""

    x_ticks: list[float]
    y_ticks: list[float]
    x_range: tuple[float, float]
    counted: str = ""

    @classmethod
    def around(cls, x: ArrayLike, y: ArrayLike, counted: str = "") -> _Axes:
        xs, ys = np.asarray(x, float), np.asarray(y, float)
        low, high = _range(xs)
        x_ticks = [tick for tick in _ticks(low, high, 8) if low <= tick <= high]
        if counted == "log":
            powers = range(1, max(1, math.ceil(float(ys.max()))) + 1)
            y_ticks = [math.log10(1 + 10**power) for power in powers]
            return cls(x_ticks, [0.0, *y_ticks], (low, high), counted)
        y_ticks = _ticks(*_range(ys), 5)
        if counted:
            y_ticks = [tick for tick in y_ticks if tick == int(tick)]
        return cls(x_ticks, y_ticks, (low, high), counted)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def path(self, points: NDArray[np.float64]) -> str:
        """An SVG path through points (n, 2), broken where one is not finite."""
        words, pen = [], "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            words.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        return "".join(words)

    def grid(self, x_label: str, y_label: str) -> str:
        base = self.y(self.y_ticks[0])
        parts = []
        for tick in self.y_ticks:
            label = _number(round(10**tick - 1)) if self.counted == "log" else _number(tick)
            y = self.y(tick)
            parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(f'<path class="axis" d="M{x:.1f} {base:.1f}v5"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 19:.1f}" text-anchor="middle">{_number(tick)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {base:.1f}H{_WIDTH - _RIGHT}"/>')
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - 6
        parts.append(f'<text class="label" x="4" y="{_TOP - 20}">{_text(y_label)}</text>')
        parts.append(
            f'<text class="label" x="{right}" y="{bottom}" text-anchor="end">{_text(x_label)}</text>'
        )
        return "".join(parts)

    def mark(self, value: float, label: str) -> str:
        """A vertical line at ``value`` with its name on the side where there is room."""
        x = self.x(value)
        left = x > _WIDTH * 0.7
        side = f'x="{x - 6:.1f}" text-anchor="end"' if left else f'x="{x + 6:.1f}"'
        return (
            f'<path class="mark" d="M{x:.1f} {_TOP - 6}V{self.y(self.y_ticks[0]):.1f}"/>'
            f'<text class="marked" {side} y="{_TOP + 4}">{_text(label)}</text>'
        )


def _legend(names: Iterable[str], dashes: Sequence[str]) -> str:
    """Names with their colours, above the chart, from the right."""
    parts, x = [], float(_WIDTH - _RIGHT)
    for name, colour, dash in reversed(list(zip(names, cycle(_COLOURS), cycle(dashes), strict=False))):
        x -= 7.2 * sum(2 if ord(char) > 0x2E7F else 1 for char in name)
        parts.append(f'<text x="{x:.1f}" y="16">{_text(name)}</text>')
        parts.append(
            f'<path d="M{x - 30:.1f} 12h24" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
        )
        x -= 46
    return "".join(parts)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """From the least to the greatest value, or around them where they are one and the same."""
    low, high = float(values.min()), float(values.max())
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return low, high
    middle, half = (low + high) / 2, max(abs(low), abs(high)) / 100 or 0.5
    return middle - half, middle + half


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, about ``count`` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))  # 3 × 0.1 is 0.30000000000000004
    return [round(i * step, digits) for i in range(first, last + 1)]


def _points(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    xs, ys = np.asarray(x, float).ravel(), np.asarray(y, float).ravel()
    if len(xs) != len(ys):
        raise ValueError(f"x and y must be equally long, got {len(xs)} and {len(ys)}")
    return np.stack([xs, ys], axis=1)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = np.asarray(values, float).ravel()
    return flat[np.isfinite(flat)]


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _figure(image: Image) -> str:
    below = f"<figcaption>{_text(image.caption)}</figcaption>" if image.caption else ""
    return f"<figure>{_img(image)}{below}</figure>"


def _img(image: Image) -> str:
    data = base64.b64encode(image.data).decode("ascii")
    return f'<img alt="{_text(image.alt or image.caption)}" src="data:{image.media_type};base64,{data}">'


def _column(cells: Sequence[Cell]) -> tuple[bool, list[str]]:
    """Whether a column is one of numbers, and its cells as HTML; its numbers have equally many decimals."""
    if any(isinstance(cell, str | Image) for cell in cells) or all(cell is None for cell in cells):
        return False, [_img(cell) if isinstance(cell, Image) else _number(cell) for cell in cells]
    numbers = [math.nan if cell is None or isinstance(cell, str | Image) else float(cell) for cell in cells]
    decimals = max(len(_number(number).partition(".")[2]) for number in numbers)
    if decimals > 4:  # a column of very small numbers keeps its powers of ten
        return True, [_number(cell) for cell in numbers]
    return True, [_fixed(cell, decimals) for cell in numbers]


def _fixed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", "\u2212")


def _number(value: str | int | float | None) -> str:
    """A value as it is read: text as it is, numbers with three digits that count, thousands apart."""
    if value is None or isinstance(value, str):
        return _text(value or "")
    if isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, int) or value == int(value) or abs(value) >= 1000:
        return _fixed(value, 0)
    return f"{value:.3g}".replace("-", "\u2212") if abs(value) >= 1e-4 else f"{value:.1e}"


def _text(text: str) -> str:
    """Text that is safe between tags and in quotes; what no page may hold is shown, not dropped."""
    whole = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", whole), quote=True)
