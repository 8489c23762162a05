"""Banks of made samples: exactly as many as asked for, what was refused and why, and never forever."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from loomsight.fabric.types import Picture
from loomsight.progress import Progress
from loomsight.synthesis.samples import Bank, Sample, fill_bank

CODE = np.zeros(4, np.float32)


class Spots:
    """Draws a white square of 0 to 5 pixels a side; ``empty`` is the share without one."""

    name = "spots"

    def __init__(self, empty: float = 0.0) -> None:
        self.empty, self.asked = empty, 0

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        self.asked += len(cloth)
        assert code is CODE
        return [self._one(good, rng) for good in cloth]

    def _one(self, good: Picture, rng: np.random.Generator) -> Sample:
        image, mask = good.copy(), np.zeros(good.shape[:2], bool)
        if rng.random() >= self.empty:
            side = int(rng.integers(1, 6))
            mask[10 : 10 + side, 10 : 10 + side] = True
            image[mask] = 255
        return Sample(good, image, mask, 0, self.name)


def window(rng: np.random.Generator) -> Picture:
    return rng.integers(60, 120, (24, 24, 3), np.uint8)


def too_small(sample: Sample) -> str | None:
    return "too small" if sample.mask.sum() < 9 else None


def filled(count: int, seed: int = 0, **settings: float) -> Bank:
    generator = Spots(settings.pop("empty", 0.0))
    return fill_bank(generator, window, CODE, count, np.random.default_rng(seed), judge=too_small, **settings)


@given(count=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_bank_holds_exactly_what_was_asked_for(count: int, seed: int) -> None:
    bank = filled(count, seed)
    assert len(bank.samples) == count
    assert all(too_small(sample) is None for sample in bank.samples)


def test_what_was_refused_is_counted_by_its_reason_and_shown() -> None:
    bank = filled(40, empty=0.3)
    assert set(bank.reasons) == {"no defect", "too small"}
    assert bank.reasons.total() == len(bank.rejected) > 10
    for sample, reason in bank.rejected:
        assert reason == ("too small" if sample.mask.any() else "no defect")
    assert bank.made == len(bank.samples) + bank.reasons.total()


def test_without_a_judge_only_empty_samples_are_refused() -> None:
    bank = fill_bank(Spots(0.3), window, CODE, 30, np.random.default_rng(0))
    assert len(bank.samples) == 30
    assert set(bank.reasons) == {"no defect"}
    assert any(too_small(sample) for sample in bank.samples)


@pytest.mark.parametrize("attempts", [1.0, 4.0])
def test_a_generator_that_never_succeeds_is_given_up(attempts: float) -> None:
    generator = Spots(empty=1.0)
    bank = fill_bank(generator, window, CODE, 50, np.random.default_rng(0), attempts=attempts)
    assert not bank.samples
    assert bank.reasons == {"no defect": bank.made}
    assert attempts * 50 <= generator.asked == bank.made < attempts * 50 + 16
    assert len(bank.rejected) == min(64, bank.made)  # some for the report, not all in memory


def test_the_same_seed_makes_the_same_bank() -> None:
    first, second, other = filled(20, 1, empty=0.2), filled(20, 1, empty=0.2), filled(20, 2, empty=0.2)
    assert first.reasons == second.reasons
    for a, b in zip(first.samples, second.samples, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.mask, b.mask)
    assert not np.array_equal(first.samples[0].image, other.samples[0].image)


def test_the_progress_never_passes_its_end_and_reaches_it() -> None:
    class Told(Progress):
        def __init__(self) -> None:
            self.steps: list[tuple[str, int, int]] = []

        def step(self, label: str, done: int, total: int, note: str = "") -> None:
            self.steps.append((label, done, total))

    told = Told()
    fill_bank(Spots(), window, CODE, 37, np.random.default_rng(0), judge=too_small, progress=told)
    dones = [done for _, done, _ in told.steps]
    assert dones == sorted(dones)
    assert told.steps[-1] == ("samples: spots", 37, 37)
