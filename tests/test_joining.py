"""Boxes of tiles, joined: one defect, one box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loomsight.detection.joining import TileBoxes, join_tiles
from loomsight.fabric.tiles import Tile, plan_tiles

TYPES = ("hole", "float")


def seen_by(tile: Tile, defects: list[tuple[float, float, float, float]], kind: int = 1) -> TileBoxes:
    """What a perfect detector sees of defects (xyxy) in a tile."""
    boxes = []
    for x0, y0, x1, y1 in defects:
        cut = (max(x0, tile.x0), max(y0, tile.y0), min(x1, tile.x1), min(y1, tile.y1))
        if cut[0] < cut[2] and cut[1] < cut[3]:
            boxes.append(cut)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.8, len(array), dtype=np.float32)
    return TileBoxes(tile, array, scores, np.full(len(array), kind))


def test_a_thread_across_ten_tiles_is_one_defect() -> None:
    tiles = plan_tiles(256, 1664, tile=224, overlap=64)
    assert len({tile.x0 for tile in tiles}) >= 10
    found = join_tiles([seen_by(tile, [(5, 100, 1660, 103)]) for tile in tiles], TYPES)
    assert [region.box for region in found] == [(5, 100, 1660, 103)]
    assert found[0].length == 1655
    assert found[0].type == "float"
    assert found[0].score == pytest.approx(0.9)


def line_seen_by(tile: Tile, ends: tuple[float, float, float, float]) -> TileBoxes:
    """What a perfect detector sees of a straight line, three pixels wide, in a tile."""
    x0, y0, x1, y1 = ends
    at = np.linspace(0, 1, 20_000)[:, None]
    points = np.array([x0, y0]) + at * np.array([x1 - x0, y1 - y0])
    low, high = np.array([tile.x0, tile.y0]), np.array([tile.x1, tile.y1])
    points = points[((points >= low) & (points < high)).all(axis=1)]
    if len(points) < 2:
        return seen_by(tile, [])
    corners = np.concatenate([points.min(0) - 1.5, points.max(0) + 1.5])
    return seen_by(tile, [tuple(float(v) for v in corners)])  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@example(angle=7.0, x=0, y=0)
@example(angle=45.0, x=3, y=-40)
@given(angle=st.floats(0, 180), x=st.integers(-100, 100), y=st.integers(-100, 100))
def test_a_line_at_any_angle_is_one_defect(angle: float, x: int, y: int) -> None:
    tiles = plan_tiles(1000, 1000, tile=224, overlap=48)
    across, down = (400 * function(np.deg2rad(angle)) for function in (np.cos, np.sin))
    ends = (500 + x - across, 500 + y - down, 500 + x + across, 500 + y + down)
    (region,) = join_tiles([line_seen_by(tile, ends) for tile in tiles], TYPES)
    expected = [min(ends[::2]), min(ends[1::2]), max(ends[::2]), max(ends[1::2])]
    assert np.abs(np.array(region.box) - expected).max() <= 4
    assert len(region.parts) >= 4, "what lies beside the line is not of it"


def test_a_blot_beside_a_slanted_line_stays_a_defect_of_its_own() -> None:
    tiles = plan_tiles(1000, 1000, tile=224, overlap=48)
    line, blot = (100.0, 100.0, 900.0, 900.0), (700.0, 150.0, 760.0, 200.0)
    found = []
    for tile in tiles:
        one, other = line_seen_by(tile, line), seen_by(tile, [blot], kind=0)
        every = zip((one.boxes, one.scores, one.classes), (other.boxes, other.scores, other.classes),
                    strict=True)  # fmt: skip
        found.append(TileBoxes(tile, *(np.concatenate(pair) for pair in every)))
    regions = join_tiles(found, TYPES)
    assert {region.type: region.box for region in regions}["hole"] == (700, 150, 760, 200)
    assert len(regions) == 2


def test_a_tile_that_answers_twice_does_not_widen_the_box() -> None:
    upper, lower = plan_tiles(272, 160, tile=160, overlap=48)
    streak = (70.0, 10.0, 80.0, 260.0)
    doubted = np.array([seen_by(lower, [streak]).boxes[0], [40, 112, 105, 258]], np.float32)
    answers = TileBoxes(lower, doubted, np.array([0.85, 0.6], np.float32), np.array([1, 1]))
    regions = join_tiles([seen_by(upper, [(66, 10, 96, 260)]), answers], TYPES)
    assert [region.box for region in regions] == [(66, 10, 96, 260)]


def test_a_defect_has_the_type_of_its_surest_piece_with_one() -> None:
    left, right = plan_tiles(160, 272, tile=160, overlap=48)
    pieces = [((20, 60, 160, 64), 0.9, -1), ((112, 60, 250, 64), 0.7, 1)]
    seen = [
        TileBoxes(tile, np.array([at], np.float32), np.array([score], np.float32), np.array([kind]))
        for tile, (at, score, kind) in zip((left, right), pieces, strict=True)
    ]
    (region,) = join_tiles(seen, TYPES)
    assert (region.type, region.score) == ("float", pytest.approx(0.9))
    assert [one.type for one in join_tiles(seen[:1], TYPES)] == ["unknown"]


def test_two_defects_that_lie_side_by_side_stay_two() -> None:
    tiles = plan_tiles(224, 544, tile=224, overlap=64)
    defects = [(150.0, 40, 300, 44), (150.0, 60, 300, 64), (170.0, 150, 178, 158)]
    found = join_tiles([seen_by(tile, defects) for tile in tiles], TYPES)
    assert sorted(region.box for region in found) == sorted(tuple(map(int, d)) for d in defects)


def test_two_answers_to_one_defect_in_a_tile_are_one_and_the_surer_names_it() -> None:
    boxes = np.array([[10, 10, 40, 40], [12, 11, 41, 41], [100, 100, 110, 110]], np.float32)
    one = TileBoxes(Tile(0, 0, 224, 224), boxes, np.array([0.4, 0.8, 0.3], np.float32), np.array([1, 0, 1]))
    found = join_tiles([one], TYPES)
    assert [region.type for region in found] == ["hole", "float"]
    assert found[0].box == (12, 11, 41, 41), "the surer one's"
    assert [round(region.score, 3) for region in found] == [0.8, 0.3]


def test_faint_boxes_never_make_a_sure_one_longer() -> None:
    """An unsure detector answers everywhere; what it is sure of keeps its place all the same."""
    rng = np.random.default_rng(0)
    tiles, found = plan_tiles(224, 864, tile=224, overlap=64), []
    for number, tile in enumerate(tiles):
        at = rng.uniform(0, 200, (40, 2))
        faint = np.concatenate([at, at + rng.uniform(10, 120, (40, 2))], 1).clip(0, 224)
        faint[:, [0, 2]] += tile.x0
        boxes, scores = faint, np.full(40, 0.05)
        if number == 1:
            boxes, scores = np.concatenate([boxes, [[300, 100, 330, 120]]]), np.append(scores, 0.9)
        classes = np.ones(len(boxes), np.int64)
        found.append(TileBoxes(tile, boxes.astype(np.float32), scores.astype(np.float32), classes))
    regions = join_tiles(found, TYPES)
    assert regions[0].box == (300, 100, 330, 120)
    assert regions[1].score == pytest.approx(0.05)


LEFT, RIGHT = plan_tiles(160, 272, tile=160, overlap=48)


def one_box(tile: Tile, box: tuple[float, float, float, float], score: float) -> TileBoxes:
    return TileBoxes(tile, np.array([box], np.float32), np.array([score], np.float32), np.array([0]))


def test_what_two_tiles_see_whole_has_the_surer_ones_box() -> None:
    seen = [one_box(LEFT, (118, 58, 150, 70), 0.5), one_box(RIGHT, (120, 60, 153, 75), 0.7)]
    assert [region.box for region in join_tiles(seen, TYPES)] == [(120, 60, 153, 75)]


def test_a_whole_takes_up_its_piece_though_the_piece_is_surer() -> None:
    seen = [one_box(LEFT, (130, 60, 160, 64), 0.9), one_box(RIGHT, (130, 60, 200, 64), 0.7)]
    (found,) = join_tiles(seen, TYPES)
    assert found.box == (130, 60, 200, 64)
    assert found.score == pytest.approx(0.9)


def test_a_whole_that_a_cut_box_only_touches_is_not_made_longer() -> None:
    """Two answers that agree in the overlap, of which only one goes on: no defect reaches that far."""
    seen = [one_box(LEFT, (20, 60, 160, 80), 0.5), one_box(RIGHT, (118, 60, 158, 80), 0.7)]
    assert join_tiles(seen, TYPES)[0].box == (118, 60, 158, 80)


def test_nothing_found_is_no_region() -> None:
    assert join_tiles([], TYPES) == []
    assert join_tiles([seen_by(Tile(0, 0, 224, 224), [])], TYPES) == []


@example(x=1, y=1, wide=161, high=1, shake=-1.0)
@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(1, 1400), y=st.integers(1, 200), wide=st.integers(1, 300), high=st.integers(1, 60),
    shake=st.floats(-1, 1),
)  # fmt: skip
def test_one_defect_is_one_box_wherever_it_lies(x: int, y: int, wide: int, high: int, shake: float) -> None:
    # A box has its middle in the picture, so that none lies beside it, however it is shaken.
    defect = (float(x), float(y), float(min(x + wide, 1499)), float(min(y + high, 255)))
    tiles = plan_tiles(256, 1500, tile=224, overlap=64)
    found = [seen_by(tile, [defect]) for tile in tiles]
    found = [
        TileBoxes(f.tile, f.boxes + np.float32(shake * (n % 2)), f.scores, f.classes)
        for n, f in enumerate(found)
    ]
    (region,) = join_tiles(found, TYPES)
    assert np.abs(np.array(region.box) - defect).max() <= 2
