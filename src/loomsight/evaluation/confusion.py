"""Which type of defect is called what: counts, and the picture of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from loomsight.evaluation.boxes import touching
from loomsight.fabric.types import UNKNOWN, Picture, Region

MISSED = "missed"
_CELL, _LINE = 30, 15  # pixels
_INK, _PALE, _DEEP = (30, 34, 40), np.array([247, 249, 251]), np.array([24, 84, 150])
_WRONG, _SILENT = np.array([192, 70, 40]), np.array([128, 132, 140])


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of true types against what they were called.

    Attributes:
        true: names of the rows; said: of the columns, at the end "unknown" and "missed" if there are any.
        counts: int64 (rows, columns).
    """

    true: tuple[str, ...]
    said: tuple[str, ...]
    counts: Int[NDArray[np.int64], "n m"]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Confusion:
        """From (true, said) of each defect; ``said`` is :data:`MISSED` where nothing was found."""
        listed = list(pairs)
        true = tuple(sorted({name for name, _ in listed}))
        last = [name for name in (UNKNOWN, MISSED) if any(said == name for _, said in listed)]
        said = tuple(sorted({*true, *(name for _, name in listed)} - set(last))) + tuple(last)
        counts = np.zeros((len(true), len(said)), np.int64)
        for row, column in listed:
            counts[true.index(row), said.index(column)] += 1
        return cls(true, said, counts)

    @property
    def right(self) -> float | None:
        """The share that is called what it is; None where there is none."""
        if not self.counts.sum():
            return None
        same = sum(int(self.counts[k, self.said.index(name)]) for k, name in enumerate(self.true))
        return same / int(self.counts.sum())

    def draw(self) -> Picture:
        """A table, uint8 HWC RGB: rows are true types, shades shares of a row; red is wrong, grey silent."""
        font = ImageFont.load_default(12)
        rows, columns = ([_plain(name) for name in names] for names in (self.true, self.said))
        left, head = (
            12 + max((int(font.getlength(n)) for n in names), default=0) for names in (rows, columns)
        )
        size = (left + _CELL * len(self.said) + 12, head + _CELL * len(self.true) + 12)
        sheet = Image.new("RGB", size, "white")
        for column, name in enumerate(columns):
            label = Image.new("RGB", (head, _LINE), "white")
            ImageDraw.Draw(label).text((2, 0), name, _INK, font)
            sheet.paste(label.rotate(90, expand=True), (left + _CELL * column + (_CELL - _LINE) // 2, 0))
        draw = ImageDraw.Draw(sheet)
        for row, name in enumerate(self.true):
            y = head + _CELL * row
            draw.text((left - 6, y + _CELL // 2), rows[row], _INK, font, anchor="rm")
            total = max(1, int(self.counts[row].sum()))
            for column, other in enumerate(self.said):
                count = int(self.counts[row, column])
                share, x = count / total, left + _CELL * column
                full = _DEEP if other == name else _SILENT if other in (UNKNOWN, MISSED) else _WRONG
                colour = _PALE + share * (full - _PALE)
                red, green, blue = (int(value) for value in colour)
                draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), (red, green, blue))
                if count:
                    ink = "white" if share > 0.5 else _INK
                    draw.text((x + _CELL // 2 - 1, y + _CELL // 2 - 1), str(count), ink, font, anchor="mm")
        return np.asarray(sheet, np.uint8)


def _plain(name: str) -> str:
    """As the font has it: without accents."""
    return unicodedata.normalize("NFD", name).encode("ascii", "ignore").decode()


def pair_types(
    found: Sequence[Region], boxes: Float[NDArray[np.float32], "n 4"], types: Sequence[str]
) -> list[tuple[str, str]]:
    """What each true defect of a picture was called: the surest region that touches it, or missed.

    Args:
        found: regions; boxes: of the true defects, xyxy; types: theirs.
    """
    pairs = []
    for touched, name in zip(touching(boxes, found), types, strict=True):
        on_it = [region for region, touches in zip(found, touched, strict=True) if touches]
        best = max(on_it, key=lambda region: region.score, default=None)
        pairs.append((name, MISSED if best is None else best.type))
    return pairs
