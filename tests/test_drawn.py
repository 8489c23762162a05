"""Defects drawn into good cloth: they are where the mask says, look like the cloth, and differ each time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.errors import UsageError
from loomsight.fabric.types import DEFECT_TYPES, Picture
from loomsight.fabric.woven import texture, visibilities
from loomsight.loom import DRAWN_KINDS, draw_defect


def good_cloth(seed: int = 0, *, height: int = 160, width: int = 192, channels: int = 1) -> Picture:
    """A twill-like picture with grain, that owes nothing to the loom."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    weave = 20 * np.sin(2 * np.pi * (x + y) / 6.0) + 8 * np.sin(2 * np.pi * y / 4.0)
    grey = 120 + weave[:, :, None] + rng.normal(0, 4, (height, width, channels))
    tinted = grey * np.array([1.1, 1.0, 0.8])[:channels]
    picture = np.clip(tinted, 0, 255).astype(np.uint8)
    return picture if channels == 3 else picture[:, :, 0]


@pytest.mark.parametrize("kind", DRAWN_KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_changed_is_in_the_mask(kind: str, channels: int) -> None:
    good = good_cloth(channels=channels)
    inside, total, areas = 0.0, 0.0, []
    for seed in range(8):
        drawn, mask = draw_defect(good, kind, np.random.default_rng(seed))
        assert drawn.shape == good.shape
        assert drawn.dtype == np.uint8
        assert mask.shape == good.shape[:2]
        change = np.abs(drawn.astype(float) - good).reshape(*mask.shape, -1).max(axis=2)
        inside += float((change[mask] ** 2).sum())
        total += float((change**2).sum())
        areas.append(int(mask.sum()))
        assert change[mask].mean() > 4.0, "a mask must stand on a visible change"
        assert (change > 0).mean() < 0.6, "the cloth around a defect stays as it was"
    assert inside / total > 0.75
    assert 8 <= np.median(areas) < 6000


def test_most_defects_are_a_few_pixels_wide() -> None:
    good = good_cloth()
    rng = np.random.default_rng(1)
    areas = [draw_defect(good, kind, rng)[1].sum() for _ in range(4) for kind in DRAWN_KINDS]
    assert 50 <= np.median(areas) <= 500


def test_kinds_are_the_trades_names() -> None:
    assert set(DRAWN_KINDS) <= set(DEFECT_TYPES)


@pytest.mark.parametrize("kind", DRAWN_KINDS)
def test_same_seed_same_bytes_other_seed_other_defect(kind: str) -> None:
    good = good_cloth()
    before = good.copy()
    first, again, other = (draw_defect(good, kind, np.random.default_rng(seed))[0] for seed in (5, 5, 6))
    assert np.array_equal(good, before), "the good picture is not touched"
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_ends_run_upright_and_picks_run_across() -> None:
    good = good_cloth()
    for kind, upright in (("missing end", True), ("missing pick", False)):
        tall = []
        for seed in range(10):
            y, x = np.nonzero(draw_defect(good, kind, np.random.default_rng(seed), size=80)[1])
            tall.append(np.ptp(y) > np.ptp(x))
        assert np.mean(tall) == (1.0 if upright else 0.0)


def test_size_is_obeyed() -> None:
    good = good_cloth()
    small, large = (
        np.median(
            [draw_defect(good, "hole", np.random.default_rng(s), size=size)[1].sum() for s in range(12)]
        )
        for size in (6, 24)
    )
    assert large > 4 * small


def test_on_uneven_cloth_defects_are_seen_against_its_own_streaks() -> None:
    rng = np.random.default_rng(0)
    streaks = cv2.GaussianBlur(rng.normal(0, 1, (160, 160)), (0, 0), 3.0)
    rows, columns = np.mgrid[:160, :160] * (2 * np.pi / 5)
    cloth = 180 + 12 * streaks / streaks.std() + 6 * np.sin(columns) * np.sin(rows)
    cloth = np.repeat(np.clip(cloth, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    threads = texture(cloth)
    for kind in DRAWN_KINDS * 4:
        changed, mask = draw_defect(cloth, kind, rng)
        assert max(visibilities(changed.astype(np.float32) - cloth, mask, threads)) > 0.95, kind


@pytest.mark.parametrize("level", [0, 3, 252, 255])
def test_black_and_burnt_out_cloth_still_gets_its_defect(level: int) -> None:
    flat = np.full((64, 64), level, np.uint8)
    for kind in DRAWN_KINDS:
        drawn, mask = draw_defect(flat, kind, np.random.default_rng(3))
        assert mask.any()
        assert (drawn != flat)[mask].any()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(32, 90),
    st.integers(32, 300),
    st.sampled_from(DRAWN_KINDS),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_any_shape(height: int, width: int, kind: str, seed: int, given_period: bool) -> None:
    good = good_cloth(height=height, width=width)
    period = (6.0, 3.5) if given_period else None
    drawn, mask = draw_defect(good, kind, np.random.default_rng(seed), period=period)
    assert drawn.shape == good.shape
    assert mask.any()


def test_unknown_kind_and_tiny_picture_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown defect: moth.*one of"):
        draw_defect(good_cloth(), "moth", np.random.default_rng(0))
    with pytest.raises(UsageError, match="too small"):
        draw_defect(good_cloth(height=20), "nep", np.random.default_rng(0))
