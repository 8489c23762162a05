"""Recipes: shares of tiles, repeatability, and that each arm takes what it says and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from loomsight.errors import UsageError
from loomsight.fabric.instances import boxes_of
from loomsight.fabric.types import LabelledPicture, TrainingTile
from loomsight.learn.detector import collate_boxes
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.augment import stretch
from loomsight.synthesis.recipe import ARMS, Material, Recipe, TileMaker, mirror_pad

GREY = ClothSpec(structure="twill 2/2", grey=True)
COLOURED = ClothSpec(warp_colour=(200, 60, 40), weft_colour=(40, 60, 200))


def material(good: ClothSpec = GREY) -> Material:
    rng = np.random.default_rng(0)
    known = []
    for number in range(6):
        cloth = weave(COLOURED, 160, 200, rng, defects="random" if number % 2 else ())
        known.append(LabelledPicture(cloth.image, cloth.mask, fabric=f"fabric{number % 3}"))
    return Material([weave(good, 160, 200, rng).image for _ in range(2)], known)


@pytest.fixture(scope="module")
def grey() -> Material:
    return material()


def recipe(*arms: str, **values: float) -> Recipe:
    return Recipe.parse({"arms": arms, "tile": 64, **values})


def test_shares_are_kept_over_the_steps(grey: Material) -> None:
    maker = TileMaker(recipe("paste", "drawn", synthetic=0.5, good=0.25, batch=3), grey, seed=1)
    origins = Counter(tile.origin for k in range(120) for tile in maker.batch(k))
    assert sum(origins.values()) == 360
    assert abs((origins["paste"] + origins["drawn"]) / 360 - 0.5) < 0.04
    assert abs(origins["good"] / 360 - 0.25) < 0.04
    assert abs(origins["real"] / 360 - 0.25) < 0.04
    assert min(origins["paste"], origins["drawn"]) > 60


def test_a_tile_follows_from_the_seed_and_its_step_alone(grey: Material) -> None:
    one, two = (TileMaker(recipe("paste", "drawn"), grey, seed=5) for _ in range(2))
    one.batch(0)
    for left, right in zip(one.batch(7), two.batch(7), strict=True):
        assert left.origin == right.origin
        assert (left.image == right.image).all()
        assert (left.target == right.target).all()
    other = TileMaker(recipe("paste", "drawn"), grey, seed=6).batch(7)
    assert any((a.image != b.image).any() for a, b in zip(two.batch(7), other, strict=True))


@pytest.mark.parametrize("arm", ["none", "augmix"])
def test_what_makes_nothing_shows_nothing_of_the_new_fabric(arm: str, grey: Material) -> None:
    maker = TileMaker(recipe(arm), grey)
    assert {tile.origin for k in range(10) for tile in maker.batch(k)} == {"real"}


@pytest.mark.parametrize("arm", list(ARMS))
def test_each_arm_makes_marked_tiles_of_its_size(arm: str, grey: Material) -> None:
    maker, rng = TileMaker(recipe(arm), grey), np.random.default_rng(2)
    tiles = [maker.synthetic(rng) for _ in range(20)]
    assert {tile.origin for tile in tiles} == {arm}
    assert all(tile.image.shape == (64, 64, 3) and tile.image.dtype == np.uint8 for tile in tiles)
    assert all(set(np.unique(tile.target)) <= {0, 1} and (tile.weight == 1).all() for tile in tiles)
    assert sum(bool(tile.target.any()) for tile in tiles) >= 15


@pytest.mark.parametrize("arm", list(ARMS))
def test_grey_cloth_gets_no_coloured_defect_and_coloured_cloth_may(arm: str, grey: Material) -> None:
    rng = np.random.default_rng(4)
    maker = TileMaker(recipe(arm), grey)
    for _ in range(12):
        image = maker.synthetic(rng).image
        assert (image[..., :1] == image[..., 1:]).all()
    coloured = TileMaker(recipe(arm), material(COLOURED)).synthetic(rng).image
    assert (coloured[..., 0] != coloured[..., 2]).any()


def test_no_pixel_is_labelled_inside_a_box_without_a_mask(grey: Material) -> None:
    image = weave(COLOURED, 64, 64, np.random.default_rng(1)).image
    boxed = LabelledPicture(image, None, np.array([[8, 16, 40, 48]], np.float32), fabric="boxed")
    maker = TileMaker(recipe("none", stretch=0), Material(grey.good, [boxed]))
    for tile in maker.batch(0):
        assert not tile.target.any()
        assert (tile.weight == 0).sum() == 32 * 32


def test_known_defects_that_are_boxed_alone_are_shown() -> None:
    """Of a picture of many tiles, seven of ten windows lie on its one small box."""
    image = np.full((640, 640, 3), 90, np.uint8)
    boxed, away = (
        LabelledPicture(image, None, np.array([[at, at, at + 8, at + 8]], np.float32), ("nep",), "boxed")
        for at in (300, 700)
    )
    maker = TileMaker(Recipe(arms=("none",), tile=64), Material([], [boxed]))
    shown = np.mean([bool(tile.weight.min() == 0) for k in range(20) for tile in maker.batch(k)])
    assert 0.6 < shown < 0.85
    assert len(TileMaker(Recipe(arms=("none",), tile=64), Material([], [away])).batch(0)) == 8


def test_a_box_of_one_pixel_is_never_taught_as_good_cloth() -> None:
    image = np.full((96, 96, 3), 90, np.uint8)
    known = LabelledPicture(image, None, np.array([[40, 50, 41, 51]], np.float32), ("nep",), "boxed")
    maker = TileMaker(Recipe(arms=("none",), tile=64), Material([], [known]))
    for tile in (tile for k in range(40) for tile in maker.batch(k)):
        assert tile.instances is not None
        assert ((tile.weight == 0) == (tile.instances > 0)).all()


def test_half_of_what_is_practised_on_are_known_defects_where_some_are_known(grey: Material) -> None:
    def shares(material: Material) -> dict[str, float]:
        maker = TileMaker(Recipe(tile=64).beside_detector(), material)
        origins = [tile.origin for k in range(100) for tile in maker.batch(k)]
        return {name: origins.count(name) / len(origins) for name in sorted(set(origins))}

    assert shares(grey) == {"drawn": 0.25, "good": 0.25, "real": 0.5}
    good_only = Material(grey.good, [LabelledPicture(grey.good[0], np.zeros((160, 200), bool), fabric="a")])
    made = shares(good_only)
    assert made["drawn"] == pytest.approx(0.25 + 0.7 * 0.5, abs=0.03), "they stand for known ones"
    assert shares(Material(grey.good, [])) == {"drawn": 0.75, "good": 0.25}
    assert Recipe().made == 0.5, "for a segmenter alone"
    assert Recipe(synthetic=0.1).beside_detector().made == 0.1, "as asked for"


def test_recipes_that_cannot_be_are_refused(grey: Material) -> None:
    with pytest.raises(UsageError, match="the arms are none, augmix, paste, poisson, perlin, drawn"):
        Recipe.parse({"arms": ("pasta",)})
    with pytest.raises(UsageError, match="stand alone"):
        Recipe.parse({"arms": ("none", "drawn")})
    good_only = [LabelledPicture(grey.good[0], np.zeros(grey.good[0].shape[:2], bool), fabric="a")]
    with pytest.raises(ValueError, match="needs known fabrics with masks"):
        TileMaker(recipe("paste"), Material(grey.good, good_only))
    TileMaker(recipe("drawn"), Material(grey.good, good_only))


def test_pictures_smaller_than_a_tile_are_mirrored() -> None:
    array = np.arange(6).reshape(2, 3)
    padded = mirror_pad(array, 4)
    assert padded.shape == (4, 4)
    assert (padded[:2, :3] == array).all()
    assert (padded[2] == padded[1]).all()


def test_a_mirrored_defect_is_another_defect_and_not_one_with_its_image(grey: Material) -> None:
    mask = np.zeros((60, 60), bool)
    mask[20:24, 40:44] = mask[56:60, 10:14] = True
    picture = LabelledPicture(np.full((60, 60, 3), 90, np.uint8), mask, types=("nep", "hole"))
    maker = TileMaker(recipe("none", tile=96, stretch=0), Material(grey.good, [picture]))
    tile = next(tile for k in range(9) for tile in maker.batch(k) if tile.target.any())
    assert tile.instances is not None
    boxes, which = boxes_of(tile.instances)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert sorted(sides[[tile.types[k - 1] == "nep" for k in which]].tolist()) == [4, 4]
    assert (sides[[tile.types[k - 1] == "hole" for k in which]] == 8).all(), "it meets its image"


def test_a_small_defect_is_a_box_to_learn_and_the_rest_of_a_cut_one_is_not() -> None:
    instances = np.zeros((64, 64), np.int16)
    instances[30, 30], instances[40, 50:52], instances[0, 10:12] = 1, 2, 3
    zero = np.zeros((64, 64), np.float32)
    tile = TrainingTile(np.zeros((64, 64, 3), np.uint8), zero, zero, "real", instances, ("nep",) * 3)
    (labels,) = collate_boxes([tile], ("nep",))["labels"]
    assert (labels["boxes"] * 64).tolist() == [[30.5, 30.5, 1, 1], [51, 40.5, 2, 1]]


def test_a_stretched_tile_keeps_its_mask_on_its_defect() -> None:
    image = np.full((100, 100, 3), 40, np.uint8)
    mask = np.zeros((100, 100), np.float32)
    image[40:64, 30:70], mask[40:64, 30:70] = 220, 1
    areas = set()
    for seed in range(20):
        drawn, moved = stretch([image, mask], 80, 0.25, np.random.default_rng(seed), often=1.0)
        assert drawn.shape == (80, 80, 3)
        assert moved.shape == (80, 80)
        assert set(np.unique(moved)) == {0, 1}
        assert ((drawn[..., 0] > 130) == (moved > 0)).mean() > 0.99
        areas.add(int(moved.sum()))
    assert min(areas) < 0.85 * 24 * 40 < 1.15 * 24 * 40 < max(areas)


def test_a_window_as_small_as_the_tile_is_drawn_but_never_mirrored() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:2], image[-2:], image[:, :2], image[:, -2:] = 255, 255, 255, 255
    for seed in range(20):
        drawn, _ = stretch([image, np.zeros((64, 64), np.float32)], 64, 0.25, np.random.default_rng(seed))
        assert drawn[8:-8, 8:-8].max() == 0
    still, _ = stretch([image, np.zeros((64, 64), np.float32)], 64, 0.0, np.random.default_rng(0))
    assert (still == image).all()
