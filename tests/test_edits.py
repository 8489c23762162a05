"""Edits: rendered into cloth, set somewhere, their masks cleaned and refined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loomsight.synthesis.edits import (
    clean_mask,
    painted,
    placed,
    refine_mask,
    rendered,
    strength,
    strengthened,
)


def test_an_edit_that_keeps_the_weave_and_adds_no_tone_changes_nothing() -> None:
    cloth = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)) - 0.5
    edit = torch.zeros(2, 4, 40, 50)
    edit[:, 3] = 1
    torch.testing.assert_close(rendered(cloth, edit), cloth)
    edit[:, 0] = 0.2  # a red tone
    torch.testing.assert_close(rendered(cloth, edit)[:, 0], (cloth[:, 0] + 0.2).clamp(-1, 1))
    torch.testing.assert_close(rendered(cloth, edit)[:, 1:], cloth[:, 1:])


def test_an_edit_without_weave_leaves_the_ground() -> None:
    stripes = np.tile(np.array([-0.4, 0.4], np.float32), 20)[None, None].repeat(3, 0).repeat(30, 1)
    plain = painted(stripes, np.zeros((4, 30, 40), np.float32))
    assert np.abs(plain[:, 5:-5, 5:-5]).max() < 0.06
    assert plain.shape == stripes.shape


def test_a_defect_is_set_somewhere_with_what_lies_around_its_mask() -> None:
    values = np.arange(4 * 64 * 64, dtype=np.float32).reshape(4, 64, 64)
    mask = np.zeros((64, 64), bool)
    mask[20:30, 40:60] = True
    places = set()
    for seed in range(20):
        out, there = placed(values, mask, np.random.default_rng(seed), (96, 128))
        assert out.shape == (4, 96, 128)
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        assert 7 <= len(rows) <= 15
        assert 14 <= len(columns) <= 30
        assert (out[0][there] > 0).all()
        places.add((rows[0], columns[0]))
    assert len(places) > 15


@pytest.mark.parametrize("room", [(32, 32), (96, 20)])
def test_a_defect_larger_than_the_window_is_made_to_fit(room: tuple[int, int]) -> None:
    out, there = placed(
        np.ones((4, 64, 64), np.float32), np.ones((64, 64), bool), np.random.default_rng(0), room
    )
    assert out.shape == (4, *room)
    assert there[: room[0], : room[1]].mean() > 0.5


def test_specks_are_no_defects() -> None:
    probability = np.zeros((40, 40), np.float32)
    for k in range(5):
        probability[8 * k : 8 * k + 2, : 3 + k] = 0.9  # of 6 to 14 pixels
    probability[0, 30], probability[20:22, 30:32] = 0.9, 0.9
    mask = clean_mask(probability)
    assert mask.sum() == 10 + 12 + 14  # the three largest
    assert clean_mask(np.where(probability > 0, 0.4, 0).astype(np.float32)).sum() == 0


def test_where_the_weave_is_lost_the_mask_stays_in_one_piece() -> None:
    before = np.tile(np.array([80, 120], np.uint8), 32)[None, :, None].repeat(64, 0).repeat(3, 2)
    mask = np.zeros((64, 64), bool)
    mask[20:26, 10:50] = True
    after = before.copy()
    after[mask & (before[..., 0] == 120)] = 80  # every second thread is gone
    refined = refine_mask(before, after, mask, mask)
    assert refined[mask].mean() > 0.9
    assert not refine_mask(before, before, mask, mask).any()


def test_an_edit_is_made_as_strong_as_wanted() -> None:
    rng = np.random.default_rng(0)
    cloth = rng.normal(0, 0.1, (3, 64, 64)).astype(np.float32)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:30] = True
    weak = np.concatenate((np.full((3, 64, 64), 0.05), np.ones((1, 64, 64)))).astype(np.float32)

    def strong(edit: np.ndarray) -> float:
        change = torch.from_numpy(painted(cloth, edit) - cloth)[None]
        return float(strength(change, torch.from_numpy(mask)[None, None].float()))

    assert strong(weak) == pytest.approx(0.05, abs=0.005)
    assert strong(strengthened(cloth, weak, mask, 0.15)) == pytest.approx(0.15, abs=0.02)
    assert strong(strengthened(cloth, weak, mask, 0.9)) == pytest.approx(0.2, abs=0.02)
    assert weak[0, 0, 0] == np.float32(0.05)
