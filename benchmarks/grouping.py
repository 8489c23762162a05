"""One defect, one region: how faint may the pixels be that join its pieces?

Woven cloth as in anomaly.py: memory + prediction learn ten good pictures, and every type of defect that the
quality can have is the test. Pieces are joined where pixels link them that only a share of good cloth's
reaches; the share is measured on the good pictures held back. For each share:

* **regions**: how many regions a found defect has, and **IoU** of the best one's box with the defect's.
* **recall** at one false alarm per Mpx, the threshold set on every other good picture; **false alarms** per
  Mpx on those between.
* **merged**: of 150 random pairs of defective pictures laid over one another, those whose defects lie more
  than 20 pixels apart and are both found: the share in which one region holds some of both.

    python benchmarks/grouping.py --qualities canvas,oxford,serge,denim --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anomaly import woven
from loomsight.anomaly.normality import Normality
from loomsight.evaluation.operating_point import AlarmRate, set_operating_point
from loomsight.evaluation.regions import TOLERANCE, TRUTH_GAP, RegionCounts, count_regions
from loomsight.fabric.regions import Grouping, label_regions, split_parts
from loomsight.fabric.types import Mask, ScoreMap
from loomsight.learn.cloth import part
from loomsight.learn.segmenter import PIECES

ONE = AlarmRate.per_megapixel(1.0)
SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
PAIRS, APART = 150, 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qualities", default="canvas,oxford,serge,denim", help="of the loom")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    print("| cloth | share | regions | IoU | recall | false alarms | merged |", flush=True)
    print("|---|---|---|---|---|---|---|")
    for quality in asked.qualities.split(","):
        seen, test = woven(f"woven/{quality}")
        cloth = part(seen)
        normality = Normality.fit(cloth.learn, held=cloth.judge)
        judge = np.concatenate([normality.score(image).ravel() for image in cloth.judge])
        maps = [(normality.score(one.image), one.mask) for one in test]
        good = [score for score, mask in maps if mask is None or not mask.any()]
        bad = [(score, mask) for score, mask in maps if mask is not None and mask.any()]
        for share in SHARES:
            grouping = replace(PIECES, faint=float(np.quantile(judge, 1 - share))) if share else PIECES
            cells = " | ".join(f"{one:.2f}" for one in measure(good, bad, grouping))
            print(f"| {quality} | {share:.1%} | {cells} |", flush=True)


def measure(
    good: Sequence[ScoreMap], bad: Sequence[tuple[ScoreMap, Mask]], grouping: Grouping
) -> tuple[float, ...]:
    """Regions of a found defect, IoU, recall, false alarms per Mpx, and the share of pairs that merged."""
    threshold = set_operating_point(good[::2], ONE, grouping).threshold
    on_good = sum((count_regions(one, None, threshold, grouping) for one in good[1::2]), RegionCounts())
    on_bad = sum((count_regions(*one, threshold, grouping) for one in bad), RegionCounts())
    counts, fits = [], []
    for score, mask in bad:
        _, labels = label_regions(score, threshold, grouping)
        for defect in split_parts(mask, TRUTH_GAP):
            met = _labels(labels, _grown(defect, TOLERANCE))
            if met:
                counts.append(len(met))
                fits.append(max(_iou(labels == one, defect) for one in met))
    rng, merged = np.random.default_rng(0), []
    for a, b in (rng.choice(len(bad), 2, replace=False) for _ in range(PAIRS)):
        if (_grown(bad[a][1], APART) & bad[b][1]).any():
            continue
        _, labels = label_regions(np.maximum(bad[a][0], bad[b][0]), threshold, grouping)
        first, second = (_labels(labels, bad[one][1]) for one in (a, b))
        if first and second:
            merged.append(bool(first & second))
    return (
        float(np.mean(counts)),
        float(np.mean(fits)),
        on_bad.recall or 0.0,
        on_good.false_alarms_per_megapixel or 0.0,
        float(np.mean(merged)),
    )


def _labels(labels: NDArray[np.int32], where: Mask) -> set[int]:
    return {int(one) for one in np.unique(labels[where])} - {0}


def _grown(mask: Mask, by: int) -> Mask:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0)


def _iou(a: Mask, b: Mask) -> float:
    """Of the boxes around two masks."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = (cv2.boundingRect(one.astype(np.uint8)) for one in (a, b))
    wide, high = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    both = max(wide, 0) * max(high, 0)
    return both / (aw * ah + bw * bh - both)


if __name__ == "__main__":
    main()
