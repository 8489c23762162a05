"""Normality: light, memory, prediction, what is taught, and the union with a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import cv2
import numpy as np
import pytest

from loomsight.anomaly.calibration import calibrate_union
from loomsight.anomaly.features import windows
from loomsight.anomaly.memory import Memory, MemorySettings
from loomsight.anomaly.normality import Normality
from loomsight.anomaly.prediction import Prediction
from loomsight.errors import DatasetError
from loomsight.evaluation.operating_point import AlarmRate, tail_scale
from loomsight.evaluation.pixels import average_precision
from loomsight.fabric.light import Light, brightness
from loomsight.fabric.types import Mask, Picture
from loomsight.loom import PRESETS, draw_defect, weave

TWILL = PRESETS["denim"]


@cache
def good_cloth(count: int = 6) -> tuple[Picture, ...]:
    rng = np.random.default_rng(0)
    return tuple(weave(TWILL, 192, 320, rng).image for _ in range(count))


@cache
def normality() -> Normality:
    small = partial(Memory.fit, settings=MemorySettings(budget_mb=1))
    return Normality.fit(good_cloth()[:4], held=good_cloth()[4:5], methods=(small, Prediction.fit))


def holed(picture: Picture, y: int, x: int, radius: int = 6) -> tuple[Picture, Mask]:
    """A picture with a dark round hole, and where it is."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.circle(mask, (x, y), radius, 1, -1)
    where = mask.astype(bool)
    changed = picture.copy()
    changed[where] = 12
    return changed, where


def test_even_light_undoes_a_lamp_that_slopes() -> None:
    picture = good_cloth()[0]
    light = Light.of(good_cloth())
    slope = np.linspace(0.7, 1.2, picture.shape[1])[None, :]
    shape = slope if picture.ndim == 2 else slope[..., None]
    lit = np.rint(picture * shape).clip(0, 255).astype(np.uint8)
    before = np.abs(lit.astype(float) - picture).mean() * light.stretch
    after = np.abs(light.even(lit).astype(float) - light.even(picture)).mean()
    assert after < before / 4


def test_a_defect_does_not_bend_the_light() -> None:
    changed, _ = holed(good_cloth()[0], 60, 60, 25)
    assert np.allclose(brightness(changed), brightness(good_cloth()[0]), rtol=0.03)


@pytest.mark.parametrize("shape", [(5, 7), (40, 200), (64, 64)])
def test_light_of_small_pictures(shape: tuple[int, int]) -> None:
    picture = np.full(shape, 90, np.uint8)
    assert Light.of([picture]).even(picture).shape == (*shape, 3)
    assert brightness(picture) == pytest.approx(90, rel=1e-3)


def test_without_a_picture_nothing_is_learned() -> None:
    for fit in (Light.of, Memory.fit, Normality.fit):
        with pytest.raises(DatasetError, match="no good cloth"):
            fit([])


def test_windows_show_each_margin_at_a_border() -> None:
    picture = np.arange(192 * 400, dtype=np.uint32).reshape(192, 400) % 251
    cut = list(windows(picture.astype(np.uint8), np.random.default_rng(0)))
    assert cut[0].shape == (192, 400)
    assert len(cut) == 14
    assert all(min(one.shape) >= 64 for one in cut)
    assert len(list(windows(np.zeros((20, 20), np.uint8), np.random.default_rng(0)))) == 1


def test_prediction_finds_what_the_surroundings_do_not_foretell() -> None:
    light = Light.of(good_cloth())
    prediction = Prediction.fit([light.even(one) for one in good_cloth()[:4]])
    changed, where = holed(good_cloth()[5], 90, 150)
    strange = prediction.strangeness(light.even(changed))
    assert strange.shape == where.shape
    assert strange[where].max() > prediction.strangeness(light.even(good_cloth()[5])).max() + 0.5


def test_normality_outlines_drawn_defects() -> None:
    rng, precisions = np.random.default_rng(1), []
    for kind in ("hole", "slub", "oil stain", "knot"):
        image, mask = draw_defect(good_cloth()[5], kind, rng)
        precisions.append(average_precision(normality().score(image), mask))
    assert np.mean(precisions) > 0.35  # a map of chance has the share of defective pixels, under .02


def test_a_picture_that_differs_as_a_whole_is_no_alarm_and_its_defect_still_is() -> None:
    rng = np.random.default_rng(2)
    changed, where = holed(good_cloth()[5], 90, 150)
    grainy = np.clip(changed + rng.normal(0, 8, changed.shape), 0, 255).astype(np.uint8)
    score = normality().score(grainy)
    assert np.mean(score > 0.5) < 0.1
    assert score[where].max() > 0.8


def test_scores_are_the_same_after_saving() -> None:
    again = Normality.from_arrays(normality().to_arrays())
    assert again.methods == ("memory", "prediction")
    assert np.allclose(again.score(good_cloth()[5]), normality().score(good_cloth()[5]), atol=1e-5)


@pytest.mark.parametrize("lost", ["light", "memory.0.bank", "prediction.2.kernel"])
def test_incomplete_arrays_are_refused(lost: str) -> None:
    arrays = {key: value for key, value in normality().to_arrays().items() if key != lost}
    with pytest.raises(ValueError, match=r"normality has no|not enough"):
        Normality.from_arrays(arrays)


def test_the_same_seed_remembers_the_same() -> None:
    one, two = (
        Memory.fit(good_cloth()[:2], MemorySettings(budget_mb=0.5), seed=3).to_arrays() for _ in range(2)
    )
    assert all(np.array_equal(one[key], two[key]) for key in one)


class _Many(Sequence[Picture]):
    """More good pictures than anybody holds in memory: each is woven when it is asked for."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: object) -> Picture:
        assert isinstance(index, int | np.integer)
        if index >= len(self):
            raise IndexError(index)
        return np.roll(good_cloth()[int(index) % 6], 7 * int(index), axis=1)[:128, :160]  # type: ignore[return-value]


@pytest.mark.parametrize("budget", [0.25, 1.0])
def test_the_memory_stays_within_its_budget(budget: float) -> None:
    memory = Memory.fit(_Many(), MemorySettings(budget_mb=budget))
    memory.add(_Many(), seed=1)
    size = sum(value.nbytes for key, value in memory.to_arrays().items() if key.endswith("bank"))
    assert size <= budget * 1e6 / 3


def test_added_cloth_is_no_longer_strange() -> None:
    other = weave(PRESETS["sheeting"], 192, 320, np.random.default_rng(5)).image
    memory = Memory.fit(good_cloth()[:2], MemorySettings(budget_mb=1))
    light = Light.of(good_cloth())
    before = memory.strangeness(light.even(other)).mean()
    memory.add([light.even(other)])
    assert memory.strangeness(light.even(other)).mean() < before - 0.3


def test_a_missed_defect_is_found_again_after_teaching() -> None:
    own = Normality.from_arrays(normality().to_arrays())
    first, where = holed(good_cloth()[4], 80, 100, 4)
    second, there = holed(good_cloth()[5], 120, 200, 4)
    before, calm = own.score(second), own.score(good_cloth()[3])
    own.teach(first, where, defect=True)
    after = own.score(second)
    assert after[there].max() > before[there].max()
    # and good cloth stays as calm as it was, but for a few places
    assert np.mean(own.score(good_cloth()[3]) > calm + 0.05) < 0.01


def test_a_false_alarm_is_silent_after_teaching() -> None:
    own = Normality.from_arrays(normality().to_arrays())
    picture, where = holed(good_cloth()[4], 80, 100)
    before = own.score(picture)[where].max()
    own.teach(picture, where, defect=False)
    after = own.score(picture)[where].max()
    assert before > 0.8
    assert after < 0.5
    again = Normality.from_arrays(own.to_arrays())
    assert np.allclose(again.score(picture), own.score(picture), atol=1e-5)


@pytest.mark.parametrize("where", [np.zeros((192, 320), np.bool_), np.ones((3, 3), np.bool_)])
def test_a_place_that_is_none_cannot_be_taught(where: Mask) -> None:
    with pytest.raises(ValueError, match="a place needs pixels"):
        normality().teach(good_cloth()[0], where, defect=True)


def test_what_has_no_memory_cannot_be_taught() -> None:
    own = Normality.fit(good_cloth()[:2], methods=(Prediction.fit,))
    with pytest.raises(ValueError, match="needs a memory"):
        own.teach(good_cloth()[0], np.ones((192, 320), np.bool_), defect=True)


def test_a_union_keeps_the_promise_and_finds_what_either_finds() -> None:
    rng = np.random.default_rng(0)
    known = [rng.beta(1, 30, (200, 200)).astype(np.float32) for _ in range(5)]
    strange = [rng.beta(2, 5, (200, 200)).astype(np.float32) for _ in range(5)]
    rate = AlarmRate.per_megapixel(20.0)
    point, operating, united = calibrate_union(known, strange, rate, min_area=1, merge_gap=0)
    assert operating.alarms_seen <= operating.alarms_allowed
    assert len(united) == 5
    for which in range(2):
        maps = [np.full((50, 50), 0.01, np.float32) for _ in range(2)]
        maps[which][20:24, 20:24] = 0.999
        assert point.unite(maps[0], maps[1])[20:24, 20:24].min() > operating.threshold


def test_tails_are_measured_in_logits() -> None:
    logits = np.random.default_rng(0).exponential(2.0, 4000) - 5
    assert tail_scale(list(1 / (1 + np.exp(-logits)))) == pytest.approx(2.0, rel=0.6)
    assert tail_scale([0.5, 0.4]) == 1.0
