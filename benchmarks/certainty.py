"""Do the bounds of the false-alarm rate hold, although the cloth that sets the threshold sets more than it?

Good cloth that is held back tells a normality what to expect, measures its tail and sets its bars, and then
the threshold is set on the same cloth. Of a pool of woven good pictures ten are learned from again and again,
the rate of false alarms is counted on the others, and compared with the bounds that
:meth:`OperatingPoint.certain` gives. Two ways:

* **shared**: as ``learn`` does it;
* **apart**: the threshold's quarter sets nothing else; what is expected is read from a third of the cloth
  that is learned from, which the memory and the prediction then lack.

"found" is the share of drawn defects in which a region of the map at that threshold lies.

    python benchmarks/certainty.py --methods prediction+bars --threads 1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import torch

from loomsight.anomaly import methods_of
from loomsight.anomaly.normality import Normality
from loomsight.evaluation.operating_point import AlarmRate, joined_through_faint, set_operating_point
from loomsight.evaluation.regions import count_regions
from loomsight.fabric.types import Mask, Picture
from loomsight.learn.cloth import part
from loomsight.learn.normality import fitting
from loomsight.learn.segmenter import PIECES
from loomsight.loom import DRAWN_KINDS, PRESETS, draw_defect, weave

SEEN, POOL, SHAPE = 10, 40, (192, 640)  # pictures learned from, of so many, and their pixels
ALLOWED = 6.0  # alarms that the promise allows in the cloth held back
WAYS = ("shared", "apart")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qualities", default="denim,jersey")
    parser.add_argument("--methods", default="memory+prediction+bars")
    parser.add_argument("--times", type=int, default=6, help="that each quality is learned")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows = []
    for quality in asked.qualities.split(","):
        rng = np.random.default_rng(60)
        pool = [weave(PRESETS[quality], *SHAPE, rng).image for _ in range(POOL)]
        drawn = [draw_defect(image, kind, rng) for image, kind in zip(pool, cycle(DRAWN_KINDS), strict=False)]
        for time in range(asked.times):
            order = np.random.default_rng([61, time]).permutation(POOL)
            seen, new = order[:SEEN], order[SEEN:]
            for way in WAYS:
                cloth = _parted(way, [pool[i] for i in seen])
                row = measure(asked.methods, cloth, [pool[i] for i in new], [drawn[i] for i in new])
                rows.append({"quality": quality, "time": time, "way": way} | row)
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def _parted(
    way: str, seen: Sequence[Picture]
) -> tuple[Sequence[Picture], Sequence[Picture], Sequence[Picture]]:
    """What is learned, what says what is expected, and what sets the threshold."""
    cloth = part(seen)
    if way == "shared":
        return cloth.learn, cloth.judge, cloth.judge
    return cloth.learn[::3] + cloth.learn[1::3], cloth.learn[2::3], cloth.judge


def measure(
    methods: str,
    cloth: tuple[Sequence[Picture], Sequence[Picture], Sequence[Picture]],
    new: Sequence[Picture],
    drawn: Sequence[tuple[Picture, Mask]],
) -> dict[str, float]:
    """The bounds and the rate on new cloth, as shares of the promise, and what is found of drawn defects."""
    names = methods_of(methods)
    learn, held, judge = cloth
    fits = [fitting(name) for name in names if name != "bars"]
    normality = Normality.fit(learn, held=held, methods=fits, bars="bars" in names)
    area = sum(image.shape[0] * image.shape[1] for image in judge) / 1e6
    maps = [normality.score(image) for image in judge]
    rate = AlarmRate.per_megapixel(ALLOWED / area)
    point = set_operating_point(maps, rate, joined_through_faint(PIECES, maps))
    fresh = [normality.score(image) for image in new]
    alarms = sum(count_regions(one, None, point.threshold, point.grouping).false_alarms for one in fresh)
    low, high = point.certain()
    counts = [
        count_regions(normality.score(image), mask, point.threshold, point.grouping) for image, mask in drawn
    ]
    return {
        "low": low / rate.value,
        "high": high / rate.value,
        "true": alarms / (sum(one.size for one in fresh) / 1e6) / rate.value,
        "found": sum(one.found for one in counts) / sum(one.defects for one in counts),
    }


def table(rows: Sequence[dict[str, float | str]]) -> str:
    """Markdown: how often the rate lay below, within and above the bounds."""
    lines = [
        "| cloth | way | learned | below | within | above | rate / promise | found |",
        "|---|" + "---|" * 7,
    ]
    for quality in dict.fromkeys(row["quality"] for row in rows):
        for way in WAYS:
            own = [row for row in rows if (row["quality"], row["way"]) == (quality, way)]
            below = sum(row["true"] < row["low"] for row in own)  # type: ignore[operator]
            above = sum(row["true"] > row["high"] for row in own)  # type: ignore[operator]
            true, found = (float(np.mean([row[what] for row in own])) for what in ("true", "found"))  # type: ignore[arg-type]
            counts = f"{len(own)} times | {below} | {len(own) - below - above} | {above}"
            lines.append(f"| {quality} | {way} | {counts} | {true:.2f} | {found:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
