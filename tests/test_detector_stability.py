"""Training the detector for long, with all that a tile may hold; the longest test, in a file of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from loomsight.detection.rtdetr import DetectorBatch, DetectorTask, build, targets
from loomsight.training.loop import TrainSettings, fit
from loomsight.training.precision import Precision

TYPES = ("hole", "stain", "broken end")


@pytest.mark.parametrize(("amp", "steps"), [("auto", 2000), ("bf16", 100)])
def test_a_long_training_stays_finite(amp: Precision, steps: int) -> None:
    """As this machine trains, at the usual learning rate, with no box, one, specks and crowds in turn.

    In bfloat16 too, which takes four times as long where the processor only emulates it.
    """
    side = 64

    def batch(k: int) -> DetectorBatch:
        rng = np.random.default_rng(k)
        image = rng.integers(80, 120, (1, 3, side, side)).astype(np.uint8)
        at = rng.uniform(-4, side, ((0, 1, 3, 150)[k % 4], 2))
        extent = rng.choice([0, 1, 6, 40], at.shape)
        for (x, y), (width, height) in zip(at.clip(0).astype(int), extent, strict=True):
            image[0, :, y : y + height, x : x + width] = 200
        kinds = rng.integers(0, len(TYPES), len(at))
        label = targets(np.concatenate([at, at + extent], 1).astype(np.float32), kinds, (side, side))
        return {"image": torch.from_numpy(image), "labels": [label]}

    torch.manual_seed(0)
    network = build("lite0", TYPES)
    history = fit(DetectorTask(network), batch, TrainSettings(steps=steps, amp=amp))
    assert (history.steps, history.skipped) == (steps, 0)
    assert all(math.isfinite(entry["loss"]) for entry in history.losses)
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
