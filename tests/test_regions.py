"""Regions of a score map: where they are, how large, how long, and what a gap does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loomsight.fabric.regions import Grouping, faint_pixels, find_regions, label_parts, label_regions


def test_a_region_has_its_box_area_length_and_highest_score():
    score = np.zeros((40, 60), np.float32)
    score[10:13, 20:50] = 0.6
    score[11, 33] = 0.9
    (region,) = find_regions(score, 0.5)
    assert region.box == (20, 10, 50, 13)
    assert region.area == 90
    assert region.length == pytest.approx(30)
    assert region.score == pytest.approx(0.9)


def test_a_thread_at_an_angle_has_its_true_length():
    score = np.zeros((100, 100), np.float32)
    for step in range(60):
        score[10 + step, 20 + step] = 1
    (region,) = find_regions(score, 0.5)
    assert region.length == pytest.approx(60 * 2**0.5, rel=0.02)


def test_the_threshold_itself_counts_and_nothing_below_it():
    score = np.array([[0.5, 0.0, 0.49]], np.float32)
    assert [region.box for region in find_regions(score, 0.5)] == [(0, 0, 1, 1)]
    assert find_regions(score, 0.51) == []


def test_a_broken_thread_is_one_region_when_its_gaps_are_merged():
    score = np.zeros((20, 90), np.float32)
    score[10, 5:25] = score[10, 28:50] = score[13, 53:80] = 0.8  # gaps of 3 pixels, the last one also down
    assert len(find_regions(score, 0.5)) == 3
    assert len(find_regions(score, 0.5, Grouping(merge_gap=2))) == 3
    (region,) = find_regions(score, 0.5, Grouping(merge_gap=3))
    assert region.box == (5, 10, 80, 14)
    assert region.area == 20 + 22 + 27


def test_small_regions_are_left_out_after_merging():
    score = np.zeros((20, 20), np.float32)
    score[2, 2] = score[2, 4] = score[15, 15] = 1
    assert [region.area for region in find_regions(score, 0.5, Grouping(2, 1))] == [2]


def test_a_faint_stretch_joins_the_pieces_of_a_thread_and_is_no_part_of_it():
    score = np.zeros((20, 90), np.float32)
    score[10, 5:80] = 0.2
    score[10, 5:25] = score[10, 60:80] = 0.8
    score[3, 5:80] = 0.2  # as faint, and nothing in it is an alarm
    assert len(find_regions(score, 0.5, Grouping(faint=0.3))) == 2
    (region,) = find_regions(score, 0.5, Grouping(faint=0.2))
    assert region.box == (5, 10, 80, 11)
    assert (region.area, region.length, region.score) == (40, 75.0, np.float32(0.8))


def test_faint_pixels_do_not_leap_over_the_gap_that_pieces_may_have():
    score = np.zeros((20, 90), np.float32)
    score[10, 5:25] = score[10, 60:80] = 0.8
    score[10, 25:40] = score[10, 43:60] = 0.2  # sound cloth between
    assert len(find_regions(score, 0.5, Grouping(merge_gap=5, faint=0.2))) == 2


def test_pieces_that_are_small_alone_are_a_region_together():
    score = np.full((5, 30), 0.2, np.float32)
    score[2, 3:6] = score[2, 20:22] = 0.8
    assert find_regions(score, 0.5, Grouping(min_area=5)) == []
    assert [one.area for one in find_regions(score, 0.5, Grouping(min_area=5, faint=0.2))] == [5]


def test_a_thread_stays_a_region_of_its_own_in_a_picture_that_is_strange_all_over():
    rng = np.random.default_rng(3)
    score = rng.uniform(0.3, 0.4, (100, 200)).astype(np.float32)  # another lot: all of it is faint
    score[50, 20:60] = score[50, 100:120] = 0.9
    score[50, 60:100] = 0.6
    score[10:12, 150:152] = 0.9
    assert faint_pixels(score, 0.2).mean() == pytest.approx(0.1, abs=0.001)
    found = find_regions(score, 0.7, Grouping(min_area=4, faint=0.2))
    assert [region.box for region in found] == [(150, 10, 152, 12), (20, 50, 120, 51)]


def test_a_threshold_below_what_is_faint_joins_nothing_more():
    score = np.zeros((5, 30), np.float32)
    score[2, 3:6] = score[2, 20:22] = 0.3
    assert find_regions(score, 0.2, Grouping(faint=0.25)) == find_regions(score, 0.2)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (7, 13), (260, 370)])
def test_where_a_defect_lies_in_the_picture_changes_nothing_of_it(top: int, left: int) -> None:
    score = np.zeros((300, 450), np.float32)
    score[top + 5, left : left + 20] = score[top + 7, left + 24 : left + 60] = 0.9
    score[top + 6, left + 20 : left + 24] = 0.2  # what joins both
    score[top + 30 : top + 33, left + 70 : left + 72] = 0.8
    moved = find_regions(score, 0.5, Grouping(merge_gap=1, faint=0.1))
    boxes = [(x0 - left, y0 - top, x1 - left, y1 - top) for x0, y0, x1, y1 in (own.box for own in moved)]
    assert boxes == [(0, 5, 60, 8), (70, 30, 72, 33)]
    assert [own.area for own in moved] == [56, 6]
    count, labels = label_regions(score, 0.5, Grouping(merge_gap=1, faint=0.1))
    assert count == 2
    assert np.array_equal(labels > 0, score >= 0.5)


def test_regions_come_in_reading_order():
    score = np.zeros((30, 30), np.float32)
    for y, x in [(20, 3), (5, 25), (5, 2), (12, 14)]:
        score[y, x] = 1
    assert [region.box[:2] for region in find_regions(score, 0.5)] == [(2, 5), (25, 5), (14, 12), (3, 20)]


def parts_by_hand(mask, gap):
    """Pixels at most gap + 1 rows and columns apart belong together."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            part.add((y, x))
            near = {other for other in left if max(abs(other[0] - y), abs(other[1] - x)) <= gap + 1}
            left -= near
            edge.extend(near)
        parts.append(part)
    return parts


def box_by_hand(part):
    ys, xs = [y for y, _ in part], [x for _, x in part]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


LEVELS = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.sampled_from([0, 0.25, 0.75, 0.875]),
)


@given(LEVELS, st.integers(0, 2), st.integers(1, 3))
def test_labels_are_those_of_pieces_and_of_what_joins_them(score, gap, least):
    """Pieces of one faint part are one, and so is what these share: until nothing changes."""
    above = [{(int(y), int(x)) for y, x in part} for part in parts_by_hand(score >= 0.5, gap)]
    faint = [{(int(y), int(x)) for y, x in part} for part in parts_by_hand(faint_pixels(score, 0.25), 0)]
    groups = list(above)
    for way in faint:
        met = [group for group in groups if group & way]
        if met:
            groups = [group for group in groups if not group & way] + [set().union(*met)]
    groups = [group for group in groups if len(group) >= least]
    count, labels = label_regions(score, 0.5, Grouping(least, gap, 0.25))
    assert count == len(groups) == labels.max(initial=0)
    assert {frozenset(zip(*np.nonzero(labels == number), strict=True)) for number in range(1, count + 1)} == {
        frozenset(group) for group in groups
    }


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.integers(0, 3))
def test_every_pixel_is_in_the_region_it_belongs_to(mask, gap):
    expected = parts_by_hand(mask, gap)
    count, labels = label_parts(mask, gap)
    assert count == len(expected)
    assert np.array_equal(labels > 0, mask)
    assert all(len({int(labels[place]) for place in part}) == 1 for part in expected)
    regions = find_regions(mask.astype(np.float32), 0.5, Grouping(merge_gap=gap))
    assert sorted((region.area, region.box) for region in regions) == sorted(
        (len(part), box_by_hand(part)) for part in expected
    )


def test_a_map_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="HW"):
        find_regions(np.zeros((3, 4, 1), np.float32), 0.5)
