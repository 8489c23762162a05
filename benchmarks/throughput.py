"""How many megapixels a second, in every engine, and behind the gate? Ratios in one run.

    python benchmarks/throughput.py --profile denim            the table
    python benchmarks/throughput.py --profile denim --grid     INT8 by tile, batch and threads
    python benchmarks/throughput.py --profile denim --files    from PNG and JPEG files on disk
    python benchmarks/throughput.py --json                                  learns woven denim first (8 min)

The roll is woven: 24 frames of 1024 × 2048 pixels, of which one tile in a hundred is defective at most.
"eager" is torch, as a network was learned, with the tile that is fastest on this machine; all engines see the
same frames, in memory, and each goes once in every round. The last line of ``--json`` is one JSON object;
what the profile does not have is null there, and ``left_out`` says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from loomsight.card import RUNTIMES
from loomsight.demo import DENIM
from loomsight.errors import UsageError
from loomsight.fabric.images import find_images, read_images, write_png
from loomsight.fabric.look import Look
from loomsight.fabric.types import Picture
from loomsight.inspection.line import inspect
from loomsight.inspection.sources import Pictures, Prefetched
from loomsight.learn.job import LearnSettings, learn
from loomsight.learn.ship import export_profile
from loomsight.loom import weave_roll
from loomsight.profile import Profile
from loomsight.runtime.gate import AUDIT
from loomsight.runtime.throughput import by_turns

FRAME, FRAMES = (1024, 2048), 24
NAMES = {"torch": "eager", "onnxruntime": "ort_fp32", "openvino": "ov_fp32", "openvino-fp16": "ov_fp16"}
NAMES |= {"openvino-int8": "ov_int8"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, help="exported, with a gate; of woven denim")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--grid", action="store_true", help="INT8 by tile, batch and threads")
    parser.add_argument("--files", action="store_true", help="from files on disk")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        profile = Profile.open(asked.profile) if asked.profile else _learned(Path(work))
        roll, share = _roll()
        print(f"{len(roll)} frames of {FRAME[0]} × {FRAME[1]}; {share:.2%} of the tiles are defective")
        if asked.grid:
            _grid(profile, roll)
        if asked.files:
            _files(profile, roll, Path(work))
        if not (asked.grid or asked.files):
            table = _table(profile, roll, asked.rounds)
            if asked.json:
                print(json.dumps(table))


def _table(profile: Profile, roll: list[Picture], rounds: int) -> dict[str, Any]:
    """Every engine, ungated and gated, from frames in memory to regions."""
    point = profile.card.operating_point
    megapixels = sum(image.shape[0] * image.shape[1] for image in roll) / 1e6
    found: dict[str, int] = {}

    def of(name: str, engine: Any, pictures: list[Picture]) -> Callable[[], float]:
        def work() -> float:
            looks = (
                engine.looks(pictures)
                if hasattr(engine, "looks")
                else map(Look.whole, engine.scores(pictures))
            )
            found[name] = sum(len(look.regions(point.threshold, point.grouping)) for look in looks)
            return megapixels * len(pictures) / len(roll)

        return work

    contenders, left_out = {}, {}
    for name in RUNTIMES:
        try:
            engine = profile.engine(name, largest="measured")
        except UsageError as error:
            print(f"left out: {error}", file=sys.stderr)
            left_out[NAMES[name]] = str(error)
            continue
        contenders[NAMES[name]] = of(NAMES[name], engine, roll[:6] if name == "torch" else roll)
    fastest = profile.fastest
    gate = profile.gated(profile.engine(fastest))
    if gate is not None:
        contenders["gated"] = of("gated", gate, roll)
    else:
        left_out["gated"] = "the profile has no gate"
    speeds = by_turns(contenders, rounds=rounds)
    print("| engine | best Mpx/s | median | × eager (median) | regions |\n|---|---|---|---|---|")
    for name, speed in speeds.items():
        ratio = speed.median / speeds["eager"].median
        print(f"| {name} | {speed.best:.1f} | {speed.median:.1f} | {ratio:.1f} | {found[name]} |")
    if gate is not None:
        print(
            f"gated / {NAMES[fastest]}: {speeds['gated'].best / speeds[NAMES[fastest]].best:.1f} best, "
            f"{speeds['gated'].median / speeds[NAMES[fastest]].median:.1f} median; "
            f"{gate.count.rate:.2%} of the cloth was looked at"
        )
    measured = {name: asdict(speed) for name, speed in speeds.items()}
    return {**measured, **dict.fromkeys(left_out), "left_out": left_out}


def _grid(profile: Profile, roll: list[Picture]) -> None:
    """The INT8 segmenter by tile, by tiles in one request, and by threads: the network alone."""
    image = np.ascontiguousarray(roll[0])
    works: dict[str, Callable[[], float]] = {}
    for threads in (1, 2):
        for tile in ((160, 160), (256, 512), (512, 512), (512, 1024), (1024, 1024)):
            for batch in (1, 4) if tile[0] < 512 else (1,):
                compiled = profile.compiled("segmenter", "openvino-int8", threads=threads)
                rgb = np.stack([image[: tile[0], : tile[1]]] * batch)

                def work(compiled: Any = compiled, rgb: Any = rgb) -> float:
                    times = max(4, int(6e6 / rgb[..., 0].size))
                    flying = [compiled.start(rgb) for _ in range(times)]
                    for pending in flying:
                        pending.wait()
                    return times * rgb[..., 0].size / 1e6

                works[f"{tile[0]} × {tile[1]} | {batch} | {threads}"] = work
    print("| tile | batch | threads | best Mpx/s | median |\n|---|---|---|---|---|")
    for name, speed in by_turns(works, rounds=5).items():
        print(f"| {name} | {speed.best:.1f} | {speed.median:.1f} |")


def _files(profile: Profile, roll: list[Picture], work: Path) -> None:
    """From files: decoding alone, the gated engine alone, and both as a line runs them.

    The frames come again and again until they are :data:`AUDIT`: of so many one is looked at in full.
    """
    engine = profile.gated(profile.engine(profile.fastest))
    if engine is None:
        raise SystemExit("the profile has no gate")
    point = profile.card.operating_point
    cycle = [roll[number % len(roll)] for number in range(AUDIT)]
    megapixels = sum(image.shape[0] * image.shape[1] for image in cycle) / 1e6
    print("| files | decoding alone | gated engine alone | both, as a line | cores busy |")
    print("|---|---|---|---|---|")
    for suffix in ("png", "jpg"):
        folder = work / suffix
        folder.mkdir()
        for number, image in enumerate(roll):
            if suffix == "png":
                write_png(folder / f"{number:03d}.png", image)
            else:
                cv2.imwrite(
                    str(folder / f"{number:03d}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]
                )
        found = find_images(folder)
        paths = [found[number % len(found)] for number in range(AUDIT)]

        def decoded(paths: list[Path] = paths, folder: Path = folder) -> float:
            with Prefetched(Pictures(paths, folder, "roll")) as frames:
                for _ in frames:
                    pass
            return megapixels

        def alone() -> float:
            for look in engine.looks(cycle):
                look.regions(point.threshold, point.grouping)
            return megapixels

        def both(paths: list[Path] = paths, folder: Path = folder) -> float:
            with Prefetched(Pictures(paths, folder, "roll")) as frames:
                for look in engine.looks(frame.image for frame in frames):  # type: ignore[union-attr]
                    look.regions(point.threshold, point.grouping)
            return megapixels

        speeds = by_turns({"decoding": decoded, "engine": alone, "both": both}, rounds=5)
        psutil.cpu_percent()
        before, began = psutil.Process().cpu_times(), time.perf_counter()
        for _ in range(3):
            both()
        after, took = psutil.Process().cpu_times(), time.perf_counter() - began
        busy = (after.user + after.system - before.user - before.system) / took
        row = " | ".join(f"{speeds[name].median:.0f}" for name in ("decoding", "engine", "both"))
        print(f"| {suffix} | {row} | {busy:.2f} of {psutil.cpu_count()} |", flush=True)
        out = work / f"{suffix}-inspection"
        result = inspect(Pictures(paths, folder, "roll"), profile, out)
        print(f"(loomsight inspect, report and all: {result.megapixels / result.seconds:.0f} Mpx/s)")


def _roll() -> tuple[list[Picture], float]:
    """Frames of denim with few defects, and the share of their tiles of 128 pixels that are defective."""
    rng = np.random.default_rng(77)
    metres = FRAMES * FRAME[0] * DENIM.mm_per_px / 1000
    frames, defective = [], []
    for cloth in weave_roll(
        DENIM, rng, metres=metres, frame_height=FRAME[0], width=FRAME[1], defects_per_m2=1.5
    ):
        frames.append(cloth.image)
        defective.append(cloth.mask.reshape(FRAME[0] // 128, 128, -1, 128).any((1, 3)).mean())
    return frames, float(np.mean(defective))


def _learned(work: Path) -> Profile:
    """Woven denim, learned from 12 good pictures, exported with a gate."""
    rng = np.random.default_rng([0, 1])
    metres = 12 * 512 * DENIM.mm_per_px / 1000
    rolls = weave_roll(DENIM, rng, metres=metres, frame_height=512, width=1024, defects_per_m2=0.0)
    for number, cloth in enumerate(rolls):
        write_png(work / "good" / f"{number:02d}.png", cloth.image)
    settings = LearnSettings(minutes=4, anomaly=(), mm_per_px=DENIM.mm_per_px, false_alarms=50)
    profile = learn(work / "good", name="denim", out=work / "profile", settings=settings)
    good = [image for _, image in read_images(find_images(work / "good"), on_error="fail")]
    return export_profile(profile, good=good)


if __name__ == "__main__":
    main()
