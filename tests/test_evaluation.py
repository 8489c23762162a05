"""Figures against slow, plain reference computations; thresholds against new cloth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.errors import DatasetError, UsageError
from loomsight.evaluation.compare import paired_difference
from loomsight.evaluation.operating_point import (
    LOWEST,
    AlarmRate,
    alarm_thresholds,
    joined_through_faint,
    set_operating_point,
)
from loomsight.evaluation.pixels import PixelScores, auroc, average_precision
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.regions import Grouping, find_regions, label_parts

# --- pixels -----------------------------------------------------------------------------------------


def curve_by_hand(score, truth):
    """(recall, precision) at every distinct score, from the highest down."""
    points = []
    for threshold in np.unique(score)[::-1]:
        above = score >= threshold
        hit = (above & truth).sum()
        points.append((hit / truth.sum(), hit / above.sum()))
    return points


def ap_by_hand(score, truth):
    area, before = 0.0, 0.0
    for recall, precision in curve_by_hand(score, truth):
        area, before = area + (recall - before) * precision, recall
    return area


def f1_by_hand(score, truth):
    return max(2 * p * r / (p + r) for r, p in curve_by_hand(score, truth) if r > 0)


def auroc_by_hand(score, truth):
    pairs = [(a > b) + 0.5 * (a == b) for a in score[truth] for b in score[~truth]]
    return sum(pairs) / len(pairs)


def aupro_by_hand(scores, masks, limit=0.3):
    """Overlap of each region and share of good pixels at every threshold; trapezoids up to the limit."""
    rates, overlaps = [0.0], [0.0]
    good = np.concatenate([score[~mask] for score, mask in zip(scores, masks, strict=True)])
    regions = []
    for score, mask in zip(scores, masks, strict=True):
        count, labels = label_parts(mask)
        regions += [score[labels == number] for number in range(1, count + 1)]
    for threshold in np.unique(np.concatenate([score.ravel() for score in scores]))[::-1]:
        rates.append((good >= threshold).mean())
        overlaps.append(np.mean([(region >= threshold).mean() for region in regions]))
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@st.composite
def scored_pictures(draw):
    """Three or four small pictures with ties; the last one is good cloth."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 40, 10_000]))
    scores, masks = [], []
    for number in range(draw(st.integers(3, 4))):
        mask = np.zeros((12, 15), bool)
        for _ in range(0 if number == 0 else int(rng.integers(1, 4))):
            y, x = rng.integers(0, 10), rng.integers(0, 12)
            mask[y : y + rng.integers(1, 4), x : x + rng.integers(1, 5)] = True
        score = np.clip(rng.integers(0, levels + 1, mask.shape) / levels * 0.7 + 0.3 * mask, 0, 1)
        scores.append(score.astype(np.float32))
        masks.append(mask)
    return scores, masks


@settings(max_examples=25, deadline=None)
@given(scored_pictures())
def test_every_pixel_figure_equals_its_definition(case):
    scores, masks = case
    collected = PixelScores()
    for score, mask in zip(scores, masks, strict=True):
        collected.add(score, mask if mask.any() else None)
    figures = collected.figures()
    score, truth = np.stack(scores), np.stack(masks)
    bad = [number for number, mask in enumerate(masks) if mask.any()]
    peaks = np.array([each.max() for each in scores])
    assert (figures.pictures, figures.defective) == (len(scores), len(bad))
    assert figures.ap_picture == pytest.approx(
        np.mean([ap_by_hand(scores[i], masks[i]) for i in bad]), abs=1e-9
    )
    assert figures.ap == pytest.approx(ap_by_hand(score, truth), abs=1e-9)
    assert figures.f1 == pytest.approx(f1_by_hand(score, truth), abs=1e-9)
    assert figures.aupro == pytest.approx(aupro_by_hand(scores, masks), abs=1e-9)
    assert figures.auroc == pytest.approx(auroc_by_hand(peaks, truth.any(axis=(1, 2))), abs=1e-9)
    above = score >= figures.f1_threshold
    f1 = 2 * (above & truth).sum() / (above.sum() + truth.sum())
    assert f1 == pytest.approx(figures.f1, abs=1e-9)


@pytest.mark.parametrize("squash", [1e-9, 1e-4, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_scores_that_crowd_at_zero_or_one_keep_their_order(squash, flip):
    """A network that is sure of itself says 10⁻⁹ or 1 − 10⁻⁶; the figures must not change with that."""
    rng = np.random.default_rng(1)
    mask = np.zeros((64, 64), bool)
    mask[20:30, 20:50] = True
    plain = (np.round(rng.random(mask.shape) * 0.8 + 0.2 * mask, 3) * 0.999 + 0.0005).astype(np.float32)
    score = plain * np.float32(squash)
    if flip:
        # Steps of 2⁻²⁴ are the finest that float32 has near 1.
        score = np.float32(1) - (np.float32(1) - plain) * np.float32(max(squash, 2.0**-13))
    figures = []
    for each in (plain, score):
        collected = PixelScores()
        collected.add(each, mask)
        figures.append(collected.figures())
    assert figures[1].ap_picture == pytest.approx(figures[0].ap_picture, abs=1e-6)
    assert figures[1].ap == pytest.approx(figures[0].ap, abs=2e-3)
    assert figures[1].aupro == pytest.approx(figures[0].aupro, abs=2e-3)


def test_a_figure_that_the_pictures_do_not_define_is_none():
    collected = PixelScores()
    empty = collected.figures()
    assert (empty.pictures, empty.ap, empty.auroc) == (0, None, None)
    collected.add(np.full((4, 4), 0.5, np.float32), None)
    good = collected.figures()
    assert (good.ap_picture, good.ap, good.f1, good.auroc, good.aupro) == (None,) * 5
    collected.add(np.full((4, 4), 0.6, np.float32), np.eye(4, dtype=bool))
    assert collected.figures().auroc == 1.0


def test_a_perfect_map_scores_one_and_a_blind_one_scores_the_share_of_defect():
    mask = np.zeros((50, 40), bool)
    mask[10:14, 5:30] = True
    perfect, blind = PixelScores(), PixelScores()
    perfect.add(mask.astype(np.float32), mask)
    blind.add(np.full(mask.shape, 0.3, np.float32), mask)
    best = perfect.figures()
    assert (best.ap_picture, best.ap, best.f1, best.aupro) == (1, 1, 1, pytest.approx(1))
    assert blind.figures().ap == pytest.approx(mask.mean())
    # At once everything is above the threshold: a straight line up to 30 %.
    assert blind.figures().aupro == pytest.approx(0.15)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1])
def test_a_score_outside_its_range_is_refused(bad):
    score = np.zeros((4, 4), np.float32)
    score[1, 1] = bad
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        PixelScores().add(score, None)


def test_precision_and_auroc_need_something_to_find():
    with pytest.raises(ValueError, match="at least one true"):
        average_precision(np.zeros(3, np.float32), np.zeros(3, bool))
    with pytest.raises(ValueError, match="true and false"):
        auroc(np.zeros(3), np.ones(3, bool))


# --- regions ----------------------------------------------------------------------------------------


def picture(*spots):
    score = np.zeros((100, 200), np.float32)
    for y, x, height, width in spots:
        score[y : y + height, x : x + width] = 0.9
    return score


def test_defects_found_and_false_alarms_are_counted():
    mask = picture((10, 10, 5, 40), (60, 100, 4, 4)) > 0
    score = picture((12, 20, 2, 3), (14, 40, 2, 2), (80, 180, 3, 3), (2, 150, 1, 1))
    counts = count_regions(score, mask, 0.5)
    assert counts == RegionCounts(defects=2, found=1, alarms=4, false_alarms=2, pixels=20_000)
    assert counts.recall == 0.5
    assert counts.false_alarms_per_megapixel == pytest.approx(100)
    assert count_regions(score, mask, 0.5, Grouping(2)).false_alarms == 1
    assert count_regions(score, None, 0.5).false_alarms == 4


def test_near_counts_as_found_up_to_the_tolerance():
    mask = picture((50, 50, 10, 10)) > 0
    near, far = picture((50, 62, 5, 5)), picture((50, 63, 5, 5))  # 3 and 4 columns from the last true one
    assert count_regions(near, mask, 0.5) == RegionCounts(1, 1, 1, 0, 20_000)
    assert count_regions(far, mask, 0.5) == RegionCounts(1, 0, 1, 1, 20_000)
    assert count_regions(far, mask, 0.5, tolerance=4).found == 1


def test_a_defect_drawn_in_pieces_is_one_defect():
    mask = picture((50, 20, 1, 30), (50, 55, 1, 30), (50, 91, 1, 30)) > 0  # gaps of 5 and 6 pixels
    score = picture((50, 20, 1, 3))
    assert count_regions(score, mask, 0.5).defects == 2
    assert count_regions(score, mask, 0.5, truth_gap=0).defects == 3
    assert count_regions(score, mask, 0.5).found == 1


def test_counts_of_pictures_add_up():
    score, mask = picture((50, 20, 3, 3)), picture((50, 20, 3, 3)) > 0
    total = sum([count_regions(score, mask, 0.5), count_regions(score, None, 0.5)], RegionCounts())
    assert total == RegionCounts(defects=1, found=1, alarms=2, false_alarms=1, pixels=40_000)
    assert RegionCounts().recall is None
    assert RegionCounts().false_alarms_per_megapixel is None


# --- operating point --------------------------------------------------------------------------------


def clouds(rng, height=200, width=500):
    """The score map of a network on good cloth: smooth, mostly low, now and then high."""
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 2.0)
    return (1 / (1 + np.exp(6 - 2 * noise / noise.std()))).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 6]),
    st.integers(0, 2),
    st.sampled_from([1.0, 0.03]),
    st.booleans(),
)
def test_alarms_appear_where_trying_every_threshold_finds_them(seed, min_area, merge_gap, faint, ties):
    grouping = Grouping(min_area, merge_gap, faint)
    score = clouds(np.random.default_rng(seed), 30, 40)
    if ties:
        score = np.round(score, 1)
    expected = []
    for threshold in np.unique(score[score > 0])[::-1]:
        found = len(find_regions(score, threshold, grouping))
        expected += [threshold] * (found - len(expected))
    thresholds, lowest = alarm_thresholds(score, grouping, most=6)
    assert thresholds.tolist() == expected[:6]
    assert lowest <= (thresholds[-1] if len(thresholds) else 1)


def specks(rng, height=100, width=100, expected=25):
    """Good cloth with single-pixel alarms, independent, their logits above −2 exponential of scale 0.8."""
    score = np.zeros((height, width), np.float32)
    count = rng.poisson(expected)
    places = rng.choice((height // 2) * (width // 2), count, replace=False)  # never two side by side
    logits = rng.exponential(0.8, count) - 2
    score[places // (width // 2) * 2, places % (width // 2) * 2] = 1 / (1 + np.exp(-logits))
    return score


@pytest.mark.parametrize("allowed", [0.05, 0.2, 0.5, 1.0, 1.9, 3.0, 12.0])
def test_the_promise_holds_on_new_cloth(allowed):
    """Averaged over many cloths, a new piece of the same area brings no more alarms than promised."""
    rng = np.random.default_rng(11)
    brought = []
    for _ in range(200):
        seen = [specks(rng) for _ in range(3)]
        point = set_operating_point(seen, AlarmRate.per_megapixel(allowed / 0.03))
        assert point.alarms_allowed == pytest.approx(allowed)
        assert point.alarms_seen <= allowed
        assert point.extrapolated == (allowed < 1)
        logit = np.log(point.threshold / (1 - point.threshold))
        brought.append(3 * 25 * np.exp(-(logit + 2) / 0.8))  # what new cloth brings on average, exactly
    chance = 3 * np.std(brought) / np.sqrt(len(brought))
    assert np.mean(brought) <= allowed + chance
    assert np.mean(brought) >= allowed * 0.2  # a threshold of 1 would keep any promise


@pytest.mark.parametrize("allowed", [0.5, 3.0, 12.0])
def test_what_is_certain_holds_whatever_the_network_is(allowed):
    """The true rate lies above the upper bound, or below the lower one, in one cloth of twenty at most."""
    rng = np.random.default_rng(12)
    above = below = 0
    for _ in range(300):
        point = set_operating_point([specks(rng) for _ in range(3)], AlarmRate.per_megapixel(allowed / 0.03))
        logit = np.log(point.threshold / (1 - point.threshold))
        true = 3 * 25 * np.exp(-(logit + 2) / 0.8) / 0.03  # per megapixel, exactly
        low, high = point.certain(0.95)
        above += true > high
        below += true < low
    assert above <= 0.05 * 300 + 3 * np.sqrt(0.05 * 0.95 * 300)
    assert below <= 0.05 * 300 + 3 * np.sqrt(0.05 * 0.95 * 300)


def test_a_promise_is_moved_without_scoring_again():
    rng = np.random.default_rng(13)
    seen = [clouds(rng) for _ in range(3)]
    first = set_operating_point(seen, AlarmRate.per_megapixel(100), Grouping(4, 1))
    for rate in (0.5, 40, 120):
        anew = set_operating_point(seen, AlarmRate.per_megapixel(rate), Grouping(4, 1))
        moved = first.moved(rate)
        assert moved.threshold == pytest.approx(anew.threshold, abs=1e-6)
        assert (moved.alarms_seen, moved.extrapolated) == (anew.alarms_seen, anew.extrapolated)
    with pytest.raises(UsageError, match="highest alarms of the good cloth were kept"):
        first.moved(1e6)
    with pytest.raises(UsageError, match="learn again"):  # a card of an earlier version kept none
        replace(first, highest=None).moved(1)


def test_calm_cloth_lets_any_promise_be_made():
    score = np.zeros((200, 200), np.float32)
    score[::90, ::90] = 0.3
    point = set_operating_point([score], AlarmRate.per_megapixel(20))
    assert (
        point.moved(4000).threshold == set_operating_point([score], AlarmRate.per_megapixel(4000)).threshold
    )


def test_the_alarms_it_counts_are_the_regions_that_inspection_finds():
    rng = np.random.default_rng(4)
    seen = [clouds(rng) for _ in range(3)]
    for rate in [1, 10, 40]:
        point = set_operating_point(seen, AlarmRate.per_megapixel(rate), Grouping(4, 1))
        regions = [find_regions(each, point.threshold, Grouping(4, 1)) for each in seen]
        assert point.alarms_seen == sum(map(len, regions)) <= point.alarms_allowed


def test_a_stricter_promise_never_lowers_the_threshold():
    rng = np.random.default_rng(5)
    seen = [clouds(rng) for _ in range(3)]
    rates = [0.01, 0.1, 1, 3, 3.4, 10, 30, 100]
    thresholds = [set_operating_point(seen, AlarmRate.per_megapixel(rate)).threshold for rate in rates]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) > 5


def test_what_is_faint_is_read_off_good_cloth_and_joins_what_an_inspection_sees():
    rng = np.random.default_rng(8)
    seen, new = [clouds(rng) for _ in range(3)], clouds(rng)
    grouping = joined_through_faint(Grouping(4, 1), seen)
    assert (grouping.min_area, grouping.merge_gap) == (4, 1)
    assert 0.01 < (new >= grouping.faint).mean() < 0.04  # one in fifty
    new[50, 100:400] = np.maximum(new[50, 100:400], grouping.faint)
    new[50, 100:120] = new[50, 380:400] = 0.99
    point = set_operating_point(seen, AlarmRate.per_megapixel(10), grouping)
    assert grouping.faint < point.threshold < 0.99
    assert point.grouping == grouping
    (region,) = (one for one in find_regions(new, point.threshold, point.grouping) if one.score >= 0.99)
    assert region.box[0] <= 100
    assert region.box[2] >= 400


def test_merging_and_a_least_area_allow_a_lower_threshold():
    rng = np.random.default_rng(6)
    seen = [clouds(rng) for _ in range(3)]
    rate = AlarmRate.per_megapixel(30)
    plain = set_operating_point(seen, rate)
    lenient = set_operating_point(seen, rate, Grouping(20, 2))
    assert lenient.threshold < plain.threshold
    assert (lenient.min_area, lenient.merge_gap) == (20, 2)


def test_cloth_that_raises_no_alarm_and_cloth_that_always_does():
    quiet = set_operating_point([np.zeros((100, 100), np.float32)], AlarmRate.per_megapixel(1))
    assert (quiet.threshold, quiet.alarms_seen) == (LOWEST, 0)
    stuck = np.zeros((100, 100), np.float32)
    stuck[10:20, 10:20] = stuck[50:60, 50:60] = 1
    loud = set_operating_point([stuck], AlarmRate.per_megapixel(100))
    assert loud.threshold == 1
    assert loud.alarms_seen == 2 > loud.alarms_allowed
    with pytest.raises(DatasetError, match="no good cloth"):
        joined_through_faint(Grouping(), [])
    with pytest.raises(DatasetError, match="no good cloth"):
        set_operating_point([], AlarmRate.per_megapixel(1))


def test_a_promise_per_100_m_is_the_same_promise_in_pixels():
    # 100 m of a web of 1.5 m at 0.25 mm: 400,000 × 6,000 pixels.
    rate = AlarmRate.per_100_m(2, mm_per_pixel=0.25, web_width_mm=1500)
    assert rate.megapixels == pytest.approx(2400)
    assert str(rate) == "2 false alarms per 100 m"
    rng = np.random.default_rng(8)
    seen = [clouds(rng) for _ in range(2)]
    by_length = set_operating_point(seen, rate)
    by_area = set_operating_point(seen, AlarmRate.per_megapixel(2 / 2400))
    assert by_length.threshold == pytest.approx(by_area.threshold)
    assert (by_length.promised, by_length.unit) == (2, "100 m")


# --- comparison -------------------------------------------------------------------------------------


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(120):
        fabric = rng.normal(0, 5, 40)  # what the pair shares is large, and cancels
        first, second = fabric + rng.normal(0.3, 1, 40), fabric + rng.normal(0, 1, 40)
        result = paired_difference(first, second, rng, samples=250)
        held += result.low <= 0.3 <= result.high
        assert result.high - result.low < 1.5
    assert 0.87 <= held / 120 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    first, second = np.arange(8.0), np.arange(8.0)[::-1]
    one, two = (paired_difference(first, second, np.random.default_rng(3), samples=500) for _ in range(2))
    assert one == two
    assert one.mean == 0
    assert one.pairs == 8


def test_seeds_of_one_fabric_are_no_further_fabrics():
    """Thirty seeds of three fabrics say as much of the next fabric as these three do."""
    fabrics = np.array([0.0, 0.1, 0.5])
    seeds = np.repeat(fabrics, 10)
    of_three, none = (paired_difference(x, 0 * x, np.random.default_rng(0)) for x in (fabrics, seeds))
    grouped = paired_difference(seeds, 0 * seeds, np.random.default_rng(0), groups=np.repeat([5, 6, 7], 10))
    assert (grouped.pairs, grouped.groups) == (30, 3)
    assert (grouped.low, grouped.high) == pytest.approx((of_three.low, of_three.high))
    assert grouped.high - grouped.low > 2 * (none.high - none.low)


def test_pairs_that_are_none_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="a group each"):
        paired_difference(np.ones(2), np.zeros(2), rng, groups=["f00"])
    for first, second in [([], []), ([1.0], [1.0, 2.0]), ([np.nan], [1.0])]:
        with pytest.raises(ValueError, match="pairs need"):
            paired_difference(np.array(first), np.array(second), rng)
