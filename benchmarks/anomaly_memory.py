"""How much memory does remembering good cloth take? The same for 20 pictures and for 20,000, small or large.

    python benchmarks/anomaly_memory.py --pictures 20,20000 --side 60 --budgets 128

Each row is a process of its own: it remembers so many pictures of woven cloth, cut, repeated and lit at
random as they are asked for, and tells by how much its peak of resident memory grew, beyond the libraries,
the network and what a look at a picture of 60 × 60 pixels needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from loomsight.anomaly.memory import LEAST_MB, Memory, MemorySettings
from loomsight.fabric.types import Picture
from loomsight.loom import PRESETS, weave

SMALL = 60  # pixels a side
WOVEN = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", default="20,2000,20000")
    parser.add_argument("--side", type=int, default=SMALL, help="pixels of a square picture")
    parser.add_argument("--budgets", default="128", help="MB")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(growth(int(asked.one[0]), asked.side, float(asked.one[1]))))
        return
    rows = []
    print("| pictures | side | budget MB | peak grew MB | / budget | seconds |\n|---|---|---|---|---|---|")
    for count in asked.pictures.split(","):
        for budget in asked.budgets.split(","):
            command = [sys.executable, __file__, "--side", str(asked.side), "--one", count, budget]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
            rows.append(row)
            cells = [f"{row['grew_mb']:.1f}", f"{row['grew_mb'] / row['budget_mb']:.2f}"]
            said = " | ".join([count, str(asked.side), budget, *cells, f"{row['seconds']:.0f}"])
            print(f"| {said} |", flush=True)
    print(json.dumps(rows))


def growth(pictures: int, side: int, budget: float) -> dict[str, float]:
    """By how much the peak of resident memory grows while so many pictures are remembered."""
    torch.set_num_threads(1)
    cloth, small = _Cloth(pictures, side), _Cloth(4, SMALL)
    Memory.fit([small[i] for i in range(4)], MemorySettings(budget_mb=LEAST_MB))  # libraries and the network
    held = cloth[0]  # the picture that is looked at is not of the memory
    del held
    before, began = _peak(), time.monotonic()
    Memory.fit(cloth, MemorySettings(budget_mb=budget))
    return {
        "pictures": pictures,
        "side": side,
        "budget_mb": budget,
        "grew_mb": _peak() - before,
        "seconds": time.monotonic() - began,
    }


class _Cloth(Sequence[Picture]):
    def __init__(self, count: int, side: int) -> None:
        rng, names = np.random.default_rng(0), ("denim", "oxford", "jersey")
        self._woven = [weave(PRESETS[name], WOVEN, WOVEN, rng).image for name in names]
        self._count, self._side = count, side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: object) -> Picture:  # type: ignore[override]
        rng = np.random.default_rng(int(index))  # type: ignore[call-overload]
        cloth = self._woven[int(rng.integers(len(self._woven)))]
        top, left = rng.integers(0, WOVEN - SMALL, 2)
        rows, columns = ((start + np.arange(self._side)) % WOVEN for start in (top, left))
        lit = (cloth * rng.uniform(0.8, 1.2)).clip(0, 255).astype(np.uint8)
        return np.asarray(lit[np.ix_(rows, columns)])  # no other copy of a large picture


def _peak() -> float:
    """MB, of this process since it began; what started it has no part in it, as it has in getrusage."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return peak * 1024 / 1e6


if __name__ == "__main__":
    main()
