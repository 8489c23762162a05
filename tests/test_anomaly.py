"""Normality: light, memory, prediction, what is taught, and the union with a segmenter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.special import logit

from loomsight.anomaly import MethodName, Residual
from loomsight.anomaly.calibration import UnionPoint, calibrate_union
from loomsight.anomaly.drift import LEAST, measure, reference
from loomsight.anomaly.fanogan import FAnoGan
from loomsight.anomaly.features import Features, windows
from loomsight.anomaly.marks import Marks
from loomsight.anomaly.memory import Memory, MemorySettings, _cut, _Level
from loomsight.anomaly.normality import Normality, _Even, open_method
from loomsight.anomaly.prediction import Prediction
from loomsight.anomaly.student import Student
from loomsight.errors import DatasetError
from loomsight.evaluation.operating_point import AlarmRate, tail_scale
from loomsight.evaluation.pixels import average_precision
from loomsight.fabric.heat import heat_map
from loomsight.fabric.light import Light, brightness
from loomsight.fabric.regions import EVERY_PIXEL, Grouping, find_regions
from loomsight.fabric.types import Box, Mask, Picture
from loomsight.learn.adversarial import CellGanTask
from loomsight.learn.distillation import train_student
from loomsight.learn.goodpatches import GoodPatches
from loomsight.learn.normality import fitting
from loomsight.loom import PRESETS, draw_defect, weave
from loomsight.runtime.compiled import Ready, Tiles
from loomsight.runtime.engine import SegmenterEngine, UnionEngine
from loomsight.runtime.gate import BLOCK, CELL, GROUP, GatedEngine
from loomsight.training.loop import TrainSettings, fit, trained_weights

TWILL = PRESETS["denim"]


@cache
def good_cloth(count: int = 6) -> tuple[Picture, ...]:
    rng = np.random.default_rng(0)
    return tuple(weave(TWILL, 192, 320, rng).image for _ in range(count))


@cache
def normality() -> Normality:
    small = partial(Memory.fit, settings=MemorySettings(budget_mb=128))
    return Normality.fit(good_cloth()[:4], held=good_cloth()[4:5], methods=(small, Prediction.fit))


def holed(picture: Picture, y: int, x: int, radius: int = 6) -> tuple[Picture, Mask]:
    """A picture with a dark round hole, and where it is."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.circle(mask, (x, y), radius, 1, -1)
    where = mask.astype(bool)
    changed = picture.copy()
    changed[where] = 12
    return changed, where


def test_exported_features_come_to_where_the_memory_compares_them() -> None:
    features = Features()
    features.device = torch.device("meta")  # stands for a GPU
    features.run_by(lambda even: ([np.zeros((4, 2, 2), np.float32)] for _ in even))
    ((level,),) = features.levels_of([np.zeros((32, 32, 3), np.uint8)])
    assert level.device == features.device


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
    for learned_by in (Light.of, Memory.fit, Normality.fit):
        with pytest.raises(DatasetError, match="no good cloth"):
            learned_by([])


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
    assert strange.shape == (*where.shape, 3)
    place, calm = strange[..., 0], prediction.strangeness(light.even(good_cloth()[5]))[..., 0]
    assert place[where].max() > calm.max() + 0.5


@pytest.mark.parametrize(("along", "which"), [("weft", 1), ("warp", 2)])
def test_a_yarn_that_is_a_shade_off_is_seen_along_itself_and_nowhere_else(along: str, which: int) -> None:
    """No pixel of it is unusual: 5 grey levels lighter where the cloth's noise is 12."""
    rng = np.random.default_rng(0)
    calm = [rng.normal(128, 12, (192, 320)) for _ in range(4)]
    pictures = [np.repeat(one.clip(0, 255).astype(np.uint8)[..., None], 3, 2) for one in calm]
    prediction = Prediction.fit(pictures[:3])
    line = np.zeros((192, 320), bool)
    line[(slice(100, 102), slice(80, 240)) if along == "weft" else (slice(50, 150), slice(160, 162))] = True
    faint = (calm[3] + 5 * line).clip(0, 255).astype(np.uint8)
    said = prediction.strangeness(np.repeat(faint[..., None], 3, 2))
    usual = np.concatenate([prediction.strangeness(one).reshape(-1, 3) for one in pictures[:3]])
    rare = np.quantile(usual, 0.995, axis=0)
    seen = [float((said[..., k][line] > rare[k]).mean()) for k in range(3)]
    assert seen[which] > 0.5
    assert seen[0] < 0.2
    assert seen[3 - which] < 0.2


def test_no_line_is_seen_at_the_border_of_good_cloth() -> None:
    """There the ring is mirrored and errs to one side, which a mean along the border would add up."""
    light = Light.of(good_cloth())
    prediction = Prediction.fit([light.even(one) for one in good_cloth()[:4]])
    row, column = np.moveaxis(prediction.strangeness(light.even(good_cloth()[5]))[..., 1:], -1, 0)
    assert max(row[:8].max(), row[-8:].max()) < np.median(row)
    assert max(column[:, :8].max(), column[:, -8:].max()) < np.median(column)


def test_each_direction_has_an_expectation_of_its_own() -> None:
    """Uneven wefts are this cloth's way, so a warp that is a shade off has to be seen beside them."""
    rng = np.random.default_rng(0)

    def cloth() -> np.ndarray:
        return rng.normal(128, 8, (192, 320)) + rng.normal(0, 10, (192, 1))

    def picture(grey: np.ndarray) -> Picture:
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)

    own = Normality.fit(
        [picture(cloth()) for _ in range(4)], held=[picture(cloth())], methods=(Prediction.fit,)
    )
    faulty = cloth()
    faulty[40:150, 160:162] += 5
    score = own.score(picture(faulty))
    assert score[50:140, 159:163].max(axis=1).mean() > 0.55
    assert np.quantile(np.delete(score, slice(150, 172), axis=1), 0.99) < 0.45


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


def test_all_parts_of_a_picture_that_differs_as_a_whole_score_as_the_whole_does() -> None:
    """Behind a gate a picture is looked at in parts; when these are all of it, it is no alarm either."""
    rng = np.random.default_rng(2)
    grainy = np.clip(good_cloth()[5] + rng.normal(0, 8, good_cloth()[5].shape), 0, 255).astype(np.uint8)
    height, width = grainy.shape[:2]
    halves = [(0, 0, width // 2, height), (width // 2, 0, width, height)]
    score, _, known = normality().look_where(grainy, halves)
    assert known.all()
    assert np.allclose(score, normality().score(grainy), atol=1e-5)


def test_a_part_of_a_picture_scores_as_it_does_in_the_whole() -> None:
    """Also where the lamp is uneven, and where a false alarm was taught."""
    own = Normality.from_arrays(normality().to_arrays())
    wide = np.tile(good_cloth()[1], (3, 5, 1))
    lamp = np.linspace(0.8, 1.1, wide.shape[0])[:, None, None]
    picture, where = holed((wide * lamp).clip(0, 255).astype(np.uint8), 300, 800)
    own.teach(*holed(good_cloth()[4], 100, 60), defect=False)
    box = (780, 280, 820, 320)
    score, calmed, known = own.look_where(picture, [box])
    whole, calmed_whole = own.look(picture)
    assert calmed is not None
    assert calmed_whole is not None
    assert known[280:320, 780:820].all()
    assert known.mean() < 0.5
    assert np.median(whole[where]) > np.median(whole)
    assert np.allclose(calmed[known], calmed_whole[known], atol=1e-5)
    # but for one number: by how much the picture is stranger as a whole, which is not taken off bars
    sure = known & (whole < 0.99)
    apart = logit(score[sure].astype(np.float64)) - logit(whole[sure].astype(np.float64))
    assert apart.min() > -1e-3
    assert apart.max() < np.median(apart) + 1e-3 < 0.1


@pytest.mark.parametrize("boxes", [[], [(900, 900, 910, 910)]])
def test_of_a_place_that_is_nowhere_nothing_is_known(boxes: list[Box]) -> None:
    score, calmed, known = normality().look_where(good_cloth()[5], boxes)
    assert score.shape == known.shape == good_cloth()[5].shape[:2]
    assert not known.any()
    assert calmed is None


def test_a_strange_picture_takes_nothing_off_what_is_seen_of_the_next() -> None:
    rng = np.random.default_rng(2)
    grainy = np.clip(good_cloth()[5] + rng.normal(0, 8, good_cloth()[5].shape), 0, 255).astype(np.uint8)
    height, width = grainy.shape[:2]
    part = [(0, 0, 8, height)]
    wide = np.concatenate([good_cloth()[4]] * (700 // width + 1), axis=1)  # more than one tile
    before, _, known = normality().look_where(wide, part)
    assert not known.all()
    normality().score(grainy)
    after, _, _ = normality().look_where(wide, part)
    assert np.array_equal(before, after)


def test_scores_are_the_same_after_saving() -> None:
    again = Normality.from_arrays(normality().to_arrays())
    assert again.methods == ("memory", "prediction", "bars")
    assert np.allclose(again.score(good_cloth()[5]), normality().score(good_cloth()[5]), atol=1e-5)


@pytest.mark.parametrize(
    "lost", ["light", "memory.0.bank", "prediction.2.kernel", "prediction.expected.2.tail"]
)
def test_incomplete_arrays_are_refused(lost: str) -> None:
    arrays = {key: value for key, value in normality().to_arrays().items() if key != lost}
    with pytest.raises(ValueError, match=r"normality has no|not enough"):
        Normality.from_arrays(arrays)


def test_the_same_seed_remembers_the_same() -> None:
    one, two = (
        Memory.fit(good_cloth()[:2], MemorySettings(budget_mb=64), seed=3).to_arrays() for _ in range(2)
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


@pytest.mark.parametrize("budget", [64.0, 128.0])
def test_what_is_remembered_stays_within_its_share_of_the_budget(
    budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []
    take = _Level.take

    def watched(level: _Level, *more: Any) -> None:
        take(level, *more)
        peaks.append(level.room.numel() * 4)

    monkeypatch.setattr(_Level, "take", watched)
    memory = Memory.fit(_Many(), MemorySettings(budget_mb=budget))
    memory.add(_Many(), seed=1)
    share = budget * 1e6 / 128
    assert 0.5 * share < 3 * max(peaks)
    assert sum(sorted(set(peaks))[-3:]) <= 1.01 * share
    size = sum(value.nbytes for key, value in memory.to_arrays().items() if key.endswith("bank"))
    assert size <= share / 3


def test_what_remembering_takes_stays_within_the_budget_whatever_the_size_of_the_pictures() -> None:
    script = Path(__file__).parents[1] / "benchmarks/anomaly_memory.py"
    words = [sys.executable, str(script), "--side", "1024", "--one", "1", "64"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert 4 < json.loads(done.stdout)["grew_mb"] < 1.1 * 64


@pytest.mark.parametrize("shape", [(200, 230), (256, 2000), (2000, 256), (700, 900)])
def test_pieces_are_all_of_a_picture_and_are_seen_with_the_cloth_around_them(shape: tuple[int, int]) -> None:
    side = 240
    picture, covered = np.arange(shape[0] * shape[1]).reshape(shape), np.zeros(shape, np.int64)
    for seen, inner, _ in _cut(picture, side):
        assert seen.size <= side**2
        rows, columns = (
            slice(round(start * length), round(stop * length))
            for (start, stop), length in zip(inner, seen.shape, strict=True)
        )
        np.add.at(covered.ravel(), seen[rows, columns].ravel(), 1)
        top, left = divmod(int(seen[0, 0]), shape[1])
        assert rows.start == 60 or top == 0
        assert columns.start == 60 or left == 0
    assert (covered == 1).all()


def test_a_large_picture_is_remembered_and_taught_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, levels = [], Features.levels

    def watched(features: Features, picture: Picture) -> Any:
        looked.append(picture.shape[0] * picture.shape[1])
        return levels(features, picture)

    monkeypatch.setattr(Features, "levels", watched)
    large = np.tile(good_cloth()[0], (8, 5, 1))[:1400, :1500]
    memory = Memory.fit([large], MemorySettings(budget_mb=64))
    assert max(looked) <= 240**2
    looked.clear()
    where = np.zeros(large.shape[:2], np.bool_)
    where[690:710, 500:560] = True  # where pieces meet
    holed = large.copy()
    holed[where] = 0
    memory.teach(holed, where, defect=True)
    memory.spare([holed[600:800, 100:300]])
    assert max(looked) <= 240**2
    assert memory.taught
    (said,) = memory.recognised_of([holed[600:800, 400:700]])
    assert said[95:105, 110:150].mean() > 0.5
    assert np.median(said) == 0


@pytest.mark.parametrize(("kept", "budget"), [(4.0, 512.0), (0.25, 64.0)])
def test_an_earlier_memory_opens_and_learns_on_within_the_budget_of_today(kept: float, budget: float) -> None:
    """An array of it holds the coreset's share, 4 MB as ever; with less there is the least budget."""
    fresh = Memory.fit(good_cloth()[:1], MemorySettings(budget_mb=64))
    opened = Memory.from_arrays(fresh.to_arrays() | {"budget": np.array([kept], np.float32)})
    assert opened._settings.budget_mb == budget
    assert (opened.strangeness(good_cloth()[0]) == fresh.strangeness(good_cloth()[0])).all()
    opened.add(good_cloth()[1:2])
    banks = sum(own.nbytes for key, own in opened.to_arrays().items() if key.endswith("bank"))
    assert banks <= budget / 128 * 1e6 / 3


def test_added_cloth_is_no_longer_strange() -> None:
    other = weave(PRESETS["sheeting"], 192, 320, np.random.default_rng(5)).image
    memory = Memory.fit(good_cloth()[:2], MemorySettings(budget_mb=128))
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


def test_a_place_like_good_cloth_taught_as_a_defect_makes_no_good_cloth_strange() -> None:
    own = Normality.from_arrays(normality().to_arrays())
    calm = own.score(good_cloth()[3])
    where = np.zeros(good_cloth()[4].shape[:2], np.bool_)
    where[60:100, 100:160] = True
    own.teach(good_cloth()[4], where, defect=True)
    own.spare(good_cloth()[:2])
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


def printed(picture: Picture, y: int, x: int, text: str = "LOT 7") -> tuple[Picture, Mask]:
    """A picture with a printed mark, its upper left corner at y and x, and the mark's place."""
    ink = np.zeros(picture.shape[:2], np.uint8)
    cv2.putText(ink, text, (x + 4, y + 36), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 3, cv2.LINE_AA)
    where = np.zeros(picture.shape[:2], np.bool_)
    where[y : y + 44, x : x + 130] = True
    return np.clip(picture * (1 - 0.5 * (ink / 255.0))[..., None], 0, 255).astype(np.uint8), where


@pytest.mark.parametrize("how", ["false alarm", "good pictures"])
def test_a_printed_mark_is_silent_elsewhere_and_a_hole_beside_it_or_in_it_is_not(how: str) -> None:
    own = Normality.from_arrays(normality().to_arrays())
    picture, there = printed(good_cloth()[5], 110, 150)
    before = own.score(picture)[there]
    if how == "false alarm":
        own.teach(*printed(good_cloth()[4], 20, 30), defect=False)
    else:
        own.add(
            [printed(good_cloth()[number], 30 + 10 * number, 20 + 25 * number)[0] for number in (2, 3, 4)]
        )
    again = Normality.from_arrays(own.to_arrays())
    assert before.max() > 0.9
    assert again.score(picture)[there].max() < 0.5
    for y, x in ((60, 80), (132, 215)):
        broken, hole = holed(picture, y, x)
        assert again.score(broken)[hole].max() > 0.75


def test_a_mark_that_was_a_defect_after_all_is_found_again() -> None:
    own = Normality.from_arrays(normality().to_arrays())
    picture, where = printed(good_cloth()[4], 20, 30)
    before = own.score(picture)[where].max()
    own.teach(picture, where, defect=False)
    own.teach(picture, where, defect=True)
    assert own.score(picture)[where].max() > before - 1e-3


class One:
    """A gate that passes one block of a picture."""

    runtime, step, depth = "test", CELL, 2

    def __init__(self, column: int) -> None:
        self._column = column

    def start(self, tiles: Tiles) -> Ready:
        cells = np.full((1, tiles.shape[1] // CELL, tiles.shape[2] * GROUP // CELL), -9, np.float32)
        cells[0, 0, self._column * BLOCK // CELL] = 9
        return Ready((cells,))


def test_a_mark_that_a_gate_passes_in_part_is_as_silent_as_in_the_whole_picture(
    blind: SegmenterEngine,
) -> None:
    """The letter before the tile's edge is no alarm by itself, and a hole there is."""
    own = Normality.from_arrays(normality().to_arrays())
    own.teach(*printed(good_cloth()[4], 20, 30, "T   7"), defect=False)
    union = UnionEngine(blind, own, UnionPoint(0.5, 1.0, 0.6, 1.0))
    grouping = Grouping(20, 5)
    gated = GatedEngine(One(2), 0.0, 0.3, 3, union, point=(0.5, grouping), audits=False)
    wide = np.concatenate([good_cloth()[5]] * 3, axis=1)[:, :860]
    picture, there = printed(wide, 70, 370, "T   7")
    _, _, known = own.look_where(picture, [(256, 0, 384, 128)])
    assert known[there].any()
    assert not known[there].all()
    broken, _ = holed(picture, 50, 268)
    look, holed_look = gated.looks([picture, broken])
    assert find_regions(union.score(picture), 0.5, grouping) == look.regions(0.5, grouping) == []
    assert len(holed_look.regions(0.5, grouping)) == 1


def test_a_spot_is_no_mark() -> None:
    y, x = np.mgrid[:200, :200]
    strange = (5 * np.exp(-((y - 100) ** 2 + (x - 90) ** 2) / 600) - 1).astype(np.float32)
    marks = Marks()
    assert not marks.teach(strange, (strange > -0.8))
    marks.find([strange, np.roll(strange, 20, 0)])
    assert len(marks) == 0


def test_a_bar_that_is_no_defect_is_silent_after_teaching() -> None:
    good = good_cloth()
    own = Normality.fit(good, methods=[Memory.fit], bars=True)
    first, second = good[4].copy(), good[5].copy()
    for picture in (first, second):
        picture[80:120] = np.clip(picture[80:120] * 0.6, 0, 255).astype(np.uint8)
    where = np.zeros(first.shape[:2], np.bool_)
    where[80:120] = True

    def seen() -> float:
        bars = own.bars(second)
        assert bars is not None
        return float(bars.max())

    assert seen() > 0
    own.teach(first, where, defect=False)
    assert seen() < 0


def test_a_mark_and_a_bar_that_were_taught_are_strange_again_when_that_is_taken_back() -> None:
    good = good_cloth()
    own = Normality.fit(
        good, methods=[partial(Memory.fit, settings=MemorySettings(budget_mb=128))], bars=True
    )
    barred, where = good[4].copy(), np.zeros(good[4].shape[:2], np.bool_)
    barred[80:120] = np.clip(barred[80:120] * 0.6, 0, 255).astype(np.uint8)
    where[80:120] = True
    marked, there = printed(good[4], 20, 30)
    other, _ = printed(good[5], 110, 150)
    before = [own.score(picture) for picture in (barred, other)]
    own.teach(barred, where, defect=False, lesson=1)
    own.teach(marked, there, defect=False, lesson=2)
    calm = own.score(other)
    own.teach(marked, there, defect=True, lesson=3)
    own = Normality.from_arrays(own.to_arrays())
    own.forget([3])
    np.testing.assert_allclose(own.score(other), calm, atol=1e-5)
    own = Normality.from_arrays(own.to_arrays())
    own.forget([1, 2])
    for picture, plain in zip((barred, other), before, strict=True):
        np.testing.assert_allclose(own.score(picture), plain, atol=1e-5)


def test_lessons_that_are_settled_stay_and_take_no_room_of_their_own() -> None:
    memory = Memory.from_arrays(
        {
            key.removeprefix("memory."): array
            for key, array in normality().to_arrays().items()
            if key.startswith("memory.")
        }
    )
    picture, where = good_cloth()[5][:64, :96], np.ones((64, 96), np.bool_)
    for lesson in range(1, 11):
        memory.teach(np.roll(picture, 9 * lesson, 1), where, defect=False, lesson=lesson)
    assert len(memory.to_arrays()["0.good"]) == 320
    memory.settle(range(1, 11))
    memory.forget(range(1, 11))
    assert len(memory.to_arrays()["0.good"]) == 256
    assert memory.taught


def test_the_first_lesson_is_kept_however_many_follow() -> None:
    own = Normality.from_arrays(normality().to_arrays())
    first, where = holed(good_cloth()[4], 80, 100)
    own.teach(first, where, defect=False)
    calm = own.score(first)[where].max()
    for number in range(12):
        other, there = holed(good_cloth()[number % 6], 40 + 9 * number, 60 + 15 * number, 3 + number % 4)
        own.teach(other, there, defect=False)
    assert own.score(first)[where].max() < calm + 0.1


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
    point, operating, united = calibrate_union(known, strange, rate, EVERY_PIXEL)
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


@cache
def even_cloth() -> tuple[Picture, ...]:
    light = Light.of(good_cloth())
    return tuple(light.even(one) for one in good_cloth())


@pytest.mark.parametrize("name", ["fanogan", "ganomaly", "student"])
def test_a_network_learns_good_cloth_and_opens_again(name: MethodName) -> None:
    own = Normality.fit(
        good_cloth()[:4], held=good_cloth()[4:5], methods=[fitting(name, steps=10, seed=1)], bars=False
    )
    assert own.methods == (name,)
    again = Normality.from_arrays(own.to_arrays())
    for shape in ((192, 320), (50, 37)):
        picture = good_cloth()[5][: shape[0], : shape[1]]
        score = own.score(picture)
        assert score.shape == shape
        assert np.isfinite(score).all()
        assert np.allclose(again.score(picture), score, atol=1e-5)


@pytest.mark.parametrize("name", ["fanogan", "ganomaly", "student"])
def test_the_same_seed_trains_the_same_network(name: MethodName) -> None:
    one, two = (fitting(name, steps=4, seed=2)(even_cloth()[:2]).to_arrays() for _ in range(2))
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_a_student_knows_a_hole_from_good_cloth() -> None:
    student, _ = train_student(even_cloth()[:4], steps=80)
    light = Light.of(good_cloth())
    picture, where = holed(good_cloth()[5], 80, 200, 8)
    strange, calm = (student.strangeness(light.even(one)) for one in (picture, good_cloth()[5]))
    assert strange[where].max() > np.quantile(calm, 0.999)
    assert average_precision(strange, where) > 0.3


def test_a_student_measures_differences_by_good_cloth() -> None:
    """On good cloth both differences have unit variance: what is rare counts, not what is large."""
    student, _ = train_student(even_cloth()[:4], steps=20)
    x = GoodPatches(even_cloth()[:4], 128, 16).batch(3)
    with torch.no_grad():
        said, same = student.student(x).chunk(2, 1)
        for difference in (student.teacher(x) - said, student.autoencoder(x) - same):
            assert 0.2 < float(difference.square().mean((0, 2, 3)).median()) < 5


def test_the_gan_of_cells_weaves_what_it_saw() -> None:
    """After a few hundred steps its cloth has about the brightness and the contrast of the real one."""
    torch.manual_seed(0)
    patches = GoodPatches(even_cloth()[:4], 32, 8)
    made = FAnoGan(patches.channels)
    fit(CellGanTask(made), patches.batch, TrainSettings(steps=100, clip_norm=None, ema=0.9))
    with torch.no_grad():
        woven = made.generator(torch.randn(8, 32, 2, 2))
    real = torch.cat([patches.batch(k) for k in range(4)])
    assert abs(float(woven.mean() - real.mean())) < 0.3
    assert float(woven.std()) > 0.3 * float(real.std())


def test_anogan_searches_what_the_encoder_guesses() -> None:
    made = fitting("fanogan", steps=20)(even_cloth()[:2])
    assert isinstance(made, FAnoGan)
    before = trained_weights(CellGanTask(made))
    picture = even_cloth()[3][:64, :96]
    short, long = (made.search(picture, steps=steps) for steps in (1, 40))
    assert short.shape == (64, 96)
    assert long.mean() < short.mean() - 0.05  # a logarithm: what is found is nearer than chance
    after = trained_weights(CellGanTask(made))
    assert all(bool((before[key] == after[key]).all()) for key in before)


@pytest.mark.parametrize("residuals", [("pixels",), ("frozen",), ("pixels", "features", "frozen")])
def test_what_a_gan_compares_is_kept(residuals: tuple[Residual, ...]) -> None:
    from loomsight.learn.adversarial import train_ganomaly

    made, _ = train_ganomaly(even_cloth()[:2], steps=2, residuals=residuals)
    again = open_method("ganomaly", made.to_arrays())
    # a weaving is rounded to grey levels before frozen features look at it
    away = again.strangeness(even_cloth()[3]) - made.strangeness(even_cloth()[3])
    assert float(np.abs(away).mean()) < 1e-3
    assert made.residuals == residuals


def test_grey_cloth_has_networks_of_one_channel() -> None:
    grey = [np.repeat(one[..., :1], 3, axis=2) for one in even_cloth()[:2]]
    (student, steps), (coloured, _) = (train_student(one, steps=2) for one in (grey, even_cloth()[:2]))
    assert (student.channels, coloured.channels, steps) == (1, 3, 2)
    assert Student.from_arrays(student.to_arrays()).channels == 1


def test_a_margin_without_cloth_does_not_decide_for_the_cloth() -> None:
    """A twentieth of each good picture is off the cloth: a defect is as strange as it would be without."""
    beside = [np.concatenate([np.full((192, 16, 3), 250, np.uint8), one], axis=1) for one in good_cloth()]
    own = Normality.fit(beside[:4], held=beside[4:5], methods=(Prediction.fit,))
    picture, where = holed(good_cloth()[5], 80, 200)
    score = own.score(np.concatenate([np.full((192, 16, 3), 250, np.uint8), picture], axis=1))[:, 16:]
    assert score[where].max() > score[:, :150].max()


def test_methods_count_in_the_tails_of_good_cloth() -> None:
    """A method that says everything ten times as loudly has no more to say."""

    class Loud(Prediction):
        def strangeness(self, even: Picture) -> np.ndarray:
            return 10 * super().strangeness(even)

    plain, loud = (
        Normality.fit(good_cloth()[:4], held=good_cloth()[4:5], methods=(way,))
        for way in (Prediction.fit, Loud.fit)
    )
    picture, where = holed(good_cloth()[5], 80, 200)
    one, other = plain.score(picture), loud.score(picture)
    assert abs(float(one[where].mean()) - float(other[where].mean())) < 0.1


@pytest.mark.parametrize("start", [0, 1, 2])
def test_contrast_is_that_of_all_the_weave_wherever_it_begins(start: int) -> None:
    """It is read from every third row and column."""
    rows = np.tile(np.array([60, 160, 110], np.uint8), 100)[start : start + 240]
    woven = np.repeat(rows[:, None], 240, axis=1)
    assert measure(woven, None)["contrast"] == pytest.approx(np.log(100 / 110), abs=0.1)


def test_expectations_come_from_all_of_the_cloth_also_where_the_first_picture_is_small() -> None:
    read: list[int] = []

    class Pictures(Sequence[Picture]):
        def __len__(self) -> int:
            return 41

        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return np.full((700, 700) if index else (64, 64), 100 + index % 9, np.uint8)

    shown = list(_Even(Light((100.0, 100.0, 100.0), 10.0), Pictures()).some())
    assert sum(one.shape[0] * one.shape[1] for one in shown) == pytest.approx(8e6, rel=0.1)
    assert np.mean(read) == pytest.approx(20, abs=5)


def test_an_aged_lamp_a_soft_lens_and_another_lot_are_drift_and_a_stain_is_none() -> None:
    maps = [normality().score(one) for one in good_cloth()]
    card = reference(good_cloth(), maps)

    def off(picture: Picture) -> set[str]:
        found = measure(picture, normality().score(picture))
        return {key for key in LEAST if abs(found[key] - card.usual[key]) > card.allowed[key]}

    picture = good_cloth()[5]
    assert off(picture) == off(holed(picture, 80, 200, 20)[0]) == set()
    assert "light" in off(np.rint(picture * 0.75).astype(np.uint8))
    slope = np.linspace(0.75, 1.1, picture.shape[1])[None, :, None]
    assert "slope" in off(np.rint(picture * slope).clip(0, 255).astype(np.uint8))
    assert "focus" in off(np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.5), np.uint8))
    other = weave(PRESETS["sheeting"], 192, 320, np.random.default_rng(5)).image
    assert "unrest" in off(other)


def test_a_heat_map_is_brightest_where_the_score_is_highest() -> None:
    picture = np.full((40, 60), 128, np.uint8)
    score = np.full((40, 60), 0.001, np.float32)
    score[10:20, 10:20], score[30:35, 40:50] = 0.5, 0.99
    shown = heat_map(picture, score, 0.6).astype(int)
    assert shown.shape == (40, 60, 3)
    away = np.abs(shown - shown[0, 0]).sum(axis=2)
    assert away[32, 45] > 100
    assert away[15, 15] > 50
    assert away[0, -1] == 0
