"""Good cloth: what is wrong with it is said, and nothing that sets the threshold is learned from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.anomaly.drift import sharpness
from loomsight.fabric.images import write_png
from loomsight.fabric.types import Picture
from loomsight.learn.cloth import doubts_about, part, spread
from loomsight.loom import ClothSpec, weave
from loomsight.progress import Progress


def pictures(count: int, seed: int = 0) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [weave(ClothSpec(), 96, 128, rng).image for _ in range(count)]


def kinds(images: list[Picture]) -> dict[str, tuple[str, ...]]:
    names = [f"{number}.png" for number in range(len(images))]
    return {doubt.kind: doubt.pictures for doubt in doubts_about(names, images)}


def test_good_pictures_raise_no_doubt() -> None:
    assert kinds(pictures(6)) == {}


def test_of_many_pictures_so_many_are_taken_evenly_over_the_roll() -> None:
    paths = [Path(f"{number}.png") for number in range(199)]
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    some = [int(path.stem) for path in spread(paths, progress, 100)]
    assert (len(set(some)), some[0], some[-1]) == (100, 0, 198)
    assert max(np.diff(some)) <= 2
    assert said == ["note: 100 of 199 good pictures are used, spread evenly: at most 100, and 200 megapixels"]
    assert spread(paths, progress) == paths
    assert spread([], progress) == []


def test_of_large_pictures_fewer_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loomsight.learn.cloth.MOST_PIXELS", 4 * 60 * 40)
    for number in range(9):
        write_png(tmp_path / f"{number}.png", np.zeros((40, 60), np.uint8))
    paths = sorted(tmp_path.iterdir())
    assert [path.stem for path in spread(paths, Progress())] == ["0", "2", "5", "8"]
    write_png(tmp_path / "8.png", np.zeros((400, 600), np.uint8))
    assert len(spread(paths, Progress())) == 1


def test_few_pictures_are_said_to_be_few() -> None:
    assert set(kinds(pictures(2))) == {"few"}
    assert doubts_about(["a"], pictures(1))[0].text.startswith("only 1 good picture:")


def test_each_bad_picture_is_named_with_what_is_wrong() -> None:
    images = pictures(9)
    images[1] = cv2.GaussianBlur(images[1], (0, 0), 4).astype(np.uint8)
    images[3] = np.full_like(images[3], 128)
    images[5] = np.clip(images[5].astype(int) + 140, 0, 255).astype(np.uint8)
    images[7] = np.clip(images[7].astype(int) - 150, 0, 255).astype(np.uint8)
    found = kinds(images)
    assert found["blurred"] == ("1.png",)
    assert found["flat"] == ("3.png",)
    assert found["overexposed"] == ("5.png",)
    assert found["underexposed"] == ("7.png",)


def test_a_dimmer_lamp_is_not_taken_for_a_blurred_picture() -> None:
    image = pictures(1)[0]
    dim = (image * 0.6).astype(np.uint8)
    assert abs(sharpness(dim) / sharpness(image) - 1) < 0.15


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 5), height=st.integers(20, 60), width=st.integers(64, 200), tall=st.booleans())
def test_of_long_pictures_every_pixel_is_on_one_side(count: int, height: int, width: int, tall: bool) -> None:
    shape = (width, height) if tall else (height, width)
    images = [np.full(shape, number + 1, np.uint8) for number in range(count)]
    cloth = part(images, least=16)
    assert cloth.disjoint
    assert len(cloth.learn) == len(cloth.judge) == count
    for whole, learn, judge in zip(images, cloth.learn, cloth.judge, strict=True):
        assert learn.size + judge.size == whole.size
        assert 0.2 <= judge.size / whole.size <= 0.26


def test_both_ends_of_long_pictures_set_the_threshold() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (40, 1))
    cloth = part([ramp, ramp], least=20)
    assert cloth.judge[0].min() == 150
    assert cloth.judge[1].max() == 49
    assert not set(np.unique(cloth.judge[1])) & set(np.unique(cloth.learn[1]))


def test_of_small_pictures_every_fourth_is_kept_back_and_of_three_none_can_be() -> None:
    images = [np.full((30, 30), number, np.uint8) for number in range(9)]
    cloth = part(images, least=20)
    assert [int(image[0, 0]) for image in cloth.judge] == [3, 7]
    assert [int(image[0, 0]) for image in cloth.learn] == [0, 1, 2, 4, 5, 6, 8]
    few = part(images[:3], least=20)
    assert not few.disjoint
    assert len(few.learn) == len(few.judge) == 3


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("shape", [(120, 400), (100, 100)])  # pictures that are cut, and such that are not
def test_one_tiny_picture_does_not_decide_what_the_threshold_rests_on(
    shape: tuple[int, int], at: int
) -> None:
    images = [np.zeros(shape, np.uint8) for _ in range(7)]
    images.insert(at, np.zeros((30, 30), np.uint8))
    cloth = part(images, least=40)
    kept, given_area = (sum(image.size for image in some) for some in (cloth.judge, images))
    assert cloth.disjoint
    assert 1 / 8 <= kept / given_area < 0.33
    if shape == (120, 400):
        assert len(cloth.learn) == 8  # every long picture is learned from


def test_where_only_tiny_pictures_could_be_spared_the_threshold_is_set_on_all_and_not_on_them() -> None:
    images = [np.zeros((150, 150), np.uint8), *(np.zeros((10, 10), np.uint8) for _ in range(3))]
    for order in (images, images[::-1]):
        cloth = part(order, least=40)
        assert not cloth.disjoint
        assert len(cloth.judge) == len(cloth.learn) == 4
