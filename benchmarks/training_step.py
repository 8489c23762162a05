"""How long does a training step of the segmenter or the detector take, and does it wait for its tiles?

    python benchmarks/training_step.py --threads 2
    python benchmarks/training_step.py --threads 2 --network detector --tile 320

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

from loomsight.detection import rtdetr
from loomsight.detection.deeplab import SegmenterTask, build
from loomsight.detection.rtdetr import DetectorTask
from loomsight.fabric.types import LabelledPicture
from loomsight.learn.detector import DetectorSettings, collate_boxes, recipe_for
from loomsight.learn.segmenter import collate
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.recipe import Material, Recipe, TileMaker, types_in
from loomsight.training.loop import Context, Task, TrainSettings, fit


class Timed:
    """A task that notes when each step begins and ends."""

    def __init__(self, task: Task[Any]) -> None:
        self.networks, self.optimizers, self._task = task.networks, task.optimizers, task
        self.busy: list[float] = []
        self.ends: list[float] = []

    def step(self, batch: Any, context: Context) -> Mapping[str, Any]:
        begun = time.perf_counter()
        losses = self._task.step(batch, context)
        self.ends.append(time.perf_counter())
        self.busy.append(self.ends[-1] - begun)
        return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    parser.add_argument("--network", choices=("segmenter", "detector"), default="segmenter")
    parser.add_argument("--tile", type=int, default=0, help="of the detector; 0: its default")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    material, recipe = woven_material(), Recipe()
    types = types_in(material, recipe)
    if asked.network == "detector":
        own = DetectorSettings()
        recipe = recipe_for(recipe, own.model_copy(update={"tile": asked.tile or own.tile}))
    maker = TileMaker(recipe, material, seed=0)

    def batch(k: int) -> Any:
        return (
            collate_boxes(maker.batch(k), types) if asked.network == "detector" else collate(maker.batch(k))
        )

    begun = time.perf_counter()
    for k in range(10):
        maker.batch(k)
    rows: dict[str, Mapping[str, float]] = {"making a batch": {"median": (time.perf_counter() - begun) / 10}}
    for amp in ("float32", "bf16"):
        for channels_last in (False, True):
            detector = asked.network == "detector"
            task = Timed(DetectorTask(rtdetr.build("lite0", types)) if detector else SegmenterTask(build()))
            settings = TrainSettings(
                steps=asked.steps, amp=amp, channels_last=channels_last, schedule="constant"
            )
            fit(task, batch, settings)
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
