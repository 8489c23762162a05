"""Boxes on a fabric never seen: RT-DETR and DeepLabV3, in tiles or shrunk, with made samples or without.

    python benchmarks/detection.py --data ../shared/data --sets aitex_f00,aitex_f01,aitex_f03,aitex_f04
    python benchmarks/detection.py --data ../shared/data --sets tilda_c1r1,tilda_c1r3
    python benchmarks/detection.py --data ../shared/data --sets aitex_f04 --views held-back --arms drawn

A set is a new fabric. For AITEX it is a fold of ``new_fabric.py``: ten good pictures are seen, all other
fabrics are known. For TILDA the other of its two fabrics is known, and of the new one the cloth beside the
boxes of ten source pictures is seen; whole sources are seen or tested, never parted.

Networks: ``detector``, ``segmenter`` (each region of its map is a box, as far as half of its height), or
``fused``, which trains both. Views: ``tiles`` at native resolution, or ``letterbox``: pictures shrunk until
the longer side is 640 px, as a letterbox of 640 does, and the boxes brought back; everything else is the
same. TILDA's pictures are smaller than that, and are looked at in tiles alone. ``held-back`` is what choices
are made by: no test picture, but the new fabric's good cloth that the training does not see, with and without
defects drawn into it; ``seen``, of TILDA alone, the ten seen sources and their real defects, beside which the
cloth was learned. Arms: ``none`` learns from known fabrics alone, ``drawn`` from defects drawn into the new
fabric too. Figures: COCO's average precision without regard to type, for TILDA also by type (``typed``:
AP50, the mean of its four types), and the share of defects touched at 1, 4 and 10 false alarms per megapixel.

Finished rows are kept in the results file and not computed again. The last line printed is the rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from loomsight.base import Base, shipped
from loomsight.datasets import new_fabric_fold, read_dataset
from loomsight.detection.fusion import FusionPoint, fuse
from loomsight.evaluation.boxes import MOST, BoxScores, regions_at_half_maximum
from loomsight.evaluation.compare import paired_difference
from loomsight.evaluation.operating_point import AlarmRate, set_operating_point
from loomsight.fabric.flat_field import flat_field
from loomsight.fabric.instances import true_boxes
from loomsight.fabric.types import LabelledPicture, Picture, Region
from loomsight.learn.cloth import part
from loomsight.learn.detector import DetectorSettings, base_detector, calibrate_fusion, train_detector
from loomsight.learn.segmenter import PIECES, train_segmenter
from loomsight.progress import LineProgress
from loomsight.runtime.engine import TorchDetector, TorchEngine
from loomsight.synthesis.recipe import Material, Recipe, TileMaker, types_in

SETS = "aitex_f00,aitex_f01,aitex_f03,aitex_f04,tilda_c1r1,tilda_c1r3"
COLUMNS = ("ap", "ap50", "ap_small", "typed", "recall_1", "recall_4", "recall_10", "minutes")
LONGEST = 640  # pixels of a letterbox
HELD_BACK = 30  # batches of four pictures with drawn defects
SEEN = 10  # good pictures, or source pictures, of the new fabric
KEY = ("set", "network", "view", "arm", "seed", "steps")
ALARMS = AlarmRate.per_megapixel(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--networks", default="detector,segmenter,fused")
    parser.add_argument("--views", default="tiles,letterbox")
    parser.add_argument("--arms", default="none,drawn")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300, help="of each network")
    parser.add_argument("--base", type=Path, default=shipped(), help="whose detector training starts from")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/detection.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the table, run nothing")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if not asked.report:
        if not asked.data.is_dir():
            sys.exit(f"detection: {asked.data} is not there: give a tree of fabrics with --data")
        run_missing(asked)
    rows = read_rows(asked.results)
    print(table(rows), differences(rows), sep="\n\n", end="\n\n")
    print(json.dumps(rows))


def run_missing(asked: argparse.Namespace) -> None:
    """Compute what is asked for and not in the results file yet."""
    have = {tuple(row[name] for name in KEY) for row in read_rows(asked.results)}
    items = read_dataset(asked.data)
    wanted = asked.networks.split(",")
    for name in asked.sets.split(","):
        for view in asked.views.split(","):
            if view == ("letterbox" if name.startswith("tilda_") else "seen"):
                continue
            for arm in asked.arms.split(","):
                for seed in (int(seed) for seed in asked.seeds.split(",")):
                    missing = [w for w in wanted if (name, w, view, arm, seed, asked.steps) not in have]
                    if missing:
                        pictures = load(items, name, view)
                        print(name, end=" ", flush=True)
                        for row in measure(pictures, asked, missing, view=view, arm=arm, seed=seed):
                            append(asked.results, {"set": name, **row})


def load(
    items: Sequence[Any], name: str, view: str = "tiles"
) -> tuple[list[Picture], list[LabelledPicture], list[LabelledPicture]]:
    """Good cloth of the new fabric, the known pictures, and the test."""
    if not name.startswith("tilda_"):
        fold = new_fabric_fold(list(items), name, good_seen=SEEN)
        seen = [item.load().image for item in fold.seen_good]
        test = [item.load() for item in fold.test]
        camera = flat_field(seen)
        if camera is not None:
            seen = [camera.correct(image) for image in seen]
            test = [replace(picture, image=camera.correct(picture.image)) for picture in test]
        return seen, [item.load() for item in fold.known], test
    new = name.removeprefix("tilda_")
    own = [item for item in items if item.fabric.endswith(new) and "tilda" in item.fabric]
    other = [item for item in items if "tilda" in item.fabric and item not in own]
    shared = {item.source for item in own} & {item.source for item in other}
    sources = sorted({item.source for item in own} - shared)[:SEEN]
    seen = [beside_boxes(item.load()) for item in own if item.source in sources]
    test = [item.load() for item in own if (item.source in sources) == (view == "seen")]
    known = [item.load() for item in other if item.source not in shared]
    return [image for image in seen if min(image.shape[:2]) >= 128], known, test


def beside_boxes(picture: LabelledPicture) -> Picture:
    """The largest piece of a picture above, below, left or right of all its boxes."""
    height, width = picture.image.shape[:2]
    boxes = picture.boxes if picture.boxes is not None and len(picture.boxes) else np.zeros((1, 4))
    x0, y0 = np.floor(boxes[:, :2].min(axis=0)).astype(int) - 8
    x1, y1 = np.ceil(boxes[:, 2:].max(axis=0)).astype(int) + 8
    pieces = [
        np.s_[: max(y0, 0), :],
        np.s_[min(y1, height) :, :],
        np.s_[:, : max(x0, 0)],
        np.s_[:, min(x1, width) :],
    ]
    return max(
        (picture.image[piece] for piece in pieces), key=lambda image: min(image.shape[:2]) * image.size
    )


def held_back(seen: list[Picture], known: list[LabelledPicture]) -> list[LabelledPicture]:
    """The cloth that no training sees: pieces of four tiles with drawn defects, and all of it as it is."""
    judge = part(seen).judge
    recipe = Recipe(arms=("drawn",), synthetic=1.0, good=0.0, tile=256, batch=4, stretch=0)
    maker = TileMaker(recipe, Material(judge, known), seed=999)
    pieces = [piece for k in range(HELD_BACK) for piece in maker.batch(k)]
    drawn = [LabelledPicture(one.image, one.instances > 0) for one in pieces if one.instances is not None]
    return drawn + [LabelledPicture(image, np.zeros(image.shape[:2], np.bool_)) for image in judge]


def shrunk(picture: LabelledPicture) -> LabelledPicture:
    """A picture as a letterbox shows it, its labels too; smaller ones stay."""
    height, width = picture.image.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return picture
    size = (round(width * scale), round(height * scale))
    image = np.asarray(cv2.resize(picture.image, size, interpolation=cv2.INTER_AREA), np.uint8)
    mask = picture.mask
    if mask is not None:
        mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.25
    boxes = None if picture.boxes is None else (picture.boxes * scale).astype(np.float32)
    return LabelledPicture(image, mask, boxes, picture.types, picture.fabric, picture.source)


@dataclass
class Trained:
    """What was trained on one set, and how long each took, minutes."""

    detector: TorchDetector | None = None
    segmenter: TorchEngine | None = None
    weight: float = 1.0  # of a defect pixel in the segmenter's loss
    fusion: FusionPoint | None = None
    minutes: dict[str, float] = field(default_factory=dict)

    def look(self, image: Picture, *, named: bool) -> dict[str, list[Region]]:
        """The regions of a picture by each network, the faint ones too; the segmenter's with types if so."""
        found: dict[str, list[Region]] = {}
        if self.detector is not None:
            found["detector"] = self.detector.detect(image)
        if self.segmenter is None:
            return found
        score = self.segmenter.score(image)
        sure, all_of = (
            regions_at_half_maximum(score, level, PIECES, weight=self.weight) for level in (0.5, 0.05)
        )
        faint = [region for region in all_of if region.score < 0.5]
        surest = sorted(sure + faint, key=lambda region: -region.score)[:MOST]
        found["segmenter"] = self.segmenter.name(image, surest) if named else surest
        if self.detector is not None and self.fusion is not None:
            found["fused"] = fuse(score, found["detector"], self.fusion, faint=True)
        return found


def train(
    seen: list[Picture],
    known: list[LabelledPicture],
    wanted: set[str],
    *,
    asked: argparse.Namespace,
    recipe: Recipe,
    seed: int,
) -> Trained:
    """Train the networks that are wanted."""
    good = part(seen)
    material, progress, made = Material(good.learn, known), LineProgress(sys.stderr, 60), Trained()
    began = time.monotonic()
    if wanted & {"detector", "fused"}:
        settings = DetectorSettings()
        start = base_detector(Base.open(asked.base), settings.form)
        network, _ = train_detector(
            material, recipe, settings, start=start, steps=asked.steps, seed=seed, progress=progress
        )
        made.detector = TorchDetector(network, settings.tile)
        made.minutes["detector"] = (time.monotonic() - began) / 60
    began = time.monotonic()
    if wanted & {"segmenter", "fused"}:
        types = types_in(material, recipe, boxed=False)
        segmenter, _ = train_segmenter(
            material, recipe, types=types, steps=asked.steps, seed=seed, progress=progress
        )
        maps = [TorchEngine(segmenter).score(image) for image in good.judge]
        point = set_operating_point(maps, ALARMS, PIECES)
        made.segmenter, made.weight = TorchEngine(segmenter), segmenter.defect_weight
        made.minutes["segmenter"] = (time.monotonic() - began) / 60
        if made.detector is not None:
            boxes = [made.detector.detect(image) for image in good.judge]
            made.fusion = calibrate_fusion(point, maps, boxes, ALARMS)[1]
    made.minutes["fused"] = sum(made.minutes.values())
    return made


def measure(
    pictures: tuple[list[Picture], list[LabelledPicture], list[LabelledPicture]],
    asked: argparse.Namespace,
    wanted: list[str],
    *,
    view: str,
    arm: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Train what is wanted on one set, and box the test."""
    seen, known, test = pictures
    if view == "letterbox":
        seen = [shrunk(LabelledPicture(image)).image for image in seen]
        known = [shrunk(picture) for picture in known]
    if view == "held-back":
        test = held_back(seen, known)
    typed_too = test[0].mask is None
    made = train(
        seen, known, set(wanted), asked=asked, recipe=Recipe(arms=(arm,)).beside_detector(), seed=seed
    )
    kinds = tuple(sorted({name for picture in test for name in picture.types}))
    scores = {name: BoxScores() for name in wanted}
    typed = {name: BoxScores(kinds) for name in wanted}
    for picture in test:
        view_of = shrunk(picture) if view == "letterbox" else picture
        back = picture.image.shape[1] / view_of.image.shape[1]
        found = made.look(view_of.image, named=typed_too)
        boxes, named = true_boxes(picture)
        height, width = picture.image.shape[:2]
        for name in wanted:
            regions = [_back(region, back) for region in found[name]]
            scores[name].add(regions, boxes, named, (height, width))
            if typed_too:
                typed[name].add(regions, boxes, named, (height, width))
    rows = []
    for name in wanted:
        figures = scores[name].figures()
        row: dict[str, Any] = {"network": name, "view": view, "arm": arm, "seed": seed, "steps": asked.steps}
        row |= {"ap": figures.ap, "ap50": figures.ap50, "ap_small": figures.ap_small}
        row["typed"] = typed[name].figures().ap50 if typed_too else None
        row |= {f"recall_{rate}": scores[name].recall_at(rate) for rate in (1, 4, 10)}
        row["minutes"] = made.minutes[name]
        rows.append(row)
        shown = "  ".join(f"{k} {row[k]:.3f}" for k in COLUMNS if row[k] is not None)
        print(f"{name} {view} {arm} seed {seed}: {shown}", flush=True)
    return rows


def _back(region: Region, scale: float) -> Region:
    x0, y0, x1, y1 = (round(side * scale) for side in region.box)
    return replace(region, box=(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean over seeds of each set, network, view and arm."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["view"], row["arm"], row["network"], row["steps"]), []).append(row)
    lines = ["| new fabric | view | arm | network | steps | seeds | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (6 + len(COLUMNS)) + "|")
    for key, own in sorted(groups.items()):
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in own if row[column] is not None]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
        lines.append("| " + " | ".join(map(str, key)) + f" | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(rows: list[dict[str, Any]]) -> str:
    """Markdown: drawn less none, and tiles less letterbox, paired by set and seed; 95 % over the sets."""
    pairings = (
        ("drawn less none, tiles", "ap50", {"arm": "drawn", "view": "tiles"}, {"arm": "none"}),
        ("drawn less none, tiles", "recall_1", {"arm": "drawn", "view": "tiles"}, {"arm": "none"}),
        ("tiles less letterbox, drawn", "ap_small", {"view": "tiles", "arm": "drawn"}, {"view": "letterbox"}),
        ("tiles less letterbox, none", "ap_small", {"view": "tiles", "arm": "none"}, {"view": "letterbox"}),
    )
    lines = ["| difference | figure | sets | network | pairs | mean | of | 95 % |", "|---" * 8 + "|"]
    by_key = {tuple(row[name] for name in KEY): row for row in rows}
    for title, figure, of, other in pairings:
        for family in ("aitex", "tilda", ""):
            for network in ("detector", "segmenter", "fused"):
                own = [
                    row
                    for row in rows
                    if row["set"].startswith(family)
                    and row["network"] == network
                    and all(row[name] == value for name, value in of.items())
                ]
                pairs = [
                    (row["set"], row[figure], by_key[key][figure])
                    for row in own
                    if (key := tuple((row | other)[name] for name in KEY)) in by_key
                ]
                families = {name.partition("_")[0] for name, *_ in pairs}
                if len(pairs) < 2 or (not family and len(families) < 2):
                    continue
                sets, *figures = zip(*pairs, strict=True)
                one, two = map(np.array, figures)
                gain = paired_difference(one, two, np.random.default_rng(0), groups=sets)
                lines.append(
                    f"| {title} | {figure} | {family or 'both'} | {network} | {len(pairs)} "
                    f"| {gain.mean:+.3f} | {two.mean():.3f} | {gain.low:+.3f} to {gain.high:+.3f} |"
                )
    return "\n".join(lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a line that a kill cut short is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
