"""Fidelity: KID against its formula, and each figure against samples whose fault is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.evaluation.fidelity import (
    Memory,
    PatchFeatures,
    agreement,
    around,
    background_error,
    changed,
    distances,
    diversity,
    kid,
    measure_fidelity,
    near,
    squared_mmd,
)
from loomsight.fabric.types import Mask, Picture
from loomsight.loom import ClothSpec, draw_defect, weave


@dataclass(frozen=True)
class Sample:
    cloth: Picture
    image: Picture
    mask: Mask


@pytest.fixture(scope="module")
def features() -> PatchFeatures:
    return PatchFeatures()


def cloth(seed: int, size: int = 96) -> Picture:
    return weave(ClothSpec(), size, size, np.random.default_rng(seed)).image


def drawn(kind: str, seeds: range) -> list[Sample]:
    found = []
    for seed in seeds:
        good = cloth(seed)
        image, mask = draw_defect(good, kind, np.random.default_rng(seed))
        found.append(Sample(good, image, mask))
    return found


def by_the_formula(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al., equation 4, one pair after another."""
    kernel = lambda a, b: (float(np.dot(a, b)) / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_the_mmd_equals_a_value_computed_by_hand() -> None:
    x, y = np.array([[0.0], [1.0]], np.float32), np.array([[1.0], [2.0]], np.float32)
    # k(0,1) = 1; k(1,2) = 27; between: k(0,1) = 1, k(0,2) = 1, k(1,1) = 8, k(1,2) = 27, mean 9.25
    assert squared_mmd(x, y) == pytest.approx(1 + 27 - 2 * 9.25)


@settings(max_examples=20)
@given(n=st.integers(2, 7), m=st.integers(2, 7), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_mmd_equals_the_formula(n: int, m: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 2, (n, width)), rng.normal(0.5, 2, (m, width))
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = by_the_formula(x.astype(np.float64), y.astype(np.float64))
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_kid_is_unbiased_where_nothing_differs_and_grows_with_the_difference() -> None:
    rng = np.random.default_rng(0)
    same = [kid(rng.normal(size=(24, 20)), rng.normal(size=(24, 20)), rng, subsets=5)[0] for _ in range(60)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
    assert min(same) < 0 < max(same)
    values = [
        kid(rng.normal(size=(80, 20)), rng.normal(by, 1, (80, 20)), rng, subsets=10)[0]
        for by in (0.2, 0.5, 1)
    ]
    assert max(same) < values[1] < values[2]
    assert values[0] < values[1]


def test_kid_of_the_same_seed_is_the_same() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 30, 8)).astype(np.float32)
    assert kid(x, y, np.random.default_rng(5)) == kid(x, y, np.random.default_rng(5))


def test_one_row_has_no_mmd() -> None:
    with pytest.raises(ValueError, match="two or more rows"):
        kid(np.zeros((1, 4), np.float32), np.zeros((9, 4), np.float32), np.random.default_rng(0))


def test_distances_are_those_of_every_pair() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 5, 6)).astype(np.float32)
    expected = [[np.sqrt(np.mean((a.astype(float) - b) ** 2)) for b in y] for a in x]
    assert np.allclose(distances(x, y), expected)


def test_diversity_counts_pairs_within_a_cluster_only() -> None:
    real = np.array([[0.0], [100.0]], np.float32)
    made = np.array([[1.0], [3.0], [99.0], [103.0], [102.0]], np.float32)
    assert diversity(made, real) == pytest.approx((2 + (4 + 3 + 1) / 3) / 2)
    assert diversity(made[[0, 2]], real) is None
    assert diversity(np.repeat(made[:1], 5, 0), real) == 0


def test_one_in_twenty_real_defects_is_as_near_to_another_as_a_copy() -> None:
    line = np.cumsum(np.arange(1, 42, dtype=np.float32))[:, None]  # ever farther from the one before
    assert near(line) == pytest.approx(np.quantile([2, *range(2, 42)], 0.05))
    with pytest.raises(ValueError, match="neighbour"):
        near(line[:1])


def test_background_error_is_in_grey_levels_and_blind_to_the_defect() -> None:
    good, mask = cloth(0), np.zeros((96, 96), bool)
    mask[20:40, 20:40] = True
    image = good.copy()
    image[mask] = 0
    assert background_error(good, image, mask) == 0
    image[80:90, :48] = np.where(good[80:90, :48] < 128, good[80:90, :48] + 10, good[80:90, :48] - 10)
    assert background_error(good, image, mask) == pytest.approx(10 * 480 / (96 * 96 - 400))
    assert background_error(good, image, np.ones_like(mask)) == 0


def test_a_mask_agrees_with_what_changed_and_not_with_a_place_beside_it() -> None:
    good, mask = cloth(1), np.zeros((96, 96), bool)
    mask[30:36, 10:70] = True
    image = good.copy()
    image[mask] = image[mask] // 3
    seen = changed(good, image)
    assert agreement(mask, seen) > 0.95
    assert agreement(np.roll(mask, 1, axis=0), seen) > 0.95  # an edge is a matter of opinion
    assert agreement(np.roll(mask, 20, axis=0), seen) == 0
    half = mask.copy()
    half[:, 40:] = False
    assert agreement(half, seen) == pytest.approx(0.53, abs=0.06)
    assert not changed(good, good).any()
    assert agreement(mask, changed(good, good)) == 0


@given(
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    at=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_the_square_around_a_defect_has_its_size_and_holds_the_defect(
    size: tuple[int, int], at: tuple[float, float]
) -> None:
    mask = np.zeros(size, bool)
    place = int(at[0] * size[0]), int(at[1] * size[1])
    mask[place] = True
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    cut, own = around(image, mask, 48)
    assert cut.shape == (48, 48, 3)
    assert own.sum() == 1
    assert (cut[own] == image[mask]).all()


def test_no_defect_has_no_square() -> None:
    with pytest.raises(ValueError, match="empty"):
        around(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), bool))


def test_features_do_not_depend_on_the_company_of_a_patch(features: PatchFeatures) -> None:
    patches = [cloth(seed, 64) for seed in range(5)]
    together = features(patches)
    assert together.shape == (5, 2 * (24 + 40 + 112))
    assert np.allclose(together[3], features(patches[3:4])[0], atol=1e-4)
    assert len(features([])) == 0


def test_figures_of_good_samples_and_of_bad_ones(features: PatchFeatures) -> None:
    real = drawn("hole", range(12))
    memory = Memory.of(real, features)
    good, other = drawn("hole", range(100, 112)), drawn("oil stain", range(100, 112))
    spoilt = [Sample(one.cloth, 255 - one.image, np.roll(one.mask, 48, axis=1)) for one in good]
    figures = {
        name: measure_fidelity(made, real, np.random.default_rng(0), memory=memory, features=features)
        for name, made in (("good", good), ("other", other), ("spoilt", spoilt), ("copies", real))
    }
    assert figures["good"].kid < min(figures["other"].kid, figures["spoilt"].kid)
    assert figures["good"].background_error < 1 < figures["spoilt"].background_error
    assert figures["good"].mask_agreement > 0.6 > figures["spoilt"].mask_agreement
    assert figures["copies"].memorised is not None
    assert figures["copies"].memorised > 0.9
    assert figures["good"].memorised is not None
    assert figures["good"].memorised < 0.3
    assert "EfficientNet-Lite0" in figures["good"].features
    assert figures["good"].samples == figures["good"].real == 12
    assert measure_fidelity(good, real, np.random.default_rng(0), features=features).memorised is None
