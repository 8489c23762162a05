from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.fabric.types import Picture
from loomsight.inspection.rollmap import CLOTH, HEIGHT, THREAD, WIDTH, Mark, RollMap, column_step, ticks

# Where the band lies on the picture: x along the roll, y across it.
LEFT, RIGHT, TOP, BOTTOM = 100, 1564, 142, 412
COLUMNS_TOP, FLOOR = 462, 572


def roll(length: float = 100.0, width: float = 1000.0, unit: str = "m", title: str = "Roll map") -> RollMap:
    side = "mm" if unit == "m" else "px"
    return RollMap(title, "subtitle", length, width, unit, side, threshold=0.5)


def strong(picture: Picture) -> np.ndarray:
    """Where the picture is a mark's colour: red or orange, and not cloth, ink or paper."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return (red - blue > 60) & (red > 110) & (red - green > 40)


@settings(max_examples=10)
@given(along=st.floats(3, 97), across=st.floats(30, 970), score=st.floats(0.5, 1))
def test_a_defect_stands_at_its_place(along: float, across: float, score: float) -> None:
    picture = roll().draw([Mark(along, across, 10.0, score)], [])
    ys, xs = np.nonzero(strong(picture)[TOP : BOTTOM + 1, LEFT : RIGHT + 1])
    assert abs(xs.mean() / (RIGHT - LEFT) * 100 - along) < 0.3
    assert abs(ys.mean() / (BOTTOM - TOP) * 1000 - across) < 12


def test_a_surer_defect_is_darker_and_a_longer_one_larger() -> None:
    marks = [Mark(20, 500, 10, 0.55), Mark(50, 500, 10, 0.99), Mark(80, 500, 400, 0.99)]
    picture = roll().draw(marks, [])
    band = strong(picture)[TOP:BOTTOM]
    unsure, sure, long = (
        band[:, LEFT + 1464 * a // 100 - 40 : LEFT + 1464 * a // 100 + 40] for a in (20, 50, 80)
    )
    assert long.sum() > 2 * sure.sum()
    light = picture[TOP:BOTTOM].astype(int).sum(axis=2)
    brightness = [
        light[:, LEFT + 1464 * a // 100 - 40 : LEFT + 1464 * a // 100 + 40][where].mean()
        for a, where in ((20, unsure), (50, sure))
    ]
    assert brightness[0] > brightness[1] + 100


def test_a_bar_lies_on_the_map_as_it_lies_on_the_cloth() -> None:
    weftways = Mark(50, 500, 1000, 0.99, extent=(0.02, 1000))
    warpways = Mark(50, 900, 20_000, 0.99, extent=(20, 3))
    for mark, wide, high in ((weftways, 8, 270), (warpways, 293, 8)):
        ys, xs = np.nonzero(strong(roll().draw([mark], []))[TOP - 8 : BOTTOM + 8, LEFT:RIGHT])
        assert np.ptp(xs) == pytest.approx(wide, abs=4)
        assert np.ptp(ys) == pytest.approx(high, abs=4)
    # of two in one place the one that is drawn longest, and no field of both their sides
    both = [replace(warpways, across=500), replace(weftways, extent=(0.02, 350))]
    for marks in (both, both[::-1]):
        ys, xs = np.nonzero(strong(roll().draw(marks, []))[TOP - 8 : BOTTOM + 8, LEFT:RIGHT])
        assert np.ptp(xs) == pytest.approx(293, abs=4)
        assert np.ptp(ys) == pytest.approx(8, abs=4)
    spot = Mark(50, 500, 20, 0.99, extent=(0.02, 20))  # too small for its own shape to be seen
    ys, xs = np.nonzero(strong(roll().draw([spot], []))[TOP:BOTTOM, LEFT:RIGHT])
    assert np.ptp(xs) == pytest.approx(np.ptp(ys), abs=2)


def test_the_surest_of_a_place_is_on_top() -> None:
    marks = [Mark(50, 500, 10, 0.99), Mark(50, 500, 10, 0.51)]
    one = roll().draw(marks, [])
    other = roll().draw(marks[::-1], [])
    assert np.array_equal(one, other)
    assert one[TOP + 135, (LEFT + RIGHT) // 2].astype(int).sum() < 300


def test_what_was_not_inspected_is_hatched_in_band_and_columns() -> None:
    plain, gapped = roll().draw([], []), roll().draw([], [(40.0, 50.0)])
    changed = (plain != gapped).any(axis=2)
    columns = np.flatnonzero(changed[TOP + 5 : BOTTOM - 5].any(axis=0))
    assert abs(columns[0] - (LEFT + 0.4 * 1464)) < 3
    assert abs(columns[-1] - (LEFT + 0.5 * 1464)) < 3
    assert changed[COLUMNS_TOP + 3 : FLOOR - 3, columns[0] : columns[-1]].mean() > 0.1
    lost = roll().draw([], [(40.0, 40.001)])  # a single lost picture of a long roll is still seen
    assert (lost != plain).any(axis=2).sum() > 300


def test_columns_count_the_defects_of_their_stretch() -> None:
    marks = [Mark(10.5, 500, 5, 0.9)] * 4 + [Mark(90.5, 500, 5, 0.9)]
    columns = roll().draw(marks, [])[COLUMNS_TOP - 2 : FLOOR]
    is_column = np.abs(columns.astype(int) - (70, 91, 122)).sum(axis=2) < 30
    heights = is_column.sum(axis=0)
    high, low = (heights[LEFT + round(14.64 * at)] for at in (10.5, 90.5))
    assert high == pytest.approx(4 * low, abs=8)  # the axis hides a few pixels of each
    assert heights[LEFT + round(14.64 * 50.5)] == 0


def test_a_clean_roll_is_clean() -> None:
    picture = roll().draw([], [])
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert picture.dtype == np.uint8
    band = picture[TOP + 4 : BOTTOM - 4, LEFT + 3 : RIGHT - 3].reshape(-1, 3)
    assert not strong(picture[TOP:BOTTOM]).any()
    assert min(CLOTH[2], THREAD[2]) - 30 < band.mean() < 255


@pytest.mark.parametrize("count", [1, 6_000])
def test_any_number_of_defects_is_drawn(count: int) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 1, (count, 3))
    marks = (Mark(1300 * a, 1600 * b, 20 * c, 0.5 + c / 2, None) for a, b, c in places)
    assert strong(roll(1300, 1600).draw(marks, []))[TOP:BOTTOM].any()


def test_marks_beyond_the_edges_are_drawn_at_the_edge() -> None:
    edges = [Mark(-1, -5, 1, 0.9, 1), Mark(100.5, 1001, 1, 0.9, 2), Mark(50, 500, 1e9, 1.5, 3)]
    assert strong(roll().draw(edges, [(-1, 2), (99, 200)]))[TOP - 8 : BOTTOM + 8].any()


def test_the_title_of_a_chinese_fabric_is_no_row_of_boxes() -> None:
    """With a font for it the name is written, without one it is left out; never drawn as empty boxes."""
    named = roll(title="Roll map · 斜纹布").draw([], [])
    other = roll(title="Roll map · 平纹布").draw([], [])
    bare = roll(title="Roll map").draw([], [])
    assert (named == bare).all() or (named != other).any()


@given(length=st.floats(1e-3, 1e7), at_most=st.integers(2, 12))
def test_ticks_are_even_round_and_within(length: float, at_most: int) -> None:
    found = ticks(length, at_most)
    assert found[0] == 0
    assert found[-1] <= length * (1 + 1e-6)
    assert len(found) <= at_most + 1
    if len(found) > 2:
        assert np.allclose(np.diff(found), found[1], rtol=1e-6)
        mantissa = found[1] / 10.0 ** np.floor(np.log10(found[1]) + 1e-9)
        assert min(abs(mantissa - each) for each in (1, 2, 5, 10)) < 1e-6


def test_a_roll_has_a_length() -> None:
    with pytest.raises(ValueError, match="above 0"):
        ticks(0, 10)


@given(length=st.floats(0.01, 1e6))
def test_columns_are_few_enough_to_see(length: float) -> None:
    assert 1 <= length / column_step(length, "m") <= 241
    assert 1 <= length / column_step(length, "px") <= 101
