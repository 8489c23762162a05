"""Contact sheets: every picture in its own pixels, its outline beside it, and nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.fabric.types import Mask, Picture
from loomsight.synthesis.sheet import OUTLINE, contact_sheet


def picture(seed: int, side: int = 64) -> Picture:
    return np.random.default_rng(seed).integers(0, 200, (side, side, 3), np.uint8)


def mask(side: int = 64) -> Mask:
    found = np.zeros((side, side), bool)
    found[20:30, 24:50] = True
    return found


def held(sheet: Picture, part: Picture) -> list[tuple[int, int]]:
    """Where a sheet shows a picture, pixel for pixel: top and left of every place."""
    height, width = part.shape[:2]
    corners = np.argwhere((sheet == part[0, 0]).all(axis=2))
    return [
        (int(y), int(x)) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], part)
    ]


def enlarged(image: Picture, zoom: int) -> Picture:
    return np.repeat(np.repeat(image, zoom, 0), zoom, 1)


def test_every_picture_is_shown_in_its_own_pixels_row_by_row() -> None:
    rows = [("real", [(picture(k), mask()) for k in range(3)]), ("stage 1", [(picture(9), mask())])]
    sheet = contact_sheet(rows, columns=4, title="Defects")
    assert sheet.dtype == np.uint8
    places = [held(sheet, enlarged(image, 2)) for _, pictures in rows for image, _ in pictures]
    assert all(len(place) == 1 for place in places)
    (a,), (b,), (c,), (d,) = places
    assert a[0] == b[0] == c[0] < d[0]
    assert d[1] == a[1] < b[1] < c[1]


def test_the_outline_lies_below_the_picture_and_hides_nothing_of_the_defect() -> None:
    image = picture(0)
    sheet = contact_sheet([("made", [(image, mask())])])
    ((top, left),) = held(sheet, enlarged(image, 2))
    below = sheet[top + 130 : top + 258, left : left + 128]
    red = (below == OUTLINE).all(axis=2)
    large = enlarged(mask(), 2)
    assert np.array_equal(below[large], enlarged(image, 2)[large])
    assert (below[~red] == enlarged(image, 2)[~red]).all()
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 61, 46, 101)


def test_good_cloth_is_shown_once() -> None:
    sheet = contact_sheet([("good", [(picture(1), None)])])
    assert len(held(sheet, enlarged(picture(1), 2))) == 1
    assert not (sheet == OUTLINE).all(axis=2).any()


def test_a_long_row_goes_on_in_the_next_line_and_an_empty_one_says_so() -> None:
    pictures = [(picture(k), mask()) for k in range(7)]
    sheet = contact_sheet([("real", pictures), ("diffusion", [])], columns=3)
    tops = [held(sheet, enlarged(image, 2))[0][0] for image, _ in pictures]
    assert len(set(tops)) == 3
    assert tops == sorted(tops)
    without = contact_sheet([("real", pictures)], columns=3)
    assert sheet.shape[0] > without.shape[0]
    assert (sheet[without.shape[0] :] < 128).any()  # something is written there


def test_of_a_large_picture_the_square_around_its_defect_is_shown() -> None:
    image, own = picture(2, 400), np.zeros((400, 400), bool)
    own[350:360, 30:40] = True
    sheet = contact_sheet([("real", [(image, own)])])
    assert held(sheet, np.ascontiguousarray(image[350:360, 30:40]))


@settings(max_examples=20)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    cell=st.sampled_from((64, 100, 128)),
    name=st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=40),
)
def test_any_picture_and_any_name_fit(height: int, width: int, cell: int, name: str) -> None:
    grey = np.full((height, width), 90, np.uint8)
    own = np.zeros((height, width), bool)
    own[height // 2, width // 3] = True
    sheet = contact_sheet([(name, [(grey, own)] * 2), ("real\n2 of 40", [])], cell=cell, title=name)
    border = np.concatenate(
        [sheet[:10].reshape(-1, 3), sheet[:, :10].reshape(-1, 3), sheet[:, -10:].reshape(-1, 3)]
    )
    assert (border > 200).all()  # nothing runs over the edge
    assert ((sheet == 90).all(axis=2)).any()


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        contact_sheet([])
    with pytest.raises(ValueError, match="needs rows"):
        contact_sheet([("real", [])], columns=0)
