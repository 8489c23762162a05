"""How fast the loom weaves, in megapixels a second on one core, per structure, grey and colour.

OMP_NUM_THREADS=1 python benchmarks/loom.py
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from loomsight.loom import STRUCTURES, ClothSpec, weave_roll
from loomsight.loom.weaves import construction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=6, help="frames of 512 × 1024 px per measurement")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print("| structure | grey, Mpx/s | colour, Mpx/s | with 30 defects/m², colour |")
    print("|---|---|---|---|")
    for structure in STRUCTURES:
        rates = []
        for grey, defects in ((True, 0.0), (False, 0.0), (False, 30.0)):
            pitch = 8.0 if construction(structure) == "knitted" or structure == "gauze" else 20.0
            spec = ClothSpec(structure=structure, grey=grey, ends_per_cm=pitch, picks_per_cm=pitch)
            metres = arguments.frames * 512 * spec.mm_per_px / 1000
            start = time.perf_counter()
            roll = weave_roll(
                spec, np.random.default_rng(arguments.seed), metres=metres, defects_per_m2=defects
            )
            pixels = sum(cloth.mask.size for cloth in roll)
            rates.append(pixels / (time.perf_counter() - start) / 1e6)
        print(f"| {structure} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
