"""A type of defect that nobody labelled: does the union with normality find what the segmenter does not?

Woven cloth, where every type is labelled exactly. The types that a quality can have are dealt into five parts
at random; the segmenter learns labelled pictures of four parts, and the fifth is the test: pictures of types
that it never saw. Beside it stands what `learn` adds by default, a memory and a prediction of good cloth, and
the union of both with its one threshold. All three thresholds promise one false alarm per Mpx, and are set on
the same 10.5 Mpx of other good cloth; the false alarms are counted on 10.5 Mpx more.

    python benchmarks/unseen_types.py --qualities denim,jersey --recipes none,drawn --threads 1

    python benchmarks/unseen_types.py --qualities aitex_f00,aitex_f01,aitex_f03,aitex_f04 --recipes none

Real cloth: the segmenter learns the fabric's own labelled defects, all types but one, its first ten good
pictures, and the other AITEX fabrics without that type; the type that is left out is the test, and the
thresholds are set on the fabric's other good pictures.

The recipe ``none`` learns labelled pictures alone; ``drawn``, the default of `learn`, also defects that are
drawn into good cloth, less those kinds that are left out. Finished rows are kept and not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loomsight.anomaly.calibration import UnionPoint, calibrate_union
from loomsight.anomaly.normality import Normality
from loomsight.datasets import new_fabric_fold, read_dataset
from loomsight.evaluation.compare import paired_difference
from loomsight.evaluation.operating_point import AlarmRate, OperatingPoint, joined_through_faint
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.images import to_rgb
from loomsight.fabric.regions import Grouping
from loomsight.fabric.types import LabelledPicture, Picture, ScoreMap
from loomsight.learn.cloth import part
from loomsight.learn.segmenter import PIECES, train_segmenter
from loomsight.loom import PRESETS, DefectSpec, weave
from loomsight.loom.faults import kinds_of
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis import recipe as recipes
from loomsight.synthesis.recipe import Material, Recipe
from new_fabric import append, read_rows

ALARMS = AlarmRate.per_megapixel(1.0)
PARTS, STEPS = 5, 400
MAPS = ("segmenter", "normality", "union")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--qualities", default="denim,jersey", help="of the loom, or AITEX fabrics")
    parser.add_argument("--recipes", default="none,drawn")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/unseen_types.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the table, run nothing")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if not asked.report:
        for seed in (int(one) for one in asked.seeds.split(",")):
            for quality in asked.qualities.split(","):
                if quality.startswith("aitex_"):
                    run_real(asked, quality, seed)
                else:
                    run(asked, quality, seed)
    rows = list(read_rows(asked.results))
    print(table(rows), end="\n\n")
    print(json.dumps(rows))


def run(asked: argparse.Namespace, quality: str, seed: int) -> None:
    """All parts of one quality that are not in the results yet."""
    done = {(r["quality"], r["recipe"], r["seed"], r["part"]) for r in read_rows(asked.results)}
    wanted = [
        (recipe, number)
        for recipe in asked.recipes.split(",")
        for number in range(PARTS)
        if (quality, recipe, seed, number) not in done
    ]
    if not wanted:
        return
    spec, rng = PRESETS[quality], np.random.default_rng([30, seed])
    good = [weave(spec, 256, 1024, rng).image for _ in range(10)]
    judge, other = ([weave(spec, 256, 1024, rng).image for _ in range(40)] for _ in range(2))
    pictures = {kind: [defective(quality, kind, rng) for _ in range(4)] for kind in kinds_of(spec)}
    kinds = rng.permutation(sorted(pictures)).tolist()
    cloth = part(good)
    normality = Normality.fit(cloth.learn, held=cloth.judge)
    strange = [[normality.score(image) for image in some] for some in (judge, other)]
    for recipe, number in wanted:
        left_out = set(kinds[number::PARTS])
        known = [one for kind in kinds if kind not in left_out for one in pictures[kind]]
        known += [
            LabelledPicture(image, np.zeros(image.shape[:2], np.bool_), fabric=quality) for image in good
        ]
        engine = TorchEngine(trained(good, known, recipe, left_out, seed))
        on_good = [engine.score(image) for image in judge]
        point, united, together = calibrate_union(on_good, strange[0], ALARMS, PIECES)
        at = _points(point, united, (on_good, strange[0], together))

        def maps(image: Picture, odd: ScoreMap | None = None) -> dict[str, ScoreMap]:
            sure = engine.score(image)  # noqa: B023 — called in this round alone
            odd = normality.score(image) if odd is None else odd
            return {"segmenter": sure, "normality": odd, "union": point.unite(sure, odd)}  # noqa: B023

        counts = {name: RegionCounts() for name in MAPS}
        for image, odd in zip(other, strange[1], strict=True):
            for name, score in maps(image, odd).items():
                counts[name] += count_regions(score, None, *at[name])
        types: dict[str, dict[str, list[int]]] = defaultdict(dict)
        for kind in sorted(left_out):
            own = {name: RegionCounts() for name in MAPS}
            for picture in pictures[kind]:
                for name, score in maps(picture.image).items():
                    own[name] += count_regions(score, picture.mask, *at[name])
            types[kind] = {name: [own[name].found, own[name].defects] for name in MAPS}
        row = {"quality": quality, "recipe": recipe, "seed": seed, "part": number, "types": types}
        row["false_alarms_per_mpx"] = {n: counts[n].false_alarms_per_megapixel for n in MAPS}
        append(asked.results, row)
        print(quality, recipe, seed, number, file=sys.stderr, flush=True)


def run_real(asked: argparse.Namespace, fabric: str, seed: int) -> None:
    """All types of one AITEX fabric that are not in the results yet."""
    done = {(r["quality"], r["recipe"], r["seed"], r["part"]) for r in read_rows(asked.results)}
    if not (asked.data / fabric).is_dir():
        print(f"unseen_types: {asked.data / fabric} is not there: it is left out", file=sys.stderr)
        return
    items = [item for item in read_dataset(asked.data) if item.fabric.startswith("aitex_")]
    fold = new_fabric_fold(items, fabric)
    own, others = ([item.load() for item in some] for some in (fold.test, fold.known))
    good = [item.load().image for item in fold.seen_good]
    judge = [one.image for one in own if one.mask is None or not one.mask.any()]
    kinds = sorted({kind for one in own for kind in one.types})
    cloth = part(good)
    normality = Normality.fit(cloth.learn, held=cloth.judge)
    strange = [normality.score(image) for image in judge]
    for recipe in asked.recipes.split(","):
        for kind in (one for one in kinds if (fabric, recipe, seed, one) not in done):
            known = [one for one in (*own, *others) if one.mask is not None and kind not in one.types]
            known = [one for one in known if not (one.fabric == fabric and not one.mask.any())]  # type: ignore[union-attr]
            known += [LabelledPicture(x, np.zeros(x.shape[:2], np.bool_), fabric=fabric) for x in good]
            engine = TorchEngine(trained(good, known, recipe, {kind}, seed))
            maps = [engine.score(image) for image in judge]
            point, united, both = calibrate_union(maps, strange, ALARMS, PIECES)
            at = _points(point, united, (maps, strange, both))
            found = {name: RegionCounts() for name in MAPS}
            for picture in (one for one in own if set(one.types) == {kind}):
                sure, odd = engine.score(picture.image), normality.score(picture.image)
                for name, score in zip(MAPS, (sure, odd, point.unite(sure, odd)), strict=True):
                    found[name] += count_regions(score, picture.mask, *at[name])
            alarms = {
                name: sum(count_regions(one, None, *at[name]).false_alarms for one in some)
                / (sum(one.size for one in some) / 1e6)
                for name, some in zip(MAPS, (maps, strange, both), strict=True)
            }
            row = {"quality": fabric, "recipe": recipe, "seed": seed, "part": kind}
            row["types"] = {kind: {name: [found[name].found, found[name].defects] for name in MAPS}}
            if found["union"].defects:
                append(asked.results, row | {"false_alarms_per_mpx": alarms})
            print(fabric, recipe, seed, kind, file=sys.stderr, flush=True)


def _points(
    point: UnionPoint, united: OperatingPoint, good: Sequence[Sequence[ScoreMap]]
) -> dict[str, tuple[float, Grouping]]:
    """The threshold of each map of :data:`MAPS`, and what is one region of it."""
    thresholds = point.segmenter, point.strangeness, united.threshold
    return {
        name: (threshold, joined_through_faint(PIECES, maps))
        for name, threshold, maps in zip(MAPS, thresholds, good, strict=True)
    }


def defective(quality: str, kind: Any, rng: np.random.Generator) -> LabelledPicture:
    """A picture with one defect of this type that can be seen."""
    spec = PRESETS[quality]
    while True:
        defect = DefectSpec.random(rng, spec, rows=(40, 216), width=512, kind=kind)
        cloth = weave(spec, 256, 512, rng, [defect])
        if cloth.mask.any():
            return LabelledPicture(cloth.image, cloth.mask, types=(kind,), fabric=quality)


def trained(
    good: list[Picture], known: list[LabelledPicture], recipe: str, left_out: set[str], seed: int
) -> Any:
    """A segmenter that never saw the left-out types."""
    drawable = recipes.DRAWN_KINDS
    recipes.DRAWN_KINDS = tuple(kind for kind in drawable if kind not in left_out)  # type: ignore[misc]
    try:
        network, _ = train_segmenter(
            Material([to_rgb(image) for image in part(good).learn], known),
            Recipe(arms=(recipe,)),  # type: ignore[arg-type]
            steps=STEPS,
            seed=seed,
        )
    finally:
        recipes.DRAWN_KINDS = drawable  # type: ignore[misc]
    return network


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: recall of the types left out, and false alarms per Mpx, for each map; and the gain."""
    lines = [
        "| cloth | recipe | types | segmenter | normality | union | gain (95 %) | false alarms per Mpx |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = sorted({(row["quality"], row["recipe"]) for row in rows})
    groups += [("all AITEX", recipe) for recipe in sorted({r for q, r in groups if q.startswith("aitex_")})]
    for quality, recipe in groups:
        cloth = "aitex_" if quality == "all AITEX" else quality
        own = [row for row in rows if row["quality"].startswith(cloth) and row["recipe"] == recipe]
        recall = {
            name: np.array([kind[name][0] / kind[name][1] for row in own for kind in row["types"].values()])
            for name in MAPS
        }
        gain = paired_difference(
            recall["union"],
            recall["segmenter"],
            np.random.default_rng(0),
            groups=[(row["quality"], kind) for row in own for kind in row["types"]],
        )
        alarms = [np.mean([row["false_alarms_per_mpx"][name] for row in own]) for name in MAPS]
        cells = [f"{recall[name].mean():.2f}" for name in MAPS]
        lines.append(
            f"| {quality} | {recipe} | {len(recall['union'])} | " + " | ".join(cells) + " | "
            f"{gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}) | "
            + " / ".join(f"{value:.2f}" for value in alarms) + " |"
        )  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
