"""Does memory grow while a line inspects? Twenty thousand frames, one after another.

    python benchmarks/memory.py --profile denim --frames 20000

Frames are cut from woven denim at random and lit at random, so that no two are alike. They go through the
whole inspection: gate, networks, regions, report. Resident memory is read every 500 frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from loomsight.card import Runtime
from loomsight.demo import DENIM
from loomsight.inspection.line import inspect
from loomsight.inspection.sources import Frame, Source, Unread
from loomsight.loom import weave
from loomsight.profile import Profile

EVERY = 500
SIDE = 384  # pixels


class Endless(Source):
    """So many frames, made as they are asked for; it reads the memory of this process on the way."""

    title, root = "woven denim", Path()

    def __init__(self, frames: int) -> None:
        self.total = frames
        self.read: list[tuple[int, float]] = []
        rng = np.random.default_rng(3)
        self._cloth = [
            weave(DENIM, 768, 1024, rng, defects="random" if k < 2 else ()).image for k in range(8)
        ]

    def __iter__(self) -> Iterator[Frame | Unread]:
        rng = np.random.default_rng(4)
        for index in range(self.total or 0):
            if index % EVERY == 0:
                self.read.append((index, psutil.Process().memory_info().rss / 1e6))
            # one frame in forty may have a defect
            cloth = self._cloth[int(rng.integers(2)) if rng.random() < 0.025 else int(rng.integers(2, 8))]
            y, x = int(rng.integers(768 - SIDE)), int(rng.integers(1024 - SIDE))
            gain = np.float32(rng.uniform(0.97, 1.03))
            image = (cloth[y : y + SIDE, x : x + SIDE] * gain).clip(0, 255).astype(np.uint8)
            yield Frame(index, f"{index:06d}", f"{index:06d}", image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--engine", default=None, help="the profile's fastest if not given")
    asked = parser.parse_args()
    source = Endless(asked.frames)
    runtime: Runtime | None = asked.engine
    with tempfile.TemporaryDirectory() as work:
        result = inspect(source, Profile.open(asked.profile), Path(work) / "out", runtime=runtime)
    source.read.append((asked.frames, psutil.Process().memory_info().rss / 1e6))
    first = next(megabytes for index, megabytes in source.read if index >= EVERY)
    print("| frames | resident MB |\n|---|---|")
    for index, megabytes in source.read[:: max(1, len(source.read) // 10)]:
        print(f"| {index:,} | {megabytes:.0f} |")
    highest = max(megabytes for index, megabytes in source.read if index >= EVERY)
    print(f"{result.regions} regions, {result.megapixels / result.seconds:.1f} Mpx/s, {result.engine}")
    print(json.dumps({"frames": asked.frames, "after_500_mb": first, "grew_mb": highest - first}))


if __name__ == "__main__":
    main()
