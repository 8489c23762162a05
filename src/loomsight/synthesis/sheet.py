"""Contact sheets: rows of defects side by side, each once as it is and once with its mask's outline.

The eye judges a generator faster than any figure does, if it sees real and made defects at one size, in
their own pixels, and the mask beside the picture and not upon it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from loomsight.fabric.images import to_rgb
from loomsight.fabric.types import Mask, Picture

Row: TypeAlias = tuple[str, Sequence[tuple[Picture, Mask | None]]]
"""What a row is called, after a line break a word on it (a reason, a count); and its pictures with masks."""

OUTLINE = (226, 32, 60)  # that of every report
_INK, _SOFT, _RULE, _PAPER = (28, 36, 48), (91, 102, 117), (223, 227, 232), (255, 255, 255)
_EDGE, _GAP, _GROUP = 24, 8, 20  # pixels: around the sheet, between cells, between rows
_TITLE, _LABEL, _NOTE = 26, 17, 14  # pixels: sizes of text


def contact_sheet(
    rows: Sequence[Row], *, columns: int = 10, cell: int = 128, title: str = "", note: str = ""
) -> Picture:
    """Draw rows of pictures, each picture above the same with the outline of its mask.

    Args:
        rows: a name and pictures, uint8 HW or HWC RGB, with bool HW masks; None for good cloth, which is
            shown once. A row with more pictures than columns goes on in a second line; one without any
            says so.
        columns: pictures in a line.
        cell: pixels a side. Pictures are enlarged by whole numbers and never blurred; of one that is
            larger, the square around its defect is shown.
        title, note: above and below the sheet.

    Returns:
        uint8 HWC RGB.

    Raises:
        ValueError: there is no row, no column, or a cell smaller than 16 pixels.
    """
    if not rows or columns < 1 or cell < 16:
        raise ValueError(f"a sheet needs rows, columns and cells, got {len(rows)}, {columns}, {cell}")
    left = _EDGE + max(_width(line, _LABEL) for name, _ in rows for line in name.split("\n")) + _GROUP
    lines = [
        (name if start == 0 else "", list(pictures[start : start + columns]))
        for name, pictures in rows
        for start in range(0, max(len(pictures), 1), columns)
    ]
    heights = [_height(pictures, cell) for _, pictures in lines]
    top = _EDGE + (_TITLE + _GROUP if title else 0)
    bottom = _EDGE + (_NOTE + _GROUP if note else 0)
    widest = max(len(pictures) for _, pictures in lines)
    width = left + max(widest, 1) * (cell + _GAP) - _GAP + _EDGE
    width = max(width, 2 * _EDGE + max(_width(title, _TITLE), _width(note, _NOTE)))
    height = top + sum(heights) + _GROUP * (len(lines) - 1) + bottom
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_EDGE, _EDGE), title, fill=_INK, font=_font(_TITLE))
    y = top
    for number, ((name, pictures), tall) in enumerate(zip(lines, heights, strict=True)):
        if name and number:
            pen.line([(_EDGE, y - _GROUP // 2), (width - _EDGE, y - _GROUP // 2)], fill=_RULE)
        for k, line in enumerate(name.split("\n")):
            pen.text((_EDGE, y + k * (_LABEL + 6)), line, fill=_SOFT if k else _INK, font=_font(_LABEL))
        if not pictures:
            pen.text((left, y), "none", fill=_SOFT, font=_font(_LABEL))
        for k, (picture, mask) in enumerate(pictures):
            x = left + k * (cell + _GAP)
            shown, outlined = _cells(picture, mask, cell)
            sheet.paste(Image.fromarray(shown), (x, y))
            if outlined is not None:
                sheet.paste(Image.fromarray(outlined), (x, y + cell + 2))
        y += tall + _GROUP
    if note:
        pen.text((_EDGE, height - _EDGE - _NOTE), note, fill=_SOFT, font=_font(_NOTE))
    return np.asarray(sheet)


def _height(pictures: Sequence[tuple[Picture, Mask | None]], cell: int) -> int:
    if not pictures:
        return 2 * (_LABEL + 6)
    return 2 * cell + 2 if any(mask is not None for _, mask in pictures) else cell


def _cells(picture: Picture, mask: Mask | None, cell: int) -> tuple[Picture, Picture | None]:
    """A picture as large as a cell, and the same with its mask's outline."""
    image = to_rgb(picture)
    window = _window(image.shape[:2], mask, cell)
    image = image[window]
    zoom = max(1, cell // max(image.shape[:2]))
    shown = _centred(_enlarged(image, zoom), cell)
    if mask is None:
        return shown, None
    view = _enlarged(image, zoom)
    # One pixel outside of the mask, so that the line hides nothing of the defect.
    around = cv2.dilate(_enlarged(mask[window].astype(np.uint8), zoom), np.ones((5, 5), np.uint8))
    lines, _ = cv2.findContours(around, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, lines, -1, OUTLINE, 1)
    return shown, _centred(view, cell)


def _window(shape: tuple[int, ...], mask: Mask | None, cell: int) -> tuple[slice, slice]:
    """All of a picture, or where it is larger than a cell, the square around its defect."""
    middle = [length // 2 for length in shape]
    if mask is not None and mask.any():
        middle = [int(places.mean()) for places in np.nonzero(mask)]
    starts = [max(0, min(at - cell // 2, length - cell)) for at, length in zip(middle, shape, strict=True)]
    return slice(starts[0], starts[0] + cell), slice(starts[1], starts[1] + cell)


def _enlarged(image: Picture, zoom: int) -> Picture:
    return np.ascontiguousarray(np.repeat(np.repeat(image, zoom, 0), zoom, 1))


def _centred(image: Picture, cell: int) -> Picture:
    """In the middle of a cell of paper."""
    full = np.full((cell, cell, 3), 255, np.uint8)
    top, left = ((cell - length) // 2 for length in image.shape[:2])
    full[top : top + image.shape[0], left : left + image.shape[1]] = image
    return full


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _width(text: str, size: int) -> int:
    return int(_font(size).getlength(text)) + 1
