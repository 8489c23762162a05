"""Pasted defects: the mask is what changed, the cloth around stays as it was, the tone is the new cloth's."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.fabric.types import Mask, Picture
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.paste import DefectPart, cut_parts, paste, poisson

Way = Callable[[DefectPart, Picture, np.random.Generator], tuple[Picture, Mask]]


def grey_noise(rng: np.random.Generator, level: float, shape: tuple[int, int] = (96, 96)) -> Picture:
    values = np.clip(rng.normal(level, 8, shape), 0, 255).astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=2)


def spotted(rng: np.random.Generator, level: float = 120) -> DefectPart:
    """Noise with a dark disc."""
    image = grey_noise(rng, level, (40, 40))
    rows, columns = np.ogrid[:40, :40]
    mask = (rows - 20) ** 2 + (columns - 20) ** 2 < 64
    image[mask] = (image[mask] * 0.3).astype(np.uint8)
    return DefectPart(image, mask, "other")


def grown(mask: Mask, by: int) -> Mask:
    kernel = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel)).astype(bool)


@pytest.mark.parametrize("way", [paste, poisson])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_only_the_mask_and_its_edge_change(way: Way, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cloth = grey_noise(rng, 150)
    before = cloth.copy()
    image, mask = way(spotted(rng), cloth, rng)
    assert (cloth == before).all()
    assert image.shape == cloth.shape
    assert mask.any()
    changed = (image != cloth).any(axis=2)
    assert not (changed & ~grown(mask, 8)).any()
    if way is paste:  # mixed gradients keep the new cloth wherever it is the rougher of the two
        assert changed[mask].mean() > 0.7


def test_a_pasted_defect_is_as_dark_against_its_new_cloth_as_it_was_against_its_own() -> None:
    rng = np.random.default_rng(3)
    differences = []
    for level in (70, 200):
        image, mask = paste(spotted(rng), grey_noise(rng, level), rng)
        inside, outside = image[mask].mean(), image[~grown(mask, 6)].mean()
        assert abs(outside - level) < 3
        differences.append(outside - inside)
    assert min(differences) > 40


@pytest.mark.parametrize("side", [4, 9, 20])
def test_a_blended_defect_keeps_its_contrast_however_narrow_it_is(side: int) -> None:
    image, mask = np.full((side + 20, side + 20, 3), 100, np.uint8), np.zeros((side + 20, side + 20), bool)
    mask[10:-10, 10:-10] = True
    image[mask] = 255
    changes, cloth = [], np.full((96, 96, 3), 100, np.uint8)
    for seed in range(12):
        made, where = poisson(DefectPart(image, mask, "other"), cloth, np.random.default_rng(seed))
        changes.append(np.abs(made.astype(int) - cloth)[where].mean())
    assert np.mean(changes) > 155 / 2


def test_every_defect_of_a_picture_becomes_a_part_and_a_long_one_several() -> None:
    image, mask = grey_noise(np.random.default_rng(0), 100, (80, 500)), np.zeros((80, 500), bool)
    mask[20:24, 10:18] = mask[60:70, 30:40] = True
    mask[40:43, 60:460] = True
    mask[5, 5] = True  # too small to be one
    parts = cut_parts(image, mask, "twill")
    assert sum(part.mask.sum() for part in parts) >= 4 * 8 + 10 * 10 + 3 * 400
    assert len(parts) == 2 + 3
    for part in parts:
        assert part.image.shape[:2] == part.mask.shape
        assert max(part.mask.shape) <= 160 + 2 * 12
        assert part.fabric == "twill"


def test_parts_of_woven_cloth_can_be_set_into_cloth_smaller_than_they_are() -> None:
    rng = np.random.default_rng(1)
    cloth = weave(ClothSpec(), 128, 512, rng, defects="random")
    small = np.repeat(weave(ClothSpec(grey=True), 48, 48, rng).image[..., None], 3, axis=2)
    for part in cut_parts(cloth.image, cloth.mask, "loom"):
        for way in (paste, poisson):
            image, mask = way(part, small, rng)
            assert image.shape == small.shape
            assert mask.shape == small.shape[:2]


@given(width=st.integers(1, 4), height=st.integers(6, 40), at=st.integers(0, 3), seed=st.integers(0, 50))
def test_poisson_takes_hairlines_at_the_edge_of_their_cutting(
    width: int, height: int, at: int, seed: int
) -> None:
    """The solver behind it fails on a mask less than three pixels wide."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height + 8, width + 4), bool)
    mask[4:-4, at : at + width] = True
    part = DefectPart(rng.integers(0, 256, (*mask.shape, 3), np.uint8), mask, "a")
    cloth = rng.integers(0, 256, (64, 64, 3), np.uint8)
    image, found = poisson(part, cloth, rng)
    assert image.shape == cloth.shape
    assert found.shape == (64, 64)
