"""How long does a training step of the default segmenter take, and does it wait for its tiles?

    python benchmarks/training_step.py --threads 2

Woven cloth, the default recipe, the real loop; number formats and memory layouts in one run, so that they
compare on a shared machine. Seconds a step are the best and the median of the steps after the first five.
The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from loomsight.detection.deeplab import Batch, SegmenterTask, build
from loomsight.fabric.types import LabelledPicture
from loomsight.learn.segmenter import collate
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.recipe import Material, Recipe, TileMaker
from loomsight.training.loop import Context, TrainSettings, fit


class Timed(SegmenterTask):
    """The segmenter's task, which notes when each step begins and ends."""

    def __init__(self) -> None:
        super().__init__(build())
        self.busy: list[float] = []
        self.ends: list[float] = []

    def step(self, batch: Batch, context: Context) -> dict[str, Any]:
        begun = time.perf_counter()
        losses = super().step(batch, context)
        self.ends.append(time.perf_counter())
        self.busy.append(self.ends[-1] - begun)
        return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    maker = TileMaker(Recipe(), woven_material(), seed=0)
    begun = time.perf_counter()
    for k in range(10):
        maker.batch(k)
    rows: dict[str, Mapping[str, float]] = {"making a batch": {"median": (time.perf_counter() - begun) / 10}}
    for amp in ("float32", "bf16"):
        for channels_last in (False, True):
            task = Timed()
            settings = TrainSettings(
                steps=asked.steps, amp=amp, channels_last=channels_last, schedule="constant"
            )
            fit(task, lambda k: collate(maker.batch(k)), settings)
            waits = np.diff(task.ends)[5:] - np.array(task.busy[6:])
            name = f"{amp}, {'channels last' if channels_last else 'contiguous'}"
            rows[name] = {
                "best": min(task.busy[5:]),
                "median": float(np.median(task.busy[5:])),
                "between steps": float(np.median(waits)),
            }
    for name, row in rows.items():
        print(f"{name:24}", "  ".join(f"{what} {seconds * 1000:.0f} ms" for what, seconds in row.items()))
    print(json.dumps(rows))


def woven_material() -> Material:
    """Good cloth of one fabric, and a few known ones with defects."""
    rng = np.random.default_rng(0)
    spec = ClothSpec.random(rng)
    good = [weave(spec, 256, 1024, rng).image for _ in range(4)]
    known = []
    for number in range(8):
        cloth = weave(ClothSpec.random(rng), 256, 512, rng, defects="random" if number % 2 else ())
        known.append(LabelledPicture(cloth.image, cloth.mask, fabric=f"known {number}"))
    return Material(good, known)


if __name__ == "__main__":
    main()
