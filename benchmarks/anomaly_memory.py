"""How much memory does remembering good cloth take? The same for 20 pictures and for 20,000.

    python benchmarks/anomaly_memory.py --pictures 20,2000,20000 --budgets 4,16

Each row is a process of its own: it remembers so many pictures of woven cloth, cut and lit at random as they
are asked for, and tells by how much its peak of resident memory grew. What the network itself needs is that
of a budget of 0.1 MB, in the first rows; "own" is the growth less that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from loomsight.anomaly.memory import Memory, MemorySettings
from loomsight.fabric.types import Picture
from loomsight.loom import PRESETS, weave

SIDE = 60  # pixels: small pictures, so that 20,000 end in minutes
TINY = 0.1  # MB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", default="20,2000,20000")
    parser.add_argument("--budgets", default="4,16", help="MB")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(growth(int(asked.one[0]), float(asked.one[1]))))
        return
    rows = []
    print(
        "| pictures | budget MB | peak grew MB | own MB | own / budget | seconds |\n|---|---|---|---|---|---|"
    )
    for count in asked.pictures.split(","):
        base = 0.0
        for budget in (TINY, *(float(one) for one in asked.budgets.split(","))):
            command = [sys.executable, __file__, "--one", count, str(budget)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
            base = row["grew_mb"] - budget if budget == TINY else base
            row["own_mb"] = row["grew_mb"] - base
            rows.append(row)
            cells = [f"{row['grew_mb']:.1f}", f"{row['own_mb']:.1f}", f"{row['own_mb'] / budget:.2f}"]
            print(f"| {count} | {budget:g} | " + " | ".join(cells) + f" | {row['seconds']:.0f} |", flush=True)
    print(json.dumps(rows))


def growth(pictures: int, budget: float) -> dict[str, float]:
    """By how much the peak of resident memory grows while so many pictures are remembered."""
    torch.set_num_threads(1)
    cloth = _Cloth(pictures)
    Memory.fit([cloth[i] for i in range(4)], MemorySettings(budget_mb=TINY))  # libraries and the network
    before, began = _peak(), time.monotonic()
    Memory.fit(cloth, MemorySettings(budget_mb=budget))
    return {
        "pictures": pictures,
        "budget_mb": budget,
        "grew_mb": _peak() - before,
        "seconds": time.monotonic() - began,
    }


class _Cloth(Sequence[Picture]):
    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self._woven = [weave(PRESETS[name], 512, 512, rng).image for name in ("denim", "oxford", "jersey")]
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: object) -> Picture:  # type: ignore[override]
        rng = np.random.default_rng(int(index))  # type: ignore[call-overload]
        cloth = self._woven[int(rng.integers(len(self._woven)))]
        top, left = rng.integers(0, 512 - SIDE, 2)
        part = cloth[top : top + SIDE, left : left + SIDE] * rng.uniform(0.8, 1.2)
        return np.asarray(part.clip(0, 255), np.uint8)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.024**2


if __name__ == "__main__":
    main()
