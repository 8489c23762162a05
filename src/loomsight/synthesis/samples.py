"""Samples for a new fabric by a generator: made in good cloth, judged, kept in a bank.

A generator is slower than a training step, so its samples are made once, before the training, and kept:
the recipe then takes them from the bank as it takes pasted and drawn defects.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loomsight.fabric.types import Mask, Picture
from loomsight.progress import Progress

_BATCH = 16  # windows given to a generator at a time


@dataclass(frozen=True, slots=True)
class Sample:
    """A made defect in good cloth.

    Attributes:
        cloth: uint8 HWC RGB, the good cloth before.
        image: the same with the defect; outside the mask's surroundings equal to ``cloth`` bit for bit.
        mask: bool HW.
        shape: the class it was made as, an index into :data:`loomsight.synthesis.patches.SHAPES`.
        origin: the arm that made it: "stage1", "stage1+2", "diffusion".
    """

    cloth: Picture
    image: Picture
    mask: Mask
    shape: int
    origin: str


class Generator(Protocol):
    """What makes defects in good cloth."""

    @property
    def name(self) -> str:
        """The arm's name."""

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        """One defect in each window of good cloth.

        Args:
            cloth: uint8 HWC RGB windows of one size, 96 px a side or more.
            code: the new fabric's texture code, float32 (d,), of the encoder that the generator was
                trained with.
            rng: decides everything random.

        Returns:
            As many samples as windows, in their order. A sample whose mask is empty failed.
        """


Judge = Callable[[Sample], str | None]
"""Why a sample is to be rejected, in a word or two; None if it is good."""


@dataclass
class Bank:
    """Samples that passed, and those that did not.

    Attributes:
        samples: to be used.
        rejected: some of those rejected with the reason, for the report.
        reasons: how many were rejected for which reason.
    """

    samples: list[Sample] = field(default_factory=list)
    rejected: list[tuple[Sample, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def made(self) -> int:
        """How many were made, good and bad."""
        return len(self.samples) + self.reasons.total()


def fill_bank(
    generator: Generator,
    windows: Callable[[np.random.Generator], Picture],
    code: NDArray[np.float32],
    count: int,
    rng: np.random.Generator,
    *,
    judge: Judge | None = None,
    progress: Progress | None = None,
    attempts: float = 4.0,
    until: float | None = None,
) -> Bank:
    """Make samples until ``count`` have passed, or ``attempts`` times as many were made.

    Args:
        windows: draws a window of good cloth.
        judge: the quality gate; without it only empty ones are rejected.
        until: the time, as ``time.monotonic()`` tells it, at which no more are made.
    """
    progress, bank = progress or Progress(), Bank()
    while len(bank.samples) < count and bank.made < attempts * count:
        if until is not None and bank.samples and time.monotonic() > until:
            break
        wanted = min(_BATCH, count - len(bank.samples) + 4)
        for sample in generator.make([windows(rng) for _ in range(wanted)], code, rng):
            reason = "no defect" if not sample.mask.any() else (judge(sample) if judge else None)
            if reason is None:
                bank.samples.append(sample)
                continue
            bank.reasons[reason] += 1
            if len(bank.rejected) < 64:
                bank.rejected.append((sample, reason))
        progress.step(f"samples: {generator.name}", min(len(bank.samples), count), count)
    del bank.samples[count:]
    return bank
