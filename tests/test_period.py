"""The weave's period: right to a fraction of a pixel on woven cloth, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from loomsight.fabric.types import Picture
from loomsight.loom import ClothSpec, weave
from loomsight.loom.weaves import Structure
from loomsight.texture.period import weave_period


def cloth(structure: Structure, ends: float, picks: float, *, seed: int = 1, **more: float) -> Picture:
    spec = ClothSpec.parse({"structure": structure, "ends_per_cm": ends, "picks_per_cm": picks, **more})
    return weave(spec, 256, 384, np.random.default_rng(seed)).image


@pytest.mark.parametrize(
    ("structure", "yarns"),
    [("plain", 2), ("twill 2/1", 3), ("twill 2/2", 4), ("twill 3/1", 4), ("basket 2/2", 4)],
)
def test_the_repeat_is_found_to_a_tenth_of_a_pixel(structure: Structure, yarns: int) -> None:
    period = weave_period(cloth(structure, 20, 18))  # at 0.1 mm/px: ends 5 px apart, picks 5.56
    assert period.weft == pytest.approx(yarns * 5.0, abs=0.1)
    assert period.warp == pytest.approx(yarns * 100 / 18, abs=0.1)
    assert min(period.warp_confidence, period.weft_confidence) > 0.3


@settings(max_examples=15)
@given(ends=st.floats(11, 25), picks=st.floats(11, 25), seed=st.integers(0, 1000))
def test_any_plain_weave_repeats_after_whole_yarns(ends: float, picks: float, seed: int) -> None:
    period = weave_period(cloth("plain", ends, picks, seed=seed))
    for found, yarn in ((period.weft, 100 / ends), (period.warp, 100 / picks)):
        assert found is not None
        # Where one yarn looks much like the next, the picture repeats after one of them, else after two.
        assert min(abs(found - yarn), abs(found - 2 * yarn)) < 0.02 * found


def test_a_turned_picture_swaps_warp_and_weft_and_lighting_changes_nothing() -> None:
    image = cloth("twill 2/1", 20, 14, lighting=0.0)
    upright, turned = weave_period(image), weave_period(np.rot90(image).copy())
    assert upright.weft == pytest.approx(turned.warp, abs=0.05)
    assert upright.warp == pytest.approx(turned.weft, abs=0.05)
    light = np.linspace(0.4, 1.0, image.shape[1])[None, :, None]
    lit = weave_period((image * light).astype(np.uint8))
    assert lit.warp == pytest.approx(upright.warp, abs=0.1)
    assert lit.weft == pytest.approx(upright.weft, abs=0.1)


def test_a_stripe_repeats_across_only() -> None:
    x = np.arange(300)
    stripes = 128 + 60 * np.sin(2 * np.pi * x / 11.3) + np.random.default_rng(0).normal(0, 8, (220, 300))
    period = weave_period(stripes.clip(0, 255).astype(np.uint8))
    assert period.weft == pytest.approx(11.3, abs=0.05)
    assert period.warp is None
    assert period.confidence == period.weft_confidence > 0.5


@pytest.mark.parametrize("grain", [0.0, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("side", [128, 400])
def test_fleece_and_noise_have_no_period(grain: float, side: int) -> None:
    for seed in range(3):
        noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), grain)
        period = weave_period((128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8))
        assert (period.warp, period.weft) == (None, None)
        assert period.confidence < 0.2


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (64, 64, 3)])
def test_one_colour_or_hardly_a_picture_has_none_either(shape: tuple[int, ...]) -> None:
    period = weave_period(np.full(shape, 90, np.uint8))
    assert (period.warp, period.weft, period.confidence) == (None, None, 0.0)
