"""Bars: a band across the web that is a shade off is found, what is smaller or was there before is none."""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from loomsight.anomaly import methods_of
from loomsight.anomaly.bars import NONE, Bars
from loomsight.anomaly.calibration import UnionPoint
from loomsight.anomaly.normality import Normality
from loomsight.anomaly.prediction import Prediction
from loomsight.errors import UsageError
from loomsight.fabric.light import SMALLER, Light
from loomsight.fabric.regions import Grouping, find_regions
from loomsight.fabric.types import Picture
from loomsight.runtime.compiled import Ready, Tiles
from loomsight.runtime.engine import SegmenterEngine, UnionEngine
from loomsight.runtime.gate import CELL, GatedEngine

SIZE = 256, 640


def cloth(seed: int, size: tuple[int, int] = SIZE) -> Picture:
    """Uneven picks and ends, and grain."""
    rng = np.random.default_rng(seed)
    picks, ends = (rng.normal(0, 3, (n // 4 + 1)).repeat(4)[:n] for n in size)
    grey = 120 + picks[:, None] + ends[None, :] + rng.normal(0, 8, size)
    return np.asarray(grey.clip(0, 255), np.uint8)


GOOD = [cloth(seed) for seed in range(8)]
LIGHT = Light.of(GOOD)


def small(pictures: list[Picture]) -> Iterator[Picture]:
    return map(LIGHT.even_small, pictures)


def said(bars: Bars, image: Picture) -> Picture:
    """Whether each place of the picture is in a bar, by far."""
    where = (bars.strangeness(LIGHT.even_small(image)) > 1).astype(np.uint8)
    return np.asarray(cv2.resize(where, image.shape[::-1], interpolation=cv2.INTER_NEAREST))


def darker(rows: slice, columns: slice = slice(None), by: int = 12) -> Picture:
    image = cloth(20)
    image[rows, columns] -= np.uint8(by)
    return image


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_weave_that_repeats_every_fourth_row_does_not_change_the_light(start: int) -> None:
    rows = np.repeat(np.tile([60, 110, 160, 110], 65)[start : start + 256, None], 256, axis=1)
    woven = np.asarray(rows + np.random.default_rng(1).normal(0, 3, rows.shape), np.uint8)
    light = Light.of([woven])
    level = float(light.even(woven).mean())
    assert float(light.even_small(woven).mean()) == pytest.approx(level, abs=4)
    (part,) = light.even_at(woven, [(0, 0, 256, 256)])
    assert float(part.mean()) == pytest.approx(level, abs=4)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_weave_of_three_pixels_is_learned_as_it_is(start: int) -> None:
    rows = np.repeat(np.tile([60, 110, 160], 86)[start : start + 256, None], 256, axis=1).astype(np.uint8)
    light = Light.of([rows])
    assert light.middle[0] == pytest.approx(110, abs=5)
    assert light.spread == pytest.approx(50, abs=5)


def test_of_a_picture_only_the_place_that_was_taught_is_good_cloth() -> None:
    image = darker(slice(40, 80))
    image[180:220] -= np.uint8(24)
    seen, rows = LIGHT.even_small(image), [slice(14, 16), slice(49, 51)]  # of the smaller picture
    bars, where = Bars.fit(small(GOOD)), np.zeros((SIZE[0] // SMALLER, SIZE[1] // SMALLER), np.bool_)
    where[10:20] = True
    assert all((bars.strangeness(seen)[one] > 0).all() for one in rows)
    bars.teach(seen, where)
    assert [(bars.strangeness(seen)[one] > 0).mean() for one in rows] == [0, 1]


@pytest.mark.parametrize(
    "place",
    [np.s_[40:80, :], np.s_[:, 0:36], np.s_[108:114, 300:306]],
    ids=["another bar", "a selvedge", "a spot"],
)
def test_a_bar_that_a_taught_place_only_meets_is_found_still(place: tuple[slice, slice]) -> None:
    """Whatever crosses a bar, or lies on it, says nothing of it."""
    image = darker(slice(100, 140))
    image[40:80] -= np.uint8(24)
    image[:, 180:220] -= np.uint8(24)
    seen, where = LIGHT.even_small(image), np.zeros(SIZE, np.float32)
    where[place] = 1
    bars = Bars.fit(small(GOOD))
    bars.teach(seen, cv2.resize(where, seen.shape[::-1][1:], interpolation=cv2.INTER_AREA) > 0)
    again = bars.strangeness(seen)
    assert (again[:, 46:54] > 0).mean() > 0.9
    if place != np.s_[40:80, :]:
        assert (again[27:33] > 0).mean() > 0.9


def test_a_place_of_a_picture_that_bars_are_not_looked_for_in_teaches_none() -> None:
    bars, image = Bars.fit(small(GOOD)), darker(slice(100, 140))
    narrow = LIGHT.even_small(np.ascontiguousarray(image[:, :120]))
    assert (bars.strangeness(narrow) == NONE).all()
    bars.teach(narrow, np.ones(narrow.shape[:2], np.bool_))
    assert (bars.strangeness(LIGHT.even_small(image))[27:33] > 0).mean() > 0.9


def test_a_bar_across_the_web_is_found_where_it_lies() -> None:
    found = said(Bars.fit(small(GOOD)), darker(slice(100, 140), by=16))
    assert found[108:132].mean() > 0.9
    assert found[:80].mean() + found[160:].mean() < 0.1


def test_a_reed_mark_along_the_web_is_found() -> None:
    found = said(Bars.fit(small(GOOD)), darker(slice(None), slice(300, 324), by=16))
    assert found[:, 306:318].mean() > 0.9
    assert found[:, :180].mean() == found[:, 440:].mean() == 0


def test_good_cloth_and_a_spot_are_no_bar() -> None:
    bars = Bars.fit(small(GOOD))
    assert not any(said(bars, cloth(seed)).any() for seed in range(30, 50))
    assert not said(bars, darker(slice(100, 140), slice(200, 240), by=100)).any()


def test_what_more_good_cloth_has_is_expected_then() -> None:
    bars, barred = Bars.fit(small(GOOD)), darker(slice(100, 140))
    assert said(bars, barred).any()
    bars.add(small([darker(slice(60, 100))]))
    assert not said(bars, barred).any()


def test_parts_that_are_shorter_than_what_was_learned_from_are_not_judged() -> None:
    bars = Bars.fit(small([cloth(seed, (256, 512)) for seed in range(4)]))
    wide, narrow = cloth(9, (256, 512)), cloth(9, (256, 200))
    for image in (wide, narrow):
        image[100:140] -= np.uint8(14)
    assert said(bars, wide)[110:130].all()
    assert not said(bars, narrow)[110:130].any()


def test_light_from_one_side_and_another_lamp_add_no_bar() -> None:
    bars = Bars.fit(small(GOOD))
    slope = np.linspace(0.8, 1.2, SIZE[0])[:, None]
    for seed in range(60, 66):
        image = cloth(seed)
        plain, *lit = (
            max(0.0, float(bars.strangeness(LIGHT.even_small(one)).max()))
            for one in (image, (image * slope).clip(0, 255).astype(np.uint8), (image * 0.7).astype(np.uint8))
        )
        assert max(lit) <= plain + 0.4


def test_the_cloth_between_two_bars_and_beside_them_is_none() -> None:
    image = darker(slice(60, 92), by=16)
    image[164:196] -= np.uint8(16)
    found = said(Bars.fit(small(GOOD)), image)
    assert found[66:86].mean() > 0.9
    assert found[170:190].mean() > 0.9
    assert found[116:140].mean() == found[230:].mean() == 0


def test_it_is_the_same_again_from_its_arrays() -> None:
    bars, image = Bars.fit(small(GOOD)), LIGHT.even_small(darker(slice(100, 140)))
    again = Bars.from_arrays(bars.to_arrays())
    assert (again.strangeness(image) == bars.strangeness(image)).all()
    with pytest.raises(ValueError, match="shape"):
        Bars.from_arrays({name: np.ones(2) for name in ("highest", "squares", "counts", "lengths")})
    with pytest.raises(KeyError):
        Bars.from_arrays({})


def test_a_normality_with_bars_finds_them_and_one_without_does_not() -> None:
    image = darker(slice(100, 140))
    with_bars, without = (Normality.fit(GOOD, methods=[Prediction.fit], bars=bars) for bars in (True, False))
    assert with_bars.methods == ("prediction", "bars")
    assert without.methods == ("prediction",)
    rows = with_bars.score(image)[108:132]
    assert (rows > 0.5).mean() > 0.9
    assert (without.score(image)[108:132] > 0.5).mean() < 0.1
    # far from it hardly anything changes, and in parts of the picture it is the same
    assert np.median(np.abs(with_bars.score(image) - without.score(image))[:60]) == 0
    score, _, known = with_bars.look_where(image, [(0, 100, 100, 140)])
    assert known[108:132, :100].all()
    assert (score[108:132, :100] > 0.5).mean() > 0.9
    again = Normality.from_arrays(with_bars.to_arrays())
    assert (again.score(image) == with_bars.score(image)).all()
    assert again.methods == with_bars.methods
    broken = with_bars.to_arrays()
    del broken["bars.counts"]
    with pytest.raises(ValueError, match="counts"):
        Normality.from_arrays(broken)


def test_no_bar_is_said_as_such() -> None:
    assert (Bars.fit(small(GOOD)).strangeness(LIGHT.even_small(GOOD[0])) == NONE).all()
    assert SIZE[0] // SMALLER == LIGHT.even_small(GOOD[0]).shape[0]


def test_a_margin_beside_the_cloth_is_no_bar_and_hides_none() -> None:
    bars, image = Bars.fit(small(GOOD)), darker(slice(100, 140), by=16)
    image[:, :130] = 250
    image[20:80, :130] = 235
    found = said(bars, image)
    assert found[108:132, 340:].mean() > 0.9
    assert found[:60].mean() + found[180:].mean() < 0.1


def beside_a_machine(wide: int) -> Picture:
    """A machine as grey as the cloth beside it, with a plate that is darker."""
    image = cloth(20, (256, 512))
    image[:, :wide] = np.random.default_rng(3).normal(120, 4, (256, wide))
    image[60:100, :wide] -= np.uint8(16)
    return image


@pytest.mark.parametrize("wide", [250, 300, 350])
def test_what_only_half_of_the_pieces_show_is_no_bar_across_the_rest(wide: int) -> None:
    bars = Bars.fit(small([cloth(seed, (256, 512)) for seed in range(4)]))
    assert said(bars, beside_a_machine(wide))[:, wide + 64 :].mean() == 0


def test_a_bar_is_marked_where_it_is_shown_and_taught_there() -> None:
    image = cloth(20, (256, 512))
    image[100:140, 128:] -= np.uint8(16)
    bars, seen = Bars.fit(small([cloth(seed, (256, 512)) for seed in range(4)])), LIGHT.even_small(image)
    found = said(bars, image)
    assert found[108:132, 140:].mean() > 0.9
    assert found[:, :120].mean() == 0
    bars.teach(seen, bars.strangeness(seen) > 0)
    assert not said(bars, image).any()


def test_a_bar_beside_a_margin_is_taught_by_what_was_marked_of_it() -> None:
    bars, image = Bars.fit(small([cloth(seed, (256, 512)) for seed in range(4)])), cloth(20, (256, 512))
    image[100:140] -= np.uint8(16)
    image[:, :200] = 250
    seen = LIGHT.even_small(image)
    marked = bars.strangeness(seen) > 0
    assert marked[27:33, 56:].mean() > 0.9
    assert marked[:, :44].mean() == 0
    bars.teach(seen, marked)
    assert not said(bars, image).any()


class Shut:
    """A gate that lets everything pass as good."""

    runtime, step, depth = "test", CELL, 2

    def start(self, tiles: Tiles) -> Ready:
        return Ready((np.full((1, tiles.shape[1] // CELL, tiles.shape[2] // CELL), -9, np.float32),))


def test_behind_a_gate_that_sees_no_bar_the_union_finds_it_all_the_same(blind: SegmenterEngine) -> None:
    normality = Normality.fit(GOOD, methods=[Prediction.fit])
    union = UnionEngine(blind, normality, UnionPoint(0.5, 1.0, 0.6, 1.0))
    grouping = Grouping(200, 5)
    gated = GatedEngine(Shut(), 0.0, 0.3, 1, union, point=(0.5, grouping), audits=False)
    barred, good = darker(slice(100, 140), by=16), cloth(21)
    bar = max(find_regions(union.score(barred), 0.5, grouping), key=lambda region: region.area)
    assert bar.box[2] - bar.box[0] > 600
    barred_look, good_look = gated.looks([barred, good])
    found = max(barred_look.regions(0.5, grouping), key=lambda region: region.area)
    assert np.abs(np.subtract(found.box, bar.box)).max() <= 4
    assert good_look.score is None
    assert union.bars(good, 0.5) == []


def test_bars_alone_are_refused_in_a_line() -> None:
    assert methods_of("bars+prediction") == ("prediction", "bars")
    for text in ("bars", "bars+bars"):
        with pytest.raises(UsageError, match="bars alone"):
            methods_of(text)


def test_pictures_are_asked_for_one_by_one_and_never_held_all_at_once() -> None:
    class Folder(Sequence[Picture]):
        def __len__(self) -> int:
            return len(GOOD)

        def __getitem__(self, index: Any) -> Any:
            return GOOD[index]

        def __iter__(self) -> Iterator[Picture]:
            raise AssertionError("all of them are read")

    folder = Folder()
    normality = Normality.fit(folder, held=folder, methods=[Prediction.fit])
    assert "bars" in normality.methods
