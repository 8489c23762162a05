"""Samples of a base's generators for a new fabric, through the quality gate."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loomsight.base import Base
from loomsight.evaluation.fidelity import Memory
from loomsight.fabric.types import LabelledPicture, Picture
from loomsight.progress import Progress
from loomsight.synthesis.quality import QualityGate
from loomsight.synthesis.recipe import Material, Recipe, TileMaker
from loomsight.synthesis.samples import Bank, fill_bank

_REMEMBERED = 200  # known defects that samples must not be copies of


def make_samples(
    base: Base,
    arm: str,
    good: Sequence[Picture],
    code: NDArray[np.float32],
    count: int,
    *,
    known: Sequence[LabelledPicture] = (),
    gate: bool = True,
    tile: int = 160,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bank:
    """Make defects in a new fabric's good cloth.

    Args:
        base: has the generator; arm: one of its ``arms``.
        good: pictures of the new fabric.
        code: its texture code by the base's encoder, float32 (d,).
        count: samples wanted.
        known: labelled pictures that the base may have learned from; copies of their defects are rejected.
        gate: whether samples are judged at all.
        tile: pixels a side of the windows.
        seconds: after which no more are made.

    Raises:
        BaseWeightsError: the base cannot make this arm.
    """
    material = Material(good, list(known))
    windows = TileMaker(Recipe(arms=("drawn",), tile=tile), material, seed=seed).cloth
    judge = None
    if gate:
        parts = [part for found in material.parts.values() for part in found]
        rng = np.random.default_rng([seed, 5])
        if len(parts) > _REMEMBERED:
            parts = [parts[i] for i in rng.choice(len(parts), _REMEMBERED, replace=False)]
        judge = QualityGate(memory=Memory.of(parts) if len(parts) > 1 else None)
    return fill_bank(
        base.generator(arm),
        windows,
        code,
        count,
        np.random.default_rng([seed, 6]),
        judge=judge,
        progress=progress,
        until=None if seconds is None else time.monotonic() + seconds,
    )
