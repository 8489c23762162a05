"""Segmenter and detector, fused: one answer for a defect that either or both see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from loomsight.detection.fusion import FusionPoint, evidence, fuse
from loomsight.evaluation.operating_point import AlarmRate, set_operating_point
from loomsight.fabric.regions import Grouping
from loomsight.fabric.types import Region
from loomsight.learn.detector import calibrate_fusion

POINT = FusionPoint(segmenter=0.5, detector=0.3, margin=0.0, min_area=4, merge_gap=5)


def score_map(*spots: tuple[int, int, int, int, float]) -> np.ndarray:
    score = np.full((100, 200), 0.01, np.float32)
    for x0, y0, x1, y1, value in spots:
        score[y0:y1, x0:x1] = value
    return score


def box(x0: int, y0: int, x1: int, y1: int, score: float, kind: str = "slub") -> Region:  # noqa: PLR0917
    return Region((x0, y0, x1, y1), (x1 - x0) * (y1 - y0), float(max(x1 - x0, y1 - y0)), score, kind)


def test_type_and_box_are_the_detectors_and_the_shape_the_segmenters() -> None:
    (found,) = fuse(score_map((50, 40, 70, 44, 0.8)), [box(48, 38, 72, 46, 0.6)], POINT)
    assert found.type == "slub"
    assert found.box == (48, 38, 72, 46)
    assert found.area == 80
    assert found.length == pytest.approx(20, abs=1)
    assert found.score > 0.8, "they agree: surer than either"


def test_what_one_sees_clearly_is_found_without_the_other() -> None:
    found = fuse(score_map((10, 10, 20, 20, 0.9)), [box(150, 60, 170, 80, 0.7, "hole")], POINT)
    assert {region.type for region in found} == {"unknown", "hole"}
    assert {region.box for region in found} == {(10, 10, 20, 20), (150, 60, 170, 80)}


def test_what_both_see_faintly_is_found_and_what_one_sees_faintly_is_not() -> None:
    faint = score_map((50, 40, 60, 50, 0.35), (150, 40, 160, 50, 0.35))
    (found,) = fuse(faint, [box(49, 39, 61, 51, 0.2), box(20, 80, 30, 90, 0.2)], POINT)
    assert found.box == (49, 39, 61, 51)
    assert found.type == "slub"
    assert found.score >= 0.5


def test_a_box_that_is_no_alarm_itself_names_nothing_that_the_segmenter_sees_clearly() -> None:
    clear = score_map((50, 40, 60, 50, 0.9))
    (found,) = fuse(clear, [box(49, 39, 61, 51, 0.05)], POINT)
    assert (found.box, found.type) == ((49, 39, 61, 51), "unknown")
    (found,) = fuse(clear, [box(49, 39, 61, 51, 0.4)], POINT)
    assert found.type == "slub"


def test_what_lies_beside_a_slanted_line_is_not_of_it() -> None:
    """The box of a line from corner to corner holds all of the picture."""
    blot = score_map((120, 10, 140, 20, 0.9), (50, 22, 60, 28, 0.9))
    parts = tuple((x, x // 2 - 4, x + 20, x // 2 + 14) for x in range(0, 180, 20))
    line = Region((0, 0, 200, 100), 20_000, 200.0, 0.6, "slub", parts)
    found = fuse(blot, [line], POINT)
    assert sorted((one.type, one.area) for one in found) == [("slub", 60), ("unknown", 200)]


def test_of_a_faint_box_through_many_tiles_the_part_that_fits_counts() -> None:
    clear = score_map((50, 40, 60, 50, 0.9), (150, 40, 160, 50, 0.3))
    parts = tuple((x, 30, x + 30, 60) for x in range(0, 180, 20))
    faint = Region((0, 30, 190, 60), 5700, 190.0, 0.1, "slub", parts)
    (found,) = fuse(clear, [faint], POINT)
    assert found.box == (40, 30, 70, 60)
    assert (found.area, found.type) == (100, "unknown")
    (found,) = fuse(clear, [replace(faint, score=0.6)], POINT)
    assert (found.box, found.type) == ((0, 30, 190, 60), "slub"), "sure, it holds all of its parts"


def test_a_region_does_not_tie_boxes_together() -> None:
    long = score_map((10, 50, 190, 53, 0.9))
    found = fuse(long, [box(10, 48, 100, 55, 0.6), box(110, 48, 190, 55, 0.5, "hole")], POINT)
    assert [(one.box, one.type) for one in found] == [
        ((10, 48, 100, 55), "slub"),
        ((110, 48, 190, 55), "hole"),
    ]
    assert found[0].area == 540, "its shape goes to the surest"


def test_a_box_on_a_part_of_a_long_defect_grows_to_all_of_it() -> None:
    (found,) = fuse(score_map((10, 50, 190, 53, 0.9)), [box(40, 48, 76, 55, 0.6)], POINT)
    assert found.box == (10, 48, 190, 55)
    assert (found.area, found.type) == (540, "slub")
    assert found.length == pytest.approx(180, abs=1)


def test_pieces_that_one_box_holds_are_one_defect() -> None:
    torn = score_map((20, 50, 60, 53, 0.9), (80, 50, 120, 53, 0.8))
    assert len(fuse(torn, [], POINT)) == 2
    (found,) = fuse(torn, [box(18, 48, 122, 55, 0.5, "float")], POINT)
    assert found.length == 100
    assert found.area == 240
    assert found.type == "float"


def test_the_evidence_of_two_is_that_of_one_where_the_other_is_silent() -> None:
    (alone,) = evidence(score_map((50, 40, 60, 50, 0.8)), [], POINT)
    assert alone.margin == pytest.approx(math.log(0.8 / 0.2), abs=1e-5)
    (agreed,) = evidence(score_map((50, 40, 60, 50, 0.5)), [box(50, 40, 60, 50, 0.3)], POINT)
    assert agreed.margin == pytest.approx(math.log(3), abs=1e-5)


def test_from_little_cloth_a_network_that_was_lucky_keeps_its_say() -> None:
    """A threshold for four alarms in ten such pictures lies logits above all that this one shows."""
    maps = [score_map((20, 20, 26, 26, 0.6), (80, 20, 84, 24, 0.05))]
    boxes = [[box(120, 40, 130, 50, 0.1), box(20, 60, 30, 70, 0.08)]]
    rate = AlarmRate.per_megapixel(20.0)
    own = set_operating_point(maps, rate, Grouping(4, 5))
    assert own.threshold > 0.9
    detector, point, _ = calibrate_fusion(own, maps, boxes, rate)
    assert detector.threshold > 0.3
    assert (point.segmenter, point.detector) == (pytest.approx(0.6, abs=1e-4), pytest.approx(0.1, abs=1e-4))
    assert fuse(maps[0], boxes[0], point) == []
    faint = score_map((20, 20, 30, 30, 0.9)), [box(20, 20, 30, 30, 0.5)]
    (both,) = fuse(*faint, point)
    assert own.threshold <= both.score < 1


def test_the_fused_threshold_keeps_the_promise_on_the_good_cloth_it_saw() -> None:
    rng = np.random.default_rng(0)
    maps, boxes = [], []
    for _ in range(40):
        spots = [(int(x), int(y), int(x) + 4, int(y) + 4, float(v))
                 for x, y, v in zip(rng.integers(0, 190, 6), rng.integers(0, 90, 6), rng.beta(1, 4, 6),
                                    strict=True)]  # fmt: skip
        maps.append(score_map(*spots))
        boxes.append([box(int(x), int(y), int(x) + 8, int(y) + 8, float(v))
                      for x, y, v in zip(rng.integers(0, 190, 6), rng.integers(0, 90, 6), rng.beta(1, 4, 6),
                                         strict=True)])  # fmt: skip
    rate = AlarmRate.per_megapixel(10.0)  # 0.8 Mpx: eight alarms
    own = set_operating_point(maps, rate, Grouping(4, 5))
    detector, point, together = calibrate_fusion(own, maps, boxes, rate)
    assert detector.alarms_seen <= 8
    alarms = sum(len(fuse(score, found, point)) for score, found in zip(maps, boxes, strict=True))
    assert 4 <= alarms <= 8
    moved = point.set_by(together.moved(2.5), own.moved(2.5))
    fewer = [fuse(score, found, moved) for score, found in zip(maps, boxes, strict=True)]
    assert 1 <= sum(map(len, fewer)) <= 2
    assert all(one.score >= moved.alarm - 1e-9 for found in fewer for one in found)
    assert point.set_by(together, own) == point
    alone = sum(region.score >= detector.threshold for found in boxes for region in found)
    assert alone == detector.alarms_seen
