"""The new-fabric protocol: what does each way of making training samples give on cloth never seen?

For each fold one fabric is new and all others are known. The learner sees the new fabric's first ten good
pictures and nothing else of it; everything else of it is the test. All arms have the same known pictures,
steps, batch and share of synthetic tiles. The operating point is set on the ten good pictures alone.

    python benchmarks/new_fabric.py --data ../shared/data --arms none,paste,drawn,paste+drawn --seeds 0,1,2

    python benchmarks/new_fabric.py --data ../shared/data --arms stage1+2,diffusion,drawn+stage1+2 --seeds 0

Arms with a generator need a base for each fold, trained on the fold's known fabrics alone. It is trained with
``--base-minutes`` when it is not yet in ``--bases``. Behind an arm's name may stand a variant: ``@nogate``
takes samples without the quality gate, ``@shuffled`` gives the generator the texture code of another fabric,
``@base`` starts from the base's segmenter; ``@loom`` knows woven fabrics and no real one, ``@mixed`` knows
both, ``@near`` the woven ones that are most like the new fabric; ``@start`` starts from the segmenter of the
woven base that comes with the program; ``@flat`` takes the lines of the camera out of the new fabric's
pictures, and ``@stretch`` draws tiles along warp and weft, as ``learn`` does both, so
``drawn@loom+flat+stretch`` is "loom only"; ``@without fuzzy ball`` leaves this type of defect out of the
known pictures, and tests it alone. The arm ``oracle`` sees half of the new fabric's real defects, and is
tested on the other half.

Finished rows are kept in the results file (JSON lines) and not computed again, so the work can be done in
pieces; ``--steps 400,800,1600`` measures one training on its way. ``--report`` only prints the table.
The last line printed is the list of rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from loomsight.base import Base, shipped
from loomsight.datasets import Fold, new_fabric_fold, read_dataset
from loomsight.detection.deeplab import Segmenter
from loomsight.evaluation.compare import paired_difference
from loomsight.evaluation.operating_point import AlarmRate, set_operating_point
from loomsight.evaluation.pixels import PixelScores
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.flat_field import flat_field
from loomsight.fabric.types import LabelledPicture, Picture
from loomsight.learn.base import BaseSettings, train_base_on, weave_fabrics
from loomsight.learn.cloth import part
from loomsight.learn.samples import make_samples
from loomsight.learn.segmenter import PIECES, SegmenterSettings, train_segmenter
from loomsight.progress import LineProgress
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis.recipe import GENERATED, Material, Recipe, arms_of
from loomsight.synthesis.samples import Sample
from loomsight.texture.gram import TextureEncoder

FOLDS = "aitex_f00,aitex_f01,aitex_f03,aitex_f04"
ARMS = "none,augmix,paste,poisson,perlin,drawn,paste+drawn,paste+poisson+perlin+drawn"
COLUMNS = ("ap_picture", "ap", "f1", "auroc", "aupro", "recall", "false_alarms_per_mpx", "minutes")
ALARMS = AlarmRate.per_megapixel(1.0)
BANK = 400  # samples of a generator


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--folds", default=FOLDS, help="fabrics to take as new")
    parser.add_argument("--arms", default=ARMS, help="recipes, separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", default="400", help="where to measure; the training ends at the last")
    parser.add_argument("--good", type=int, default=10, help="good pictures of the new fabric that are seen")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/new_fabric.jsonl"))
    parser.add_argument("--bases", type=Path, default=Path("benchmarks/bases"), help="a base for each fold")
    parser.add_argument("--base-minutes", type=float, default=15.0, help="to train a base that is missing")
    parser.add_argument("--base-diffusion", action="store_true", help="train diffusion in it too")
    parser.add_argument("--woven", type=int, default=48, help="fabrics to weave for @loom and @mixed")
    parser.add_argument("--start", type=Path, default=shipped(), help="the base that @start starts from")
    parser.add_argument("--against", default="none,drawn", help="arms that the others are compared with")
    parser.add_argument(
        "--report", action="store_true", help="print the table of the results file, run nothing"
    )
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    done = list(read_rows(asked.results))
    if not asked.report:
        if not asked.data.is_dir():
            sys.exit(f"new_fabric: {asked.data} is not there: give a tree of fabrics with --data")
        run_missing(asked, done)
        done = list(read_rows(asked.results))
    compared = [against(done, base) for base in asked.against.split(",")]
    print(table(done), *compared, sep="\n\n", end="\n\n")
    print(json.dumps(done))


def run_missing(asked: argparse.Namespace, done: list[dict[str, Any]]) -> None:
    """Compute what is asked for and not in the results file yet; append each row when it is known."""
    have = {(row["fold"], row["arm"], row["seed"], row["steps"]) for row in done}
    steps = sorted(int(step) for step in asked.steps.split(","))
    items = read_dataset(asked.data)
    cache: dict[Path, LabelledPicture] = {}
    for fabric in asked.folds.split(","):
        fold = new_fabric_fold(items, fabric, good_seen=asked.good)
        for seed in (int(seed) for seed in asked.seeds.split(",")):
            for arm in asked.arms.split(","):
                if all((fabric, arm, seed, step) in have for step in steps):
                    continue
                for row in measure(fold, arm, seed, steps, cache, asked=asked):
                    if (row["fold"], row["arm"], row["seed"], row["steps"]) not in have:
                        append(asked.results, row)
                        shown = "  ".join(f"{name} {row[name]:.3f}" for name in COLUMNS)
                        print(f"{fabric} {arm} seed {seed} steps {row['steps']}: {shown}", flush=True)


def measure(
    fold: Fold,
    arm: str,
    seed: int,
    steps: list[int],
    cache: dict[Path, LabelledPicture],
    *,
    asked: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Train one arm on one fold with one seed, and score the test at each number of steps."""
    for item in (*fold.known, *fold.seen_good, *fold.test):
        if item.path not in cache:
            cache[item.path] = item.load()
    seen = [cache[item.path].image for item in fold.seen_good]
    known, test = [cache[item.path] for item in fold.known], [cache[item.path] for item in fold.test]
    name, _, variant = arm.partition("@")
    words = set(variant.split("+"))
    seen, test = without_lines(seen, test, wanted="flat" in words)
    good = part(seen)
    if name == "oracle":
        defective = [picture for picture in test if picture.mask is not None and picture.mask.any()]
        shown = {id(picture) for picture in defective[::2]}
        known += [picture for picture in test if id(picture) in shown]
        test = [picture for picture in test if id(picture) not in shown]
    left_out = next((word.removeprefix("without ") for word in words if word.startswith("without ")), "")
    if left_out:
        known = [picture for picture in known if left_out not in picture.types]
        test = [p for p in test if left_out in p.types or (p.mask is not None and not p.mask.any())]
        if not any(left_out in picture.types for picture in test):
            return []
    if words & {"loom", "mixed", "near"}:
        woven = woven_for(asked, seed, seen if "near" in words else None)
        known = woven if "loom" in words else known + woven
    recipe = Recipe(
        arms=("drawn",) if name == "oracle" else arms_of(name),
        stretch=Recipe().stretch if "stretch" in words else 0.0,
    )
    base = None
    if set(recipe.arms) & set(GENERATED) or "base" in words:
        base = fold_base(asked, fold, known, f"without {left_out}" if left_out else "")
    start = base if "base" in words else Base.open(asked.start) if "start" in words else None
    made: dict[str, list[Sample]] = {}
    if base is not None:
        code = code_of(base, fold, [cache[item.path] for item in fold.seen_good], known, words)
        for generated in set(recipe.arms) & set(GENERATED):
            bank = make_samples(
                base, generated, good.learn, code, BANK, known=known, gate="nogate" not in words, seed=seed
            )
            print(
                f"{fold.fabric} {arm}: {len(bank.samples)} samples, rejected {dict(bank.reasons)}", flush=True
            )
            made[generated] = bank.samples
    material = Material(good=good.learn, known=known, made=made)
    rows: list[dict[str, Any]] = []
    started, testing = time.monotonic(), 0.0
    every, at = math.gcd(*steps), 0

    def score(networks: Mapping[str, nn.Module]) -> float:
        nonlocal testing, at
        at += every
        if at not in steps:
            return float(at)
        begun = time.monotonic()
        figures = figures_of(TorchEngine(cast(Segmenter, networks["segmenter"])), good.judge, test)
        minutes = (begun - started - testing) / 60
        testing += time.monotonic() - begun
        rows.append(
            {"fold": fold.fabric, "arm": arm, "seed": seed, "steps": at, **figures, "minutes": minutes}
        )
        return float(at)  # the later the better: nothing is chosen by the test

    train_segmenter(
        material,
        recipe,
        SegmenterSettings(),
        steps=steps[-1],
        seed=seed,
        start=(start.weights("segmenter"), ()) if start is not None else None,
        validate=score,
        validate_every=every,
    )
    return rows


def woven_for(asked: argparse.Namespace, seed: int, like: list[Picture] | None) -> list[LabelledPicture]:
    """Woven fabrics; with ``like``, of three times as many those whose texture is nearest to it."""
    progress = LineProgress(sys.stderr)
    if like is None:
        return weave_fabrics(asked.woven, seed, progress)
    woven, encoder = weave_fabrics(3 * asked.woven, seed, progress), TextureEncoder("auto")
    own = encoder.codes(part(like[:3]).learn).mean(axis=0)
    fabrics: dict[str, list[LabelledPicture]] = {}
    for picture in woven:
        fabrics.setdefault(picture.fabric, []).append(picture)
    away = {
        name: float(np.linalg.norm(encoder.code(pictures[0].image) - own))
        for name, pictures in progress.track(fabrics.items(), "texture codes", len(fabrics))
    }
    near = sorted(away, key=away.__getitem__)[: asked.woven]
    return [picture for name in near for picture in fabrics[name]]


def without_lines(
    seen: list[Picture], test: list[LabelledPicture], *, wanted: bool
) -> tuple[list[Picture], list[LabelledPicture]]:
    """The new fabric's pictures without the lines of the camera, as the good ones that are seen show them."""
    camera = flat_field(seen) if wanted else None
    if camera is None:
        return seen, test
    return (
        [camera.correct(image) for image in seen],
        [replace(picture, image=camera.correct(picture.image)) for picture in test],
    )


def fold_base(asked: argparse.Namespace, fold: Fold, known: list[LabelledPicture], variant: str = "") -> Base:
    """The base of a fold, trained on its known fabrics if it is not there yet."""
    folder = asked.bases / f"{fold.fabric} {variant}".strip().replace(" ", "-")
    if not folder.is_dir():
        settings = BaseSettings(minutes=asked.base_minutes, diffusion=asked.base_diffusion, encoder="vgg16")
        train_base_on(
            known,
            out=folder,
            told=f"all but {fold.fabric}",
            settings=settings,
            progress=LineProgress(sys.stderr, 60),
        )
    return Base.open(folder)


def code_of(
    base: Base, fold: Fold, good: list[LabelledPicture], known: list[LabelledPicture], words: set[str]
) -> Any:
    """The texture code that the generator is told: the new fabric's, or that of a known one."""
    encoder = TextureEncoder(base.card.encoder)
    if "shuffled" in words:
        others = sorted({picture.fabric for picture in known} - {fold.fabric})
        other = others[np.random.default_rng(len(fold.fabric)).integers(len(others))]
        good = [picture for picture in known if picture.fabric == other]
    return encoder.codes(picture.image for picture in good[:3]).mean(axis=0)


def figures_of(
    engine: TorchEngine, good: Iterable[Picture], test: Iterable[LabelledPicture]
) -> dict[str, Any]:
    """All figures of one trained network."""
    point = set_operating_point((engine.score(image) for image in good), ALARMS, PIECES)
    pixels, regions = PixelScores(), RegionCounts()
    for picture in test:
        scores = engine.score(picture.image)
        pixels.add(scores, picture.mask)
        regions += count_regions(scores, picture.mask, point.threshold, PIECES)
    found = pixels.figures()
    return {
        "ap_picture": found.ap_picture,
        "ap": found.ap,
        "f1": found.f1,
        "auroc": found.auroc,
        "aupro": found.aupro,
        "recall": regions.recall,
        "false_alarms_per_mpx": regions.false_alarms_per_megapixel,
        "threshold": point.threshold,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each arm and number of steps the mean over folds, and its deviation over seeds.

    A seed counts when all folds of the file have it; the second table has every row there is.
    """
    lines = ["| arm | steps | seeds | " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "---|" * len(COLUMNS)]
    folds = {row["fold"] for row in rows}
    for arm, steps in sorted({(row["arm"], row["steps"]) for row in rows}, key=lambda key: (key[1], key[0])):
        by_seed: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if (row["arm"], row["steps"]) == (arm, steps):
                by_seed.setdefault(row["seed"], []).append(row)
        whole = [own for own in by_seed.values() if {row["fold"] for row in own} == folds]
        cells = []
        for column in COLUMNS if whole else ():
            means = [np.mean([row[column] for row in own]) for own in whole]
            spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.3f}{spread}")
        if whole:
            lines.append(f"| {arm} | {steps} | {len(whole)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| fold | arm | steps | seeds | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for fold, steps, arm in sorted({(row["fold"], row["steps"], row["arm"]) for row in rows}):
        own = [row for row in rows if (row["fold"], row["steps"], row["arm"]) == (fold, steps, arm)]
        cells = [f"{np.mean([row[column] for row in own]):.3f}" for column in COLUMNS]
        lines.append(f"| {fold} | {arm} | {steps} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against(rows: list[dict[str, Any]], base: str) -> str:
    """Markdown: each arm's per-picture AP and recall less those of ``base``, paired by fold and seed.

    Arms that are tested on other pictures, the oracle and those without a type, are left out. 95 % is over
    the folds.
    """
    lines = [
        f"| arm less {base}, same steps | folds | pairs | ap_picture (95 %) | recall (95 %) |",
        "|---|---|---|---|---|",
    ]
    key = ("fold", "seed", "steps")
    bases = {tuple(row[name] for name in key): row for row in rows if row["arm"] == base}
    for arm in sorted({row["arm"] for row in rows} - {base}):
        if arm == "oracle" or "without " in arm:
            continue
        pairs = [
            (row, bases[k])
            for row in rows
            if row["arm"] == arm and (k := tuple(row[n] for n in key)) in bases
        ]
        if len(pairs) < 2:
            continue
        cells, folds = [], [row["fold"] for row, _ in pairs]
        for column in ("ap_picture", "recall"):
            first, second = (np.array([pair[i][column] for pair in pairs]) for i in (0, 1))
            gain = paired_difference(first, second, np.random.default_rng(0), groups=folds)
            cells.append(f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
        lines.append(f"| {arm} | {len(set(folds))} | {len(pairs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a results file; a line that a kill cut short is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                yield json.loads(line)


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a results file, whole or not at all; two runs may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, ("\n" if _cut_short(path) else "").encode() + json.dumps(row).encode() + b"\n")
    finally:
        os.close(handle)


def _cut_short(path: Path) -> bool:
    data = path.read_bytes()
    return bool(data) and not data.endswith(b"\n")


if __name__ == "__main__":
    main()
