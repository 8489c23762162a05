import csv
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.anomaly.drift import reference
from loomsight.errors import ImageError, LoomsightError, ProfileError, UsageError
from loomsight.evaluation.operating_point import AlarmRate, OperatingPoint
from loomsight.fabric.images import read_image, write_png
from loomsight.fabric.look import Look
from loomsight.fabric.margin import Margin
from loomsight.fabric.types import Picture, Region, ScoreMap
from loomsight.inspection import drift
from loomsight.inspection.line import Inspection, check_out, inspect
from loomsight.inspection.record import Found, Record
from loomsight.inspection.report import Gallery, cut_crop
from loomsight.inspection.sources import Frame, Source, Unread, open_source
from loomsight.learn.saving import save_profile
from loomsight.profile import Profile
from loomsight.texture.familiarity import Familiarity
from loomsight.texture.gram import TextureEncoder


class Bright:
    """An engine whose score is the picture's brightness."""

    def score(self, image: Picture) -> ScoreMap:
        grey = image if image.ndim == 2 else image.max(axis=2)
        return (grey / np.float32(255)).astype(np.float32)


class Moody(Bright):
    """Fails as networks do: no number, a wrong size, an error; by the picture's darkest value."""

    def score(self, image: Picture) -> ScoreMap:
        score = super().score(image)
        mood = int(image.min())
        if mood == 1:
            score[0, 0] = np.nan
        if mood == 2:
            return score[1:]
        if mood == 3:
            raise LoomsightError("the accelerator is gone")
        return score


class Roll(Source):
    """Frames that are made on the way."""

    def __init__(self, frames: int, shape: tuple[int, int] = (48, 64), marks: int = 0) -> None:
        self.title, self.root, self.total = "roll", Path("roll"), frames
        self._shape, self._marks = shape, marks

    def __iter__(self) -> Iterator[Frame | Unread]:
        rng = np.random.default_rng(0)
        for index in range(self.total or 0):
            image = np.full(self._shape, 40, np.uint8)
            for _ in range(self._marks):
                y, x = rng.integers(0, self._shape)
                image[y, x] = rng.integers(130, 256)
            yield Frame(index, f"{index}.png", str(index), image)


POINT = OperatingPoint(0.5, 2.0, "megapixel", 3.0, 6.0, 5, False, 1, 0)


def profile(folder: Path, *, scale: float | None = None, **more: Any) -> Profile:
    return save_profile(
        folder,
        name="twill",
        form="lite",
        weights={"w": torch.zeros(1)},
        mm_per_px=scale,
        **{"operating_point": POINT, **more},
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile(tmp_path_factory.mktemp("profiles") / "plain")


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile(tmp_path_factory.mktemp("profiles") / "scaled", scale=0.5)


def cloth(height: int = 40, width: int = 60) -> Picture:
    return np.full((height, width), 50, np.uint8)


def read(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "regions.json").read_text(), object_pairs_hook=_once)
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs), "a name stands twice"
    return dict(pairs)


@settings(max_examples=6)
@given(
    place=st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 30)),
    along=st.sampled_from(["x", "y"]),
)
def test_a_defect_is_found_at_its_metres_and_millimetres(
    tmp_path_factory: pytest.TempPathFactory,
    scaled: Profile,
    place: tuple[int, int, int],
    along: Literal["x", "y"],
) -> None:
    index, x, y = place
    source = tmp_path_factory.mktemp("roll")
    for number in range(4):
        image = cloth()
        if number == index:
            image[y : y + 4, x : x + 6] = 255
        write_png(source / f"{number}.png", image)
    out = source.parent / f"{source.name}-out"
    result = inspect(source, scaled, out, engine=Bright(), along=along)
    (row,) = read(out)["regions"]
    if along == "y":
        assert row["along_m"] == pytest.approx((index * 40 + y + 2) * 0.5 / 1000)
        assert row["across_mm"] == pytest.approx((x + 3) * 0.5)
        assert result.length_m == pytest.approx(4 * 40 * 0.5 / 1000)
    else:
        assert row["along_m"] == pytest.approx((index * 60 + x + 3) * 0.5 / 1000)
        assert row["across_mm"] == pytest.approx((y + 2) * 0.5)
        assert result.length_m == pytest.approx(4 * 60 * 0.5 / 1000)
    assert (row["picture"], row["index"], row["area_px"]) == (f"{index}.png", index, 24)
    assert [row[key] for key in ("x0", "y0", "x1", "y1")] == [x, y, x + 6, y + 4]


@pytest.mark.parametrize("along", ["x", "y"])
def test_a_bar_across_the_web_spans_the_roll_map(
    tmp_path: Path, scaled: Profile, along: Literal["x", "y"]
) -> None:
    for number in range(4):
        image = cloth(60, 60)
        if number == 2:
            image[(slice(28, 32), slice(0, 60))[:: 1 if along == "y" else -1]] = 255
        write_png(tmp_path / "roll" / f"{number}.png", image)
    inspect(tmp_path / "roll", scaled, tmp_path / "out", engine=Bright(), along=along)
    red, green, blue = (
        read_image(tmp_path / "out/rollmap.png")[130:424, 100:1564].astype(int).transpose(2, 0, 1)
    )
    ys, xs = np.nonzero((red - blue > 60) & (red - green > 60))
    assert np.ptp(ys) == pytest.approx(270, abs=6)  # pixels of the map, from selvedge to selvedge
    assert xs.mean() / 1464 == pytest.approx((2 * 60 + 30) / 240, abs=0.01)
    assert np.ptp(xs) < 40


@pytest.mark.parametrize("along", ["x", "y"])
def test_a_defect_that_goes_on_in_the_next_picture_is_one(
    tmp_path: Path, plain: Profile, along: Literal["x", "y"]
) -> None:
    pictures = [cloth() for _ in range(5)]
    for picture in pictures[:3]:
        picture[:, 20:22] = 200  # a broken end
    pictures[3][10:12, 20:22] = 200  # another, which begins anew
    pictures[0][-2:, 50:53] = pictures[1][:2, 40:43] = 200  # at the border, and elsewhere across
    for number, picture in enumerate(pictures):
        write_png(tmp_path / "roll" / f"{number}.png", picture if along == "y" else picture.T.copy())
    result = inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright(), along=along)
    rows = read(tmp_path / "out")["regions"]
    assert (result.regions, result.defects) == (6, 4)
    thread = {row["defect"] for row in rows if row["area_px"] == 80}
    assert len(thread) == 1
    assert result.per_megapixel == pytest.approx(4 / (5 * 40 * 60 / 1e6))
    assert "Defects found" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "roll" / "1.png").write_text("no picture")
    assert inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright(), along=along).defects == 4


def test_without_a_scale_places_are_pixels_and_metres_are_empty(tmp_path: Path, plain: Profile) -> None:
    inspect(Roll(3, marks=2), plain, tmp_path / "out", engine=Bright())
    values = read(tmp_path / "out")
    assert values["length_m"] is None
    assert values["length_px"] == 144
    assert all(row["along_m"] is None and row["along_px"] < 144 for row in values["regions"])
    with (tmp_path / "out" / "regions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(values["regions"]) == 6
    for row, same in zip(rows, values["regions"], strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in same.items()}


def test_the_ledger_closes_and_lost_pictures_take_their_length(tmp_path: Path, scaled: Profile) -> None:
    source = tmp_path / "roll"
    for name in ("b", "d", "e", "f", "g"):
        image = cloth()
        image[0, 0] = {"d": 1, "e": 2, "f": 3}.get(name, 50)
        image[20, 20] = 255
        write_png(source / f"{name}.png", image)
    for name in ("a", "c", "h"):
        (source / f"{name}.png").write_text("no picture")
    result = inspect(source, scaled, tmp_path / "out", engine=Moody())
    ledger = result.ledger
    assert (ledger.received, ledger.inspected, ledger.skipped, ledger.failed) == (8, 2, 3, 3)
    assert (result.length_px, result.inspected_px) == (8 * 40, 2 * 40)
    values = read(tmp_path / "out")
    spans = {gap["picture"]: (gap["start_px"], gap["stop_px"], gap["gap"]) for gap in values["not_inspected"]}
    assert spans == {
        "a.png": (0, 40, "skipped"),
        "c.png": (80, 120, "skipped"),
        "d.png": (120, 160, "failed"),
        "e.png": (160, 200, "failed"),
        "f.png": (200, 240, "failed"),
        "h.png": (280, 320, "skipped"),
    }
    assert [row["along_px"] for row in values["regions"]] == [60.5, 260.5]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the accelerator is gone" in page
    assert "6 of 8 pictures" in result.warnings[0]
    assert result.warnings[0] in page


@pytest.mark.parametrize("along", ["x", "y"])
def test_nothing_is_reported_near_a_selvedge_but_what_reaches_out_of_it(
    tmp_path: Path, scaled: Profile, along: Literal["x", "y"]
) -> None:
    image = cloth(60, 60)
    for low, high in ((2, 6), (54, 58), (8, 14), (30, 34)):  # across; 5 mm are 10 pixels
        at = np.s_[20:24, low:high] if along == "y" else np.s_[low:high, 20:24]
        image[at] = 250
    write_png(tmp_path / "roll/1.png", image)
    found = {
        margin: inspect(
            tmp_path / "roll", scaled, tmp_path / f"at{margin}", engine=Bright(), along=along, margin=margin
        )
        for margin in (0, 5)
    }
    assert (found[0].regions, found[5].regions) == (4, 2)
    assert "within 5 mm of either selvedge; regions left out there: 2." in found[5].notes[-1]
    with pytest.raises(UsageError, match="leaves nothing of the cloth"):
        inspect(tmp_path / "roll", scaled, tmp_path / "none", engine=Bright(), along=along, margin=15)
    assert not (tmp_path / "none").exists()


def test_what_was_left_out_when_a_fabric_was_learned_is_left_out_of_its_inspection(tmp_path: Path) -> None:
    image = cloth(60, 60)
    image[:8] = 250  # along x the upper edge of the picture is a selvedge
    image[30:34, 20:24] = 250
    write_png(tmp_path / "roll/1.png", image)
    learned = profile(tmp_path / "learned", scale=0.5, margin=Margin(5, 0.5, "x"))
    by_default = inspect(tmp_path / "roll", learned, tmp_path / "default", engine=Bright())
    assert (by_default.along, by_default.regions, by_default.left_out) == ("x", 1, 1)
    assert by_default.megapixels == pytest.approx(60 * 40 / 1e6)
    asked = inspect(tmp_path / "roll", learned, tmp_path / "asked", engine=Bright(), along="y", margin=0)
    assert (asked.along, asked.regions, asked.left_out) == ("y", 2, 0)


def test_a_page_without_regions_does_not_deny_those_within_the_margins(
    tmp_path: Path, scaled: Profile
) -> None:
    image = cloth(60, 60)
    image[20:24, 2:6] = 250
    write_png(tmp_path / "roll/1.png", image)
    for margin, says in ((0, ""), (5, "No region of the inspected cloth between the margins scored above")):
        result = inspect(tmp_path / "roll", scaled, tmp_path / "out", engine=Bright(), margin=margin)
        assert (result.regions, result.left_out) == ((0, 1) if margin else (1, 0))
        text = (tmp_path / "out/report.html").read_text()
        assert says in text
        assert ("No region of the inspected cloth" in text) == bool(margin)


def test_a_later_picture_that_is_narrower_than_the_margins_is_not_inspected_and_no_more(
    tmp_path: Path, scaled: Profile
) -> None:
    for number, width in enumerate((60, 18, 60)):
        write_png(tmp_path / "roll" / f"{number}.png", cloth(40, width))
    result = inspect(tmp_path / "roll", scaled, tmp_path / "out", engine=Bright(), margin=5)
    assert (result.ledger.inspected, result.ledger.failed) == (2, 1)
    (gap,) = read(tmp_path / "out")["not_inspected"]
    assert gap["picture"] == "1.png"
    assert "a margin of 5 mm leaves nothing" in (tmp_path / "out/report.html").read_text()
    assert "0 could not be read, 1 could be read but not inspected." in result.warnings[0]


def test_along_x_a_promise_for_a_web_of_another_width_is_said(tmp_path: Path) -> None:
    """Learning takes a picture's width for the web's."""
    rate = AlarmRate.per_100_m(2.0, mm_per_pixel=0.5, web_width_mm=100)
    point = replace(POINT, unit="100 m", megapixels_seen=rate.megapixels, alarms_allowed=2.0)
    made = profile(tmp_path / "profile", scale=0.5, operating_point=point)
    write_png(tmp_path / "roll/1.png", cloth(40, 200))
    told = {
        along: inspect(tmp_path / "roll", made, tmp_path / along, engine=Bright(), along=along)
        for along in ("x", "y")
    }
    assert any("learn with --web-width 20" in note for note in told["x"].notes)
    assert not any("--web-width" in note for note in told["y"].notes)
    assert told["x"].expected_false == told["y"].expected_false == pytest.approx(rate.allowed(0.008))


@pytest.mark.parametrize("pictures", [1, 4, 9])
def test_a_roll_of_few_pictures_tells_of_an_old_lamp_too(tmp_path: Path, pictures: int) -> None:
    rng = np.random.default_rng(0)
    good = [rng.integers(90, 160, (64, 96), np.uint8) for _ in range(9)]
    card = reference(good, [np.full((64, 96), 0.1, np.float32)])
    made = profile(tmp_path / "profile", drift=card)
    for lamp in (1.0, 0.4):
        for number, image in enumerate(good[:pictures]):
            write_png(tmp_path / f"{lamp}" / f"{number}.png", np.asarray(image * lamp, np.uint8))
        result = inspect(tmp_path / f"{lamp}", made, tmp_path / f"out{lamp}", engine=Bright())
        weaker = any(re.search("The light is (59|60|61)% weaker", one) for one in result.warnings)
        assert weaker == (lamp < 1)


@pytest.mark.parametrize(
    ("learned", "suffix"), [(False, "jpg"), (True, "png"), (False, "png"), (None, "jpg")]
)
def test_pictures_in_files_of_another_kind_than_those_learned_from_are_said(
    tmp_path: Path, learned: bool | None, suffix: str
) -> None:
    made = profile(tmp_path / "profile", training={} if learned is None else {"lossy": learned})
    (tmp_path / "roll").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "roll" / f"{number}.{suffix}"), cloth(40, 60))
    notes = inspect(tmp_path / "roll", made, tmp_path / "out", engine=Bright()).notes
    said = "These pictures are compressed" if suffix == "jpg" else "These pictures are not compressed"
    assert any(one.startswith(said) for one in notes) == (
        learned is not None and learned != (suffix == "jpg")
    )


def test_a_short_roll_of_which_some_cannot_be_read_tells_of_an_old_lamp_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = [rng.integers(90, 160, (64, 96), np.uint8) for _ in range(9)]
    made = profile(tmp_path / "profile", drift=reference(good, [np.full((64, 96), 0.1, np.float32)]))
    for number, image in enumerate(good[:2]):
        write_png(tmp_path / "roll" / f"{number}.png", np.asarray(image * 0.4, np.uint8))
    (tmp_path / "roll" / "2.png").write_text("no picture")
    result = inspect(tmp_path / "roll", made, tmp_path / "out", engine=Bright())
    assert any(re.search("The light is (59|60|61)% weaker", one) for one in result.warnings)


def test_a_lamp_that_is_first_too_weak_and_later_too_strong_is_said_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(90, 160, (64, 96), np.uint8)
    score = np.full(image.shape, 0.1, np.float32)
    card = reference([image], [score])
    made = profile(tmp_path / "profile", drift=card)
    lamp = {"light": 0.0}
    monkeypatch.setattr(drift, "measure", lambda *_: {"light": card.usual["light"] + lamp["light"]})
    check = drift.DriftCheck(made, 90)
    for index in range(90):
        lamp["light"] = (-0.6, 0.0, 0.9)[index // 30]
        check.look(index, f"{index:03d}.png", image, Look.whole(score))
    weak, strong = check.warnings()
    assert "weaker" in weak
    assert "From 000.png on" in weak
    assert "stronger" in strong
    assert "From 060.png on" in strong


def test_behind_a_gate_few_whole_maps_tell_of_stranger_cloth_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, score = np.full((64, 96), 120, np.uint8), np.full((64, 96), 0.1, np.float32)
    card = reference([image], [score])
    made = profile(tmp_path / "profile", drift=card)
    off = {"unrest": card.usual["unrest"] + 2 * card.allowed["unrest"]}
    monkeypatch.setattr(drift, "measure", lambda _, dense: {} if dense is None else off)
    check = drift.DriftCheck(made, 400)
    for index in range(400):
        whole = index % 100 == 0
        check.look(index, f"{index}.png", image, Look(image.shape, score if whole else None, whole))
    assert "The whole cloth looks stranger" in " ".join(check.warnings())


def test_a_gate_that_is_switched_off_does_not_have_every_picture_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(90, 160, (64, 96), np.uint8)
    score = np.full(image.shape, 0.1, np.float32)
    made = profile(tmp_path / "profile", drift=reference([image], [score]))
    measured: list[bool] = []

    def measure(_: Picture, dense: ScoreMap | None) -> dict[str, float]:
        measured.append(dense is not None)
        return {}

    monkeypatch.setattr(drift, "measure", measure)
    check = drift.DriftCheck(made, 2000)  # every tenth picture
    for index in range(1000):  # behind a gate one in 100 is looked at in full, and not a tenth one
        whole = index % 100 == 3
        check.look(index, "x", image, Look(image.shape, score if whole else None, whole))
    assert sum(measured) == 10
    assert len(measured) == 110
    for index in range(1000, 2000):
        check.look(index, "x", image, Look.whole(score))
    assert len(measured) <= 210


def test_strict_ends_at_the_first_bad_picture_and_leaves_nothing(tmp_path: Path, plain: Profile) -> None:
    source = tmp_path / "roll"
    write_png(source / "a.png", cloth())
    (source / "b.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"b\.png"):
        inspect(source, plain, tmp_path / "out", engine=Bright(), strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["roll"]


def test_when_not_one_picture_can_be_read_it_is_no_clean_roll(tmp_path: Path, plain: Profile) -> None:
    (tmp_path / "roll").mkdir()
    for name in "ab":
        (tmp_path / "roll" / f"{name}.png").write_text("no picture")
    with pytest.raises(ImageError, match="not one picture"):
        inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright())
    with pytest.raises(ImageError, match=r"a\.png"):
        inspect(tmp_path / "roll" / "a.png", plain, tmp_path / "out", engine=Bright())
    assert [path.name for path in tmp_path.iterdir()] == ["roll"]


def test_maps_are_the_scores_in_16_bits(tmp_path: Path, plain: Profile) -> None:
    class Exact:
        def score(self, image: Picture) -> ScoreMap:
            numbers = np.arange(image.size, dtype=np.float64).reshape(image.shape) * 27 % 65536
            return (numbers / 65535).astype(np.float32)

    for name in ("left/1.png", "right/1.png", "right/2.jpg.png"):
        write_png(tmp_path / "roll" / name, cloth())
    result = inspect(str(tmp_path / "roll/**/*.png"), plain, tmp_path / "out", engine=Exact(), maps=True)
    maps = {path.name for path in (tmp_path / "out" / "maps").iterdir()}
    assert maps == {"left_1_png.png", "right_1_png.png", "2.jpg.png"}
    assert any("share a name" in note for note in result.notes)
    map_ = cv2.imread(str(tmp_path / "out/maps/2.jpg.png"), cv2.IMREAD_UNCHANGED)
    assert map_.dtype == np.uint16
    assert np.array_equal(map_, np.arange(2400).reshape(40, 60) * 27 % 65536)


def test_an_earlier_inspection_is_replaced_and_nothing_else(tmp_path: Path, plain: Profile) -> None:
    out = tmp_path / "out"
    inspect(Roll(2, marks=1), plain, out, engine=Bright(), maps=True)
    inspect(Roll(1), plain, out, engine=Bright())
    assert {path.name for path in out.iterdir()} == {
        "regions.json",
        "regions.csv",
        "rollmap.png",
        "report.html",
    }
    assert read(out)["regions"] == []
    (out / "letter to the customer.txt").write_text("dear")
    with pytest.raises(UsageError, match="no earlier inspection"):
        inspect(Roll(1), plain, out, engine=Bright())
    assert (out / "letter to the customer.txt").read_text() == "dear"


def test_an_inspection_with_something_else_among_its_maps_is_no_longer_one(
    tmp_path: Path, plain: Profile
) -> None:
    write_png(tmp_path / "roll" / "a.png", cloth())
    inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright(), maps=True)
    inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright(), maps=True)
    (tmp_path / "out" / "maps" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no earlier inspection"):
        inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright())
    assert (tmp_path / "out" / "maps" / "notes.txt").read_text() == "mine"


def test_a_profile_that_changes_during_the_run_ends_it(tmp_path: Path, plain: Profile) -> None:
    class Gone(Bright):
        def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
            raise ProfileError("the profile has changed since it was opened")

    write_png(tmp_path / "roll" / "a.png", cloth())
    write_png(tmp_path / "roll" / "b.png", 4 * cloth())
    with pytest.raises(ProfileError, match="has changed"):
        inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Gone())
    assert not (tmp_path / "out").exists()


def test_results_never_take_the_place_of_pictures_or_profile(tmp_path: Path, plain: Profile) -> None:
    write_png(tmp_path / "roll" / "a.png", cloth())
    source = open_source(tmp_path / "roll")
    for out in (tmp_path, tmp_path / "roll", plain.folder, plain.folder.parent):
        with pytest.raises(UsageError):
            check_out(out, source, plain)
    with pytest.raises(UsageError, match="a file of that name"):
        check_out(tmp_path / "roll" / "a.png", source, plain)
    check_out(tmp_path / "roll" / "results", source, plain)


def test_rates_and_the_false_alarms_to_expect() -> None:
    rate = AlarmRate.per_100_m(2.0, mm_per_pixel=0.5, web_width_mm=100)
    result = Inspection(Path(), "s", "p", "now", "y", 0.5, rate)
    result.inspected_px, result.megapixels, result.regions, result.defects = 400_000, 80.0, 12, 10
    assert result.inspected_m == 200
    assert result.per_100_m == 5
    assert result.expected_false == pytest.approx(4)
    result.megapixels /= 4  # one camera of four: a fourth of the web, and of the promise
    assert result.expected_false == pytest.approx(1)
    result.rate, result.mm_per_px = AlarmRate.per_megapixel(2.0), None
    assert result.per_100_m is None
    assert result.per_megapixel == 0.5
    assert result.expected_false == pytest.approx(40)


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used


def test_memory_does_not_grow_with_the_roll(tmp_path: Path, plain: Profile) -> None:
    def roll(frames: int) -> int:
        source = Roll(frames, (256, 256), marks=5)
        return peak(lambda: inspect(source, plain, tmp_path / str(frames), engine=Bright()))

    roll(2)  # what is loaded once
    # Each frame with its map is 330 kB; what grows a little is the PNG of a fuller roll map.
    assert roll(60) < roll(20) + 2_000_000
    assert (tmp_path / "60" / "report.html").stat().st_size < 2_500_000


def test_a_million_regions_need_no_more_memory_than_one(tmp_path: Path) -> None:
    found = Found("a.png", 0, Region((1, 2, 3, 4), 4, 2.0, 0.9), 10.0, 20.0, 0.5)

    def write() -> None:
        with Record(tmp_path, 0.5) as record:
            for _ in range(8_000):
                record.add(found)
            record.write_json({"program": "test"})

    assert peak(write) < 300_000
    assert len(read(tmp_path)["regions"]) == 8_000


def test_the_gallery_keeps_the_surest_and_few_of_one_picture() -> None:
    gallery = Gallery(keep=6)
    image, score = cloth(), np.zeros((40, 60), np.float32)
    for index in range(10):
        founds = []
        for part in range(8):
            region = Region((4 * part, 4, 4 * part + 3, 8), 12, 4.0, (index * 8 + part + 1) / 100)
            founds.append(Found(f"{index}.png", index, region, 0.0, 0.0))
        gallery.offer(founds, image, Look.whole(score), POINT)
    kept = [(crop.found.index, round(crop.found.region.score, 2)) for crop in gallery.crops()]
    assert kept == [(9, 0.8), (9, 0.79), (9, 0.78), (9, 0.77), (8, 0.72), (8, 0.71)]


def test_a_region_between_the_pieces_of_another_is_outlined_as_another() -> None:
    score = np.zeros((200, 300), np.float32)
    score[50:60, 60:100] = score[140:150, 200:240] = 0.9  # two pieces, and a faint way around
    score[55, 60:220] = score[55:145, 220] = 0.2
    score[110:122, 110:122] = 0.9
    point = replace(POINT, faint=0.2)
    _, own = sorted(Look.whole(score).regions(0.5, point.grouping), key=lambda one: one.area)
    assert own.box == (60, 50, 240, 150)
    jpeg = cut_crop(np.full((200, 300), 120, np.uint8), Look.whole(score), own.box, point)
    view = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    less_green, less_blue = view[..., 2] - view[..., 1], view[..., 2] - view[..., 0]
    first, second, between = np.s_[60:115, 40:150], np.s_[245:300, 325:440], np.s_[185:240, 145:195]
    for piece in (first, second):
        assert (less_green[piece] > 110).sum() > 100, "a thick red line"
    assert (less_blue[between] > 40).sum() > 30, "a thin yellow one"
    assert less_green[between].max() < 110


@pytest.mark.parametrize("shape", [(8, 8), (8, 4000), (4000, 8), (300, 300, 3)])
def test_every_region_has_a_crop_that_shows_it(
    tmp_path: Path, plain: Profile, shape: tuple[int, ...]
) -> None:
    image = np.full(shape, 50, np.uint8)
    image[:2] = image[:, -2:] = 255
    write_png(tmp_path / "roll" / "a.png", image)
    inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright())
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 1
    assert page.count("data:image/png") == 1


def test_a_hostile_file_name_stays_text(tmp_path: Path, plain: Profile) -> None:
    image = cloth()
    image[5:9, 5:9] = 255
    write_png(tmp_path / "roll" / "<img src=x onerror=alert(1)>.png", image)
    inspect(tmp_path / "roll", plain, tmp_path / "out", engine=Bright())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_other_cloth_than_was_learned_is_said_prominently(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def twill(step: int) -> Picture:
        y, x = np.mgrid[:96, :96]
        stripes = 128 + 60 * np.sin((x + step * y) * (2 * np.pi / (6 * step)) + rng.uniform(0, 6))
        return np.clip(stripes + rng.normal(0, 8, (96, 96)), 0, 255).astype(np.uint8)

    encoder = TextureEncoder("lite0")
    known = Familiarity.fit({"twill": encoder.codes(twill(1) for _ in range(8))})
    learned = profile(
        tmp_path / "p", texture=known.to_arrays(), texture_facts={"backbone": "lite0", "fabric": "twill"}
    )
    for number in range(5):
        write_png(tmp_path / "same" / f"{number}.png", twill(1))
        write_png(tmp_path / "other" / f"{number}.png", twill(3))
    same = inspect(tmp_path / "same", learned, tmp_path / "a", engine=Bright())
    other = inspect(tmp_path / "other", learned, tmp_path / "b", engine=Bright())
    assert same.warnings == []
    assert "does not look like the cloth that was learned" in other.warnings[0]
    assert "does not look like the cloth" in (tmp_path / "b" / "report.html").read_text()


@pytest.mark.parametrize(
    ("megapixels", "said"), [(2000.0, "200.0 Mpx/s"), (1.84, "0.18 Mpx/s"), (0.3, "0.03 Mpx/s")]
)
def test_a_slow_inspection_is_not_said_to_be_of_no_speed(megapixels: float, said: str) -> None:
    result = Inspection(
        Path("out"),
        "roll",
        "denim",
        "2026-01-01",
        "y",
        None,
        AlarmRate.per_megapixel(1.0),
        megapixels=megapixels,
        seconds=10,
    )
    assert result.speed == said
