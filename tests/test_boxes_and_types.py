"""Figures over boxes, as COCO and as a mill count them; which type is called what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loomsight.anomaly.calibration import UnionPoint
from loomsight.detection.deeplab import Segmenter
from loomsight.detection.fusion import FusionPoint
from loomsight.evaluation.boxes import BoxScores, regions_at_half_maximum
from loomsight.evaluation.confusion import MISSED, Confusion, pair_types
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.margin import Margin
from loomsight.fabric.regions import Grouping, find_regions
from loomsight.fabric.types import UNKNOWN, LabelledPicture, Region
from loomsight.inspection.scoring import ProfileScores
from loomsight.runtime.compiled import Ready
from loomsight.runtime.engine import DetectorEngine, TorchEngine, UnionEngine

SHAPE = (500, 1000)


def region(x0: int, y0: int, x1: int, y1: int, score: float = 0.9, kind: str = "hole") -> Region:  # noqa: PLR0917
    return Region((x0, y0, x1, y1), (x1 - x0) * (y1 - y0), float(x1 - x0), score, kind)


def boxes(*xyxy: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(xyxy, np.float32).reshape(-1, 4)


def test_perfect_boxes_have_average_precision_one_and_shifted_ones_less() -> None:
    perfect, shifted = BoxScores(), BoxScores()
    for picture in range(4):
        x = 50 + 40 * picture
        perfect.add([region(x, 20, x + 20, 40)], boxes((x, 20, x + 20, 40)), ["hole"], SHAPE)
        shifted.add([region(x + 5, 20, x + 25, 40)], boxes((x, 20, x + 20, 40)), ["hole"], SHAPE)
    assert perfect.figures().ap == pytest.approx(1)
    assert perfect.figures().ap_small == pytest.approx(1)
    found = shifted.figures()
    assert found.ap50 == pytest.approx(1), "IoU is .6"
    assert found.ap == pytest.approx(0.3, abs=0.01), "at .50, .55 and .60 of ten"


def test_types_count_where_they_are_asked_for() -> None:
    for types, expected in ((None, 1.0), (("hole", "nep"), 0.0)):
        scores = BoxScores(types)
        scores.add([region(10, 10, 30, 30, kind="nep")], boxes((10, 10, 30, 30)), ["hole"], SHAPE)
        assert scores.figures().ap50 == pytest.approx(expected)


def test_large_boxes_are_not_small_and_pictures_without_any_have_no_figure() -> None:
    scores = BoxScores()
    scores.add([region(0, 0, 300, 40)], boxes((0, 0, 300, 40)), ["hole"], SHAPE)
    assert scores.figures().ap_small is None
    empty = BoxScores()
    empty.add([], boxes(), [], SHAPE)
    assert empty.figures().ap is None
    assert empty.recall_at(1.0) is None
    missed = BoxScores()
    missed.add([], boxes((0, 0, 30, 40)), ["hole"], SHAPE)
    assert missed.figures().ap == 0
    assert missed.recall_at(1.0) == 0
    with pytest.raises(ValueError, match="type"):
        missed.add([], boxes((0, 0, 30, 40)), [], SHAPE)


def test_recall_is_taken_at_the_false_alarms_that_are_allowed() -> None:
    scores = BoxScores()
    for picture in range(2):  # one megapixel
        found = [region(700, 400, 720, 420, 0.8), region(10, 10, 30, 30, 0.6 + 0.3 * picture)]
        scores.add(found, boxes((10, 10, 30, 30)), ["hole"], SHAPE)
    # two false alarms score .8, the two defects .6 and .9
    assert scores.recall_at(1.0) == 0.5
    assert scores.recall_at(2.0) == 1.0


def test_a_region_of_a_map_ends_at_half_of_its_own_height_and_faint_ones_do_too() -> None:
    x = np.arange(200, dtype=np.float32)[None].repeat(60, 0)
    y = np.arange(60, dtype=np.float32)[:, None].repeat(200, 1)

    def hill(at: float, height: float) -> np.ndarray:
        """A probability that falls to half of its height ten pixels from its middle."""
        distance = np.maximum(abs(x - at), abs(y - 30))
        return np.asarray(height * np.clip(1 - distance / 20, 0, None), np.float32)

    likely = hill(50, 0.96) + hill(140, 0.3)
    score = 3 * likely / (1 - likely + 3 * likely)  # as a segmenter says it that counted defects three times
    found = regions_at_half_maximum(score, 0.05, Grouping(4, 5), weight=3.0)
    assert [one.box for one in found] == [(40, 20, 61, 41), (130, 20, 151, 41)]
    assert [one.area for one in found] == [441, 441]
    assert [one.score for one in found] == pytest.approx([score[30, 50], score[30, 140]])
    assert regions_at_half_maximum(np.zeros((9, 9), np.float32), 0.05, Grouping(4, 5), weight=3.0) == []


def test_a_missed_type_and_an_unknown_one_stand_at_the_end() -> None:
    pairs = [("nep", "nep"), ("nep", MISSED), ("hole", "nep"), ("hole", "unknown"), ("hole", "hole")]
    confusion = Confusion.of(pairs)
    assert confusion.true == ("hole", "nep")
    assert confusion.said == ("hole", "nep", "unknown", MISSED)
    assert confusion.counts.tolist() == [[1, 1, 1, 0], [0, 1, 0, 1]]
    assert confusion.right == 0.4
    picture = confusion.draw()
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    reddish = (picture[..., 0].astype(int) - picture[..., 2] > 30).sum()
    bluish = (picture[..., 2].astype(int) - picture[..., 0] > 30).sum()
    assert reddish > 500
    assert bluish > 500
    assert Confusion.of([]).right is None
    assert Confusion.of([("barré", "barré")]).draw().size


def test_a_defect_is_called_what_the_surest_region_on_it_says() -> None:
    found = [region(10, 10, 30, 30, 0.6, "nep"), region(12, 12, 20, 20, 0.9, "hole"), region(200, 0, 210, 9)]
    truth = boxes((8, 8, 32, 32), (400, 400, 410, 410))
    assert pair_types(found, truth, ["hole", "slub"]) == [("hole", "hole"), ("slub", MISSED)]


class Answering:
    """A detector's network that gives the same answer for each tile: three boxes."""

    runtime, step, depth = "test", 32, 0

    def start(self, tiles: np.ndarray) -> Ready:
        scores = np.full((len(tiles), 3), 0.9, np.float32)
        types = np.array([[4.0, -4.0, -4.0], [0.5, 0.4, 0.1], [-5.0, -6.0, -1.5]], np.float32)
        at = np.array([[0.1, 0.1, 0.2, 0.2], [0.4, 0.4, 0.5, 0.5], [0.7, 0.7, 0.8, 0.8]], np.float32)
        return Ready((scores, *(np.repeat(one[None], len(tiles), 0) for one in (types, at))))


def test_a_detector_that_is_not_sure_of_a_type_says_unknown() -> None:
    engine = DetectorEngine(Answering(), ("hole", "slub", "nep"), 96)
    found = sorted(engine.detect(np.zeros((96, 96), np.uint8)), key=lambda region: region.box)
    assert [region.type for region in found] == ["hole", "unknown", "nep"]


class Seeing:
    """A profile's engine, detector and card that see what is bright, box what is white, and say "hole"."""

    named_from = 0.0

    def __init__(self, *, boxing: bool) -> None:
        point = OperatingPoint(0.5, 2.0, "megapixel", 3.0, 6.0, 5, False, 1, 0)
        fusion = FusionPoint(0.5, 0.3, 0.0, 1, 0)
        boxed = SimpleNamespace(fusion=fusion) if boxing else None
        self.margin = Margin(0.0)
        self.card, self.boxing = SimpleNamespace(operating_point=point, detector=boxed), boxing

    def engine(self) -> Seeing:
        return self

    def detector(self) -> Seeing | None:
        return self if self.boxing else None

    def score(self, image: np.ndarray) -> np.ndarray:
        return np.where(image > 150, 0.9, np.where(image > 100, 0.4, 0.01)).astype(np.float32)

    def detect(self, image: np.ndarray) -> list[Region]:
        return [replace(one, type="hole") for one in find_regions((image == 255).astype(np.float32), 0.5)]

    def name(self, image: np.ndarray, regions: list[Region]) -> list[Region]:
        return [replace(one, type="hole") if one.type == UNKNOWN else one for one in regions]


def spotted(value: int, kind: str, *, mask: bool) -> LabelledPicture:
    image = np.full((100, 200), 50, np.uint8)
    image[20:40, 30:60] = value
    at = np.array([[30, 20, 60, 40]], np.float32)
    return LabelledPicture(image, image > 50 if mask else None, None if mask else at, (kind,))


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("boxing", [True, False])
def test_a_profile_is_scored_by_what_it_reports(*, boxing: bool, mask: bool) -> None:
    scores = ProfileScores(Seeing(boxing=boxing), ("hole", "slub", "unknown"))  # type: ignore[arg-type]
    for value, kind in ((200, "hole"), (255, "slub"), (120, "hole")):
        scores.add(spotted(value, kind, mask=mask))
    scores.add(LabelledPicture(np.full((100, 200), 50, np.uint8), np.zeros((100, 200), np.bool_)))
    figures = scores.figures()
    assert (figures["pictures"], figures["defective"]) == (4, 3)
    assert figures["recall"] == pytest.approx(2 / 3), "the faint one is below the threshold"
    assert figures["false_alarms_per_mpx"] == 0
    assert figures["box_ap"] == figures["recall_at_1"] == pytest.approx(1), "it counts at lower ones"
    assert 0.3 < figures["box_ap50_typed"] <= 0.51, "of holes nearly all, of slubs none"
    assert figures["types_right"] == pytest.approx(1 / 3)
    assert figures["ap"] == (pytest.approx(1) if mask else None)
    called = scores.confusion()
    assert (called.true, called.said) == (("hole", "slub"), ("hole", "slub", MISSED))
    assert called.counts.tolist() == [[1, 0, 1], [1, 0, 0]]


def test_what_a_profile_leaves_out_is_not_scored() -> None:
    seeing = Seeing(boxing=False)
    seeing.margin = Margin(60.0)
    scores = ProfileScores(seeing)  # type: ignore[arg-type]
    scores.add(spotted(200, "hole", mask=True))
    figures = scores.figures()
    assert (figures["defective"], figures["recall"], figures["false_alarms_per_mpx"]) == (0, None, 0)


def test_every_alarm_of_a_bad_picture_counts() -> None:
    image = np.full((100, 400), 50, np.uint8)
    image[5:95:10, 5:395:10] = 255  # more than COCO's hundred
    scores = ProfileScores(Seeing(boxing=True), ("hole",))  # type: ignore[arg-type]
    scores.add(LabelledPicture(image, np.zeros(image.shape, np.bool_)))
    assert scores.figures()["false_alarms_per_mpx"] == pytest.approx(9 * 39 / 0.04)


class Dark(Segmenter):
    """A segmenter that sees what is dark, and calls what is darkest a hole."""

    types = "hole", "stain"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * (0.35 - x.mean(1, keepdim=True))

    def with_types(self, x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        where = self(x)
        at = torch.nn.functional.avg_pool2d(where, 2, ceil_mode=True)[:, 0][places]
        return where, torch.stack([at - 3, 3 - at], 1)


class Calm:
    """A normality that nothing is strange to."""

    def look(self, image: np.ndarray) -> tuple[np.ndarray, None]:
        return np.full(image.shape[:2], 0.01, np.float32), None


class Asked(UnionEngine):
    """A union that counts the regions that it is asked the types of."""

    asked = 0

    def name(self, image: np.ndarray, regions: Sequence[Region]) -> list[Region]:
        self.asked += len(regions)
        return super().name(image, regions)


class AskedOfAll(Asked):
    """One that is asked of the faintest too."""

    named_from = 0.0


def test_only_regions_that_may_have_a_type_are_looked_at_and_the_figures_are_the_same() -> None:
    rng = np.random.default_rng(4)
    image = rng.normal(160, 2, (200, 300))
    image[20:40, 30:60] = 30
    image[20:40, 130:160] = 75
    for x in range(20, 280, 25):  # so faint that they have no type
        image[100:110, x : x + 10] = image[150:160, x : x + 10] = 118
    at = boxes((30, 20, 60, 40), (130, 20, 160, 40), (20, 100, 30, 110))
    picture = LabelledPicture(image.astype(np.uint8), None, at, ("hole", "stain", "stain"))
    figures, asked = [], []
    for kind in (Asked, AskedOfAll):
        engine = kind(TorchEngine(Dark()), Calm(), UnionPoint(0.5, 1.0, 0.9, 1.0))  # type: ignore[arg-type]
        profile = Seeing(boxing=False)
        profile.engine = lambda engine=engine: engine  # type: ignore[method-assign,misc]
        scores = ProfileScores(profile, ("hole", "stain"))  # type: ignore[arg-type]
        scores.add(picture)
        figures.append((scores.figures(), scores.confusion().counts.tolist()))
        asked.append(engine.asked)
    assert figures[0] == figures[1]
    assert figures[0][0]["box_ap50_typed"] == pytest.approx(0.75, abs=0.01), "the faint stain has no type"
    assert asked == [2, 24]
