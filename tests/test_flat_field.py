"""The lines of a camera are learned from good cloth and taken out; the cloth's own are left."""

from __future__ import annotations

import numpy as np
import pytest

from loomsight.demo import DENIM
from loomsight.fabric.flat_field import flat_field
from loomsight.fabric.types import Picture
from loomsight.loom import ClothSpec, weave, weave_roll

WIDTH = 320


def cloth(seed: int) -> Picture:
    """Cloth that lies a little further to one side each time."""
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(60))
    return weave(ClothSpec(), 96, WIDTH + 60, rng).image[:, shift : shift + WIDTH]


def streaked(image: Picture) -> Picture:
    lit = image.astype(np.float32)
    lit[:, 200:202] *= 1.3
    return np.clip(lit, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clean() -> list[Picture]:
    return [cloth(seed) for seed in range(12)]


def test_a_line_of_the_camera_is_found_where_it_is_and_taken_out(clean: list[Picture]) -> None:
    field = flat_field([streaked(image) for image in clean])
    assert field is not None
    assert field.lines == 1
    assert set(np.flatnonzero(abs(field.gains - 1) > 0.1)) == {200, 201}
    fresh = cloth(99)
    corrected = field.correct(streaked(fresh))
    left = corrected[:, 200:202].astype(float).mean() - fresh[:, 200:202].astype(float).mean()
    assert abs(left) < 0.04 * fresh.mean()
    assert "column 200" in field.text or "column 201" in field.text


def test_clean_pictures_few_pictures_and_pictures_of_several_widths_have_none(clean: list[Picture]) -> None:
    assert flat_field(clean) is None
    assert flat_field([streaked(image) for image in clean[:3]]) is None
    assert flat_field([*map(streaked, clean), clean[0][:, :300]]) is None


def test_a_line_in_some_pictures_only_is_a_defect_and_stays(clean: list[Picture]) -> None:
    assert flat_field([*map(streaked, clean[:5]), *clean[5:]]) is None


def test_stripes_of_the_cloth_are_left_alone(clean: list[Picture]) -> None:
    striped = [image.copy() for image in clean]
    for image in striped:
        for x in range(10, WIDTH, 40):
            image[:, x : x + 4] //= 2
    assert flat_field(striped) is None


def test_a_picture_of_another_width_comes_back_as_it_is(clean: list[Picture]) -> None:
    field = flat_field([streaked(image) for image in clean])
    assert field is not None
    assert field.correct(clean[0][:, :100]).tobytes() == clean[0][:, :100].tobytes()
    assert field.correct(clean[0][..., 0]).shape == (96, WIDTH)


def test_cloth_that_lies_still_is_not_taken_for_a_camera() -> None:
    still = [weave(ClothSpec(), 96, WIDTH, np.random.default_rng(seed)).image for seed in range(6)]
    assert flat_field(still) is None


def test_ends_that_run_through_all_pictures_of_a_roll_are_not_taken_for_a_camera() -> None:
    """Pictures of one roll share their ends, the coarse ones too, at the same columns."""
    roll = weave_roll(
        DENIM, np.random.default_rng([0, 1]), metres=0.92, frame_height=512, width=1024, defects_per_m2=0
    )
    pictures = [cloth.image for cloth in roll]
    assert flat_field(pictures) is None
    dusty = [image.copy() for image in pictures]
    for image in dusty:
        image[:, 500:502] = np.clip(image[:, 500:502] * 1.3, 0, 255).astype(np.uint8)
    field = flat_field(dusty)
    assert field is not None, "a real line in the same cloth is still found"
    assert field.lines == 1
    assert abs(int(np.argmax(np.abs(field.gains - 1))) - 500) <= 1
