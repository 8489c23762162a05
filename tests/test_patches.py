"""Defect patches: what a generator sees of a cloth, what a shape is called, where patches come from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.fabric.types import LabelledPicture, Mask, Picture
from loomsight.loom import ClothSpec, draw_defect, weave
from loomsight.synthesis.patches import SHAPES, DefectPatch, Look, PatchMaker, shape_class

CODES = {"twill": np.arange(4, dtype=np.float32), "plain": np.ones(4, np.float32)}


def cloth(seed: int, height: int = 96, width: int = 128) -> Picture:
    return weave(ClothSpec(grey=True), height, width, np.random.default_rng(seed)).image


def good(fabric: str, seed: int) -> LabelledPicture:
    image = cloth(seed)
    return LabelledPicture(image, np.zeros(image.shape[:2], bool), fabric=fabric)


def defective(fabric: str, seed: int, *kinds: str) -> LabelledPicture:
    rng = np.random.default_rng(seed)
    image = cloth(seed)
    mask = np.zeros(image.shape[:2], bool)
    for kind in kinds:
        image, more = draw_defect(image, kind, rng)
        mask |= more
    return LabelledPicture(image, mask, fabric=fabric)


def spotted(fabric: str, seed: int, side: int = 6) -> LabelledPicture:
    """Good cloth with one white square."""
    image = np.repeat(cloth(seed)[..., None], 3, 2)
    mask = np.zeros(image.shape[:2], bool)
    top, left = np.random.default_rng(seed).integers(2, 80, 2)
    mask[top : top + side, left : left + side] = True
    image[mask] = 255
    return LabelledPicture(image, mask, fabric=fabric)


def same(first: DefectPatch, second: DefectPatch) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.mask, second.mask)
        and (first.fabric, first.shape, first.origin) == (second.fabric, second.shape, second.origin)
    )


@given(level=st.integers(20, 235), spread=st.floats(0, 60), seed=st.integers(0, 999))
def test_a_look_gives_back_what_it_took_away(level: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(level, spread + 1e-3, (40, 40, 3)), 0, 255).astype(np.uint8)
    look = Look.of(image)
    seen = look.encode(image)
    assert seen.shape == (3, 40, 40)
    assert seen.dtype == np.float32
    assert np.abs(seen).max() <= 1
    kept = (np.abs(seen) < 1).transpose(1, 2, 0)  # what was clipped is lost
    back = look.decode(seen)
    assert np.abs(back.astype(int) - image)[kept].max(initial=0) <= 1


def test_pale_and_dark_and_tinted_cloth_look_alike() -> None:
    base = np.random.default_rng(0).normal(0, 12, (64, 64, 1))
    seen = []
    for tint in ((60, 60, 60), (200, 200, 200), (180, 90, 60)):
        image = np.clip(base + tint, 0, 255).astype(np.uint8)
        seen.append(Look.of(image).encode(image))
    for other in seen[1:]:
        assert np.abs(other - seen[0]).max() < 0.03
    coarse = np.clip(2 * base + 128, 0, 255).astype(np.uint8).repeat(3, 2)
    assert Look.of(coarse).encode(coarse).std() == pytest.approx(seen[0].std(), rel=0.1)


def test_a_look_is_that_of_the_cloth_and_not_of_the_defect() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[4:20, 4:20] = True
    image[mask] = 240
    assert np.allclose(Look.of(image, mask).mean, 100)
    assert Look.of(image).mean[0] > 130
    assert np.allclose(Look.of(image, np.ones_like(mask)).mean, Look.of(image).mean)
    image[mask] = 255  # beside a selvedge
    assert np.allclose(Look.of(image).mean, 100)


@pytest.mark.parametrize(
    ("height", "width", "name"),
    [
        (1, 1, "spot"),
        (6, 6, "spot"),
        (14, 3, "spot"),
        (60, 3, "warp line"),
        (3, 60, "weft line"),
        (90, 28, "warp line"),
        (30, 30, "area"),
        (20, 40, "area"),
    ],
)
def test_a_rectangle_is_called_by_its_shape(height: int, width: int, name: str) -> None:
    mask = np.zeros((128, 128), bool)
    mask[10 : 10 + height, 15 : 15 + width] = True
    assert SHAPES[shape_class(mask)] == name


@given(
    angle=st.floats(0, 180).filter(lambda angle: min(abs(angle - 45), abs(angle - 135)) > 4),
    length=st.integers(40, 100),
    thickness=st.integers(1, 5),
)
def test_a_turned_line_is_called_by_the_yarns_it_follows(angle: float, length: int, thickness: int) -> None:
    drawn = np.zeros((128, 128), np.uint8)
    reach = length / 2 * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    start, stop = (64 - reach).round().astype(int), (64 + reach).round().astype(int)
    cv2.line(drawn, start.tolist(), stop.tolist(), 1, thickness)
    expected = "warp line" if 45 < angle < 135 else "weft line"
    assert SHAPES[shape_class(drawn.astype(bool))] == expected


def test_an_empty_mask_has_no_shape() -> None:
    with pytest.raises(ValueError, match="empty"):
        shape_class(np.zeros((8, 8), bool))


def test_the_patches_of_a_step_depend_on_the_seed_and_the_step_alone() -> None:
    known = [good("twill", 0), defective("twill", 1, "hole", "slub"), defective("plain", 2, "oil stain")]
    one, other = PatchMaker(known, CODES, seed=3), PatchMaker(known, CODES, seed=3)
    one.batch(0, 4)  # what was asked before changes nothing
    first, second = one.batch(5, 6), other.batch(5, 6)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    for different in (one.batch(6, 6), PatchMaker(known, CODES, seed=4).batch(5, 6)):
        assert not any(same(a, b) for a, b in zip(first, different, strict=True))


def test_a_patch_is_whole_and_says_truly_what_it_is() -> None:
    known = [good("twill", 0), good("plain", 5), defective("twill", 1, "hole", "missing pick")]
    maker = PatchMaker(known, CODES, seed=0)
    patches = maker.batch(0, 40)
    assert {patch.origin for patch in patches} == {"real", "drawn"}
    assert {patch.fabric for patch in patches} == {"twill", "plain"} == set(maker.fabrics)
    for patch in patches:
        assert patch.image.shape == (64, 64, 3)
        assert patch.image.dtype == np.uint8
        assert patch.mask.shape == (64, 64)
        assert 6 <= patch.mask.sum() <= 0.6 * 64 * 64
        assert patch.shape == shape_class(patch.mask)
        assert np.array_equal(patch.code, CODES[patch.fabric])
        assert np.array_equal(patch.image[..., 0], patch.image[..., 2])  # a grey camera sees no colour


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 0.5), (1.0, 1)])
def test_the_share_of_drawn_patches_is_kept(share: float, expected: float) -> None:
    known = [good("twill", 0), spotted("twill", 1), spotted("plain", 2)]
    patches = PatchMaker(known, CODES, drawn=share).batch(0, 80)
    assert np.mean([patch.origin == "drawn" for patch in patches]) == pytest.approx(expected, abs=0.18)


def test_without_defects_every_patch_is_drawn_and_without_good_cloth_none_is() -> None:
    assert {p.origin for p in PatchMaker([good("twill", 0)], CODES, drawn=0.1).batch(0, 6)} == {"drawn"}
    maker = PatchMaker([spotted("twill", 0)], CODES, drawn=0.9)
    assert {patch.origin for patch in maker.batch(0, 6)} == {"real"}
    assert maker.good("twill", np.random.default_rng(0)) is None


@settings(max_examples=30)
@given(seed=st.integers(0, 500), side=st.integers(3, 40))
def test_a_small_defect_is_whole_within_its_patch_wherever_it_lies(seed: int, side: int) -> None:
    picture = spotted("twill", seed, side)
    assert picture.mask is not None
    (patch,) = PatchMaker([picture], CODES, seed=seed).batch(0, 1)
    assert patch.mask.sum() == picture.mask.sum()
    assert (patch.image[patch.mask] == 255).all()


def test_a_mirrored_defect_and_its_mask_stay_together() -> None:
    for patch in PatchMaker([spotted("twill", 3)], CODES).batch(0, 12):
        assert (patch.image[patch.mask] == 255).all()
        assert patch.image[~patch.mask].mean() < 250


def test_only_fabrics_with_a_texture_code_and_pictures_with_a_mask_are_used() -> None:
    unlabelled = LabelledPicture(cloth(9), fabric="twill")
    tiny = LabelledPicture(cloth(9, 40, 40), np.eye(40, dtype=bool), fabric="twill")
    maker = PatchMaker([spotted("denim", 0), spotted("plain", 1), unlabelled, tiny], CODES)
    assert maker.fabrics == ("plain",)
    assert {patch.fabric for patch in maker.batch(0, 8)} == {"plain"}
    with pytest.raises(ValueError, match="known fabrics need pictures"):
        PatchMaker([spotted("denim", 0), unlabelled, tiny], CODES)


def test_masks_that_leave_nothing_to_see_or_no_cloth_are_never_waited_for() -> None:
    speck, whole = spotted("twill", 0, side=2), good("twill", 1)
    assert whole.mask is not None
    whole.mask[:] = True
    maker = PatchMaker([speck, whole, good("plain", 2)], CODES)
    assert {patch.origin for patch in maker.batch(0, 6, drawn=0.0)} == {"drawn"}
    with pytest.raises(ValueError, match="need pictures with masks"):
        PatchMaker([speck, whole], CODES)


def test_a_fabric_with_many_defects_is_no_likelier_than_one_with_few() -> None:
    known = [*(spotted("twill", seed) for seed in range(12)), spotted("plain", 50)]
    fabrics = [patch.fabric for patch in PatchMaker(known, CODES).batch(0, 120)]
    assert 0.35 < fabrics.count("plain") / len(fabrics) < 0.65


def test_every_shape_of_a_fabric_is_as_likely_as_another() -> None:
    line: Mask = np.zeros((96, 128), bool)
    line[40:43, 10:110] = True
    known = [*(spotted("twill", seed) for seed in range(9)), LabelledPicture(cloth(1), line, fabric="twill")]
    shapes = [SHAPES[patch.shape] for patch in PatchMaker(known, CODES).batch(0, 120)]
    assert 0.35 < shapes.count("weft line") / len(shapes) < 0.65
