"""Does the promised rate of false alarms hold on other good cloth, and under another light?

For each fabric the shipped default, the union of a segmenter and of memory + prediction, learns its first ten
good pictures; the AITEX fabrics have the others as known fabrics, the woven ones 24 random ones. Then:

* **splits**: the other good pictures are dealt into halves at random, 500 times: the threshold is set on one
  half, the false alarms are counted on the other. "Within a factor of two" is the share of splits in which
  they are between half and twice the promise, for promises that allow 1, 3, 6, 12 or 24 alarms in a half.
* **light**: the threshold is set on the first half of them for one false alarm per Mpx, and the false alarms
  are counted on the second half, as it is and with the lamp's gain, a slope of its light, and blur.

    python benchmarks/promises.py --data ../shared/data --threads 1
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from anomaly import REAL, WOVEN, real, woven
from loomsight.anomaly.calibration import calibrate_union
from loomsight.anomaly.drift import ONE_SIDED, DriftCard, reference
from loomsight.anomaly.drift import measure as measure_drift
from loomsight.anomaly.normality import Normality
from loomsight.datasets import new_fabric_fold, read_dataset
from loomsight.evaluation.operating_point import (
    AlarmRate,
    alarm_thresholds,
    joined_through_faint,
    point_from_alarms,
)
from loomsight.evaluation.regions import count_regions
from loomsight.fabric.images import to_rgb
from loomsight.fabric.regions import Grouping
from loomsight.fabric.types import LabelledPicture, Picture, ScoreMap
from loomsight.learn.cloth import part
from loomsight.learn.segmenter import PIECES, train_segmenter
from loomsight.loom import ClothSpec, weave
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis.recipe import Material, Recipe
from new_fabric import append, read_rows

ONE = AlarmRate.per_megapixel(1.0)
ALLOWED = (1, 3, 6, 12, 24)
SPLITS, STEPS, MOST = 500, 300, 120


def _slope(image: Picture, by: float) -> Picture:
    lamp = np.linspace(1 - by, 1 + by, image.shape[1], dtype=np.float32)
    shape = lamp[None, :] if image.ndim == 2 else lamp[None, :, None]
    return np.asarray(np.rint(image * shape).clip(0, 255), np.uint8)


def _gain(image: Picture, gain: float) -> Picture:
    return np.asarray(np.rint(image * np.float32(gain)).clip(0, 255), np.uint8)


LIGHTS: Mapping[str, Callable[[Picture], Picture]] = {
    "as it is": lambda image: image,
    "gain 0.7": lambda image: _gain(image, 0.7),
    "gain 0.85": lambda image: _gain(image, 0.85),
    "gain 1.15": lambda image: _gain(image, 1.15),
    "gain 1.3": lambda image: _gain(image, 1.3),
    "slope ± 15 %": lambda image: _slope(image, 0.15),
    "blur 0.5": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5), np.uint8),
    "blur 1": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0), np.uint8),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--sets", default=f"{REAL},{WOVEN}")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/promises.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the tables, run nothing")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if not asked.report:
        have = {row["set"] for row in read_rows(asked.results)}
        for name in (one for one in asked.sets.split(",") if one not in have):
            if not name.startswith("woven/") and not (asked.data / name).is_dir():
                print(f"promises: {asked.data / name} is not there: {name} is left out", file=sys.stderr)
                continue
            append(asked.results, measure(asked.data, name))
            print(name, file=sys.stderr, flush=True)
    rows = list(read_rows(asked.results))
    print(split_table(rows), light_table(rows), sep="\n\n", end="\n\n")
    print(json.dumps(rows))


def measure(data: Path, name: str) -> dict[str, Any]:
    """The alarms of each other good picture, and the false alarms under each light."""
    seen, test = woven(name) if name.startswith("woven/") else real(data, name)
    good = [one.image for one in test if one.mask is None or not one.mask.any()]
    cloth = part(seen)
    material = Material([to_rgb(image) for image in cloth.learn], _known(data, name))
    engine = TorchEngine(train_segmenter(material, Recipe(), steps=STEPS)[0])
    normality = Normality.fit(cloth.learn, held=cloth.judge)
    first, second = good[: len(good) // 2], good[len(good) // 2 :]
    maps = [[engine.score(image) for image in first], [normality.score(image) for image in first]]
    point, united, together = calibrate_union(*maps, ONE, PIECES)
    odd = joined_through_faint(PIECES, maps[1])
    card = reference(first, together)

    def union(image: Picture) -> ScoreMap:
        return point.unite(engine.score(image), normality.score(image))

    row: dict[str, Any] = {"set": name, "threshold": united.threshold, "alarms": [], "lights": {}}
    for image in good:
        alarms, _ = alarm_thresholds(union(image), united.grouping, most=MOST)
        row["alarms"].append([image.shape[0] * image.shape[1] / 1e6, [float(one) for one in alarms]])
    row["megapixels"] = sum(image.shape[0] * image.shape[1] for image in second) / 1e6
    for light, change in LIGHTS.items():
        changed = [change(image) for image in second]
        scores = [union(image) for image in changed]
        row["lights"][light] = {
            "union": _false(scores, united.threshold, united.grouping),
            "drift": _drifted(card, changed, scores),
            "normality": _false(map(normality.score, changed), point.strangeness, odd),
        }
    return row


def _false(maps: Any, threshold: float, grouping: Grouping) -> int:
    return sum(count_regions(score, None, threshold, grouping).false_alarms for score in maps)


def _drifted(card: DriftCard, pictures: Sequence[Picture], maps: Sequence[ScoreMap]) -> list[str]:
    """What an inspection of all these would say has drifted."""
    seen = [measure_drift(picture, score) for picture, score in zip(pictures, maps, strict=True)]
    off = {key: float(np.median([one[key] for one in seen])) - usual for key, usual in card.usual.items()}
    return [key for key, by in off.items() if (by if key in ONE_SIDED else abs(by)) > card.allowed[key]]


def _known(data: Path, name: str) -> list[LabelledPicture]:
    if not name.startswith("woven/"):
        return [
            item.load() for item in new_fabric_fold(read_dataset(data), name).known if item.mask or item.good
        ]
    rng, known = np.random.default_rng(40), []
    for number in range(24):
        cloth = weave(ClothSpec.random(rng), 256, 512, rng, "random" if number % 3 else ())
        known.append(LabelledPicture(cloth.image, cloth.mask, fabric=f"loom/{number}"))
    return known


def split_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the share of random splits in which the promise held within a factor of two."""
    lines = [
        "| cloth | " + " | ".join(f"{allowed} allowed" for allowed in ALLOWED) + " | Mpx in a half |",
        "|---|" + "---|" * (len(ALLOWED) + 1),
    ]
    shares = defaultdict(list)
    for row in rows:
        rng, count = np.random.default_rng(0), len(row["alarms"])
        area = np.array([one[0] for one in row["alarms"]])
        cells = []
        for allowed in ALLOWED:
            held = 0
            for _ in range(SPLITS):
                half = rng.permutation(count) < count // 2
                rate = AlarmRate.per_megapixel(allowed / area[half].sum())
                alarms = [a for one, use in zip(row["alarms"], half, strict=True) if use for a in one[1]]
                threshold = point_from_alarms(alarms, rate, float(area[half].sum())).threshold
                new = sum(
                    a >= threshold
                    for one, use in zip(row["alarms"], half, strict=True)
                    if not use
                    for a in one[1]
                )
                expected = rate.allowed(float(area[~half].sum()))
                held += expected / 2 <= new <= 2 * expected
            shares[allowed].append(held / SPLITS)
            cells.append(f"{held / SPLITS:.2f}")
        lines.append(f"| {row['set']} | " + " | ".join(cells) + f" | {area.sum() / 2:.1f} |")
    if rows:
        cells = [f"{np.mean(shares[allowed]):.2f}" for allowed in ALLOWED]
        lines.append("| mean | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def light_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: false alarms under each light, over all cloth, and times those of the cloth as it is."""
    area = sum(row["megapixels"] for row in rows)
    head = f"| light ({area:.1f} Mpx) | union | times | normality alone | times | drift said on |"
    lines = [head, "|---|---|---|---|---|---|"]
    for light in LIGHTS:
        cells = []
        for which in ("union", "normality"):
            count, plain = (sum(row["lights"][one][which] for row in rows) for one in (light, "as it is"))
            cells += [str(count), f"{count / max(plain, 1):.2f}"]
        said = [", ".join(row["lights"][light]["drift"]) for row in rows]
        words = f"{sum(map(bool, said))} of {len(said)} fabrics"
        lines.append(f"| {light} | " + " | ".join(cells) + f" | {words} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
