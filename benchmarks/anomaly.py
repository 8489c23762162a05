"""What no label covers: how well does each method that knows good cloth alone find defects?

Real cloth: the four AITEX fabrics under the new-fabric protocol; a method sees the first ten good pictures
of one and nothing else. Woven cloth: two qualities; a method sees ten good pictures, and every type of
defect that the quality can have is held back, two pictures of each. All that is not seen is the test.

    python benchmarks/anomaly.py --data ../shared/data --methods memory,fanogan:pixels,student

A method is one name or several joined by +, which are then averaged as `learn` averages them. Behind the name
of a GAN may stand what it compares: ``fanogan:pixels``, ``ganomaly:pixels/features/frozen``.
``fanogan:search`` is AnoGAN's search in the noise, with the same generator; ``diffusion`` is that of
denoising.py. ``grey`` weaves nothing at all and compares with grey: what a GAN has to beat.

All methods get the same pictures under even light, and go through the same calibration. The threshold of
"recall" is that of one false alarm per 10 Mpx on the good cloth of the test; AITEX has 2.6 to 5.2 Mpx of it,
so there it is extrapolated from the highest alarms (evaluation/operating_point.py). "minutes" is the time to
learn, "mpx_per_s" the speed of the whole map with ``--threads``.

What is trained is kept in ``--models`` and finished rows in ``--results``; neither is computed twice.
``--picture FILE`` draws what the networks of woven/denim make of three of its defects, from ``--models``.
``--report`` only prints the tables. The last line printed is the list of rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from denoising import Denoising, train_denoising
from loomsight.anomaly.cells import to_input
from loomsight.anomaly.fanogan import FAnoGan
from loomsight.anomaly.ganomaly import Ganomaly
from loomsight.anomaly.method import Method
from loomsight.anomaly.normality import Normality, open_method
from loomsight.anomaly.residual import pixel_residual
from loomsight.datasets import new_fabric_fold, read_dataset
from loomsight.evaluation.operating_point import AlarmRate, set_operating_point
from loomsight.evaluation.pixels import PixelScores
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.light import Light
from loomsight.fabric.types import LabelledPicture, Picture
from loomsight.learn.cloth import part
from loomsight.learn.normality import fitting
from loomsight.learn.segmenter import PIECES
from loomsight.loom import PRESETS, DefectSpec, weave
from loomsight.loom.faults import kinds_of
from new_fabric import append, read_rows

REAL = "aitex_f00,aitex_f01,aitex_f03,aitex_f04"
WOVEN = "woven/denim,woven/jersey"
METHODS = "memory,prediction,memory+prediction,memory+prediction+bars,fanogan,ganomaly,student"
COLUMNS = ("auroc", "ap", "ap_picture", "aupro", "recall", "minutes", "mpx_per_s")
SHOWN = ("hole", "weft curling", "oil stain")
ALARMS = AlarmRate.per_megapixel(0.1)
STEPS = {"fanogan": 1000, "ganomaly": 500, "student": 500, "diffusion": 400}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--sets", default=f"{REAL},{WOVEN}", help="fabrics, and woven/QUALITY")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as there are cores")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/anomaly.jsonl"))
    parser.add_argument("--models", type=Path, default=Path("benchmarks/models"))
    parser.add_argument(
        "--report", action="store_true", help="print the tables of the results file, run nothing"
    )
    parser.add_argument("--picture", type=Path, help="a PNG to draw, after which nothing is run")
    asked = parser.parse_args()
    if asked.picture:
        draw(asked.picture, asked.models)
        return
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if not asked.report:
        run_missing(asked)
    rows = list(read_rows(asked.results))
    print(table(rows), by_set(rows), by_type(rows), sep="\n\n", end="\n\n")
    print(json.dumps(rows))


def run_missing(asked: argparse.Namespace) -> None:
    """Compute what is asked for and not in the results file yet; append each row when it is known."""
    for name in asked.sets.split(","):
        if not name.startswith("woven/") and not (asked.data / name).is_dir():
            print(f"anomaly: {asked.data / name} is not there: {name} is left out", file=sys.stderr)
            continue
        cloth: tuple[list[Picture], list[LabelledPicture]] | None = None
        for seed in (int(one) for one in asked.seeds.split(",")):
            for method in asked.methods.split(","):
                have = {(row["set"], row["method"], row["seed"]) for row in read_rows(asked.results)}
                if (name, method, seed) in have:
                    continue
                cloth = cloth or (woven(name) if name.startswith("woven/") else real(asked.data, name))
                row = {"set": name, "method": method, "seed": seed}
                append(
                    asked.results, row | measure(asked.models, *cloth, name=name, method=method, seed=seed)
                )
                print(f"{name} {method} {seed}", file=sys.stderr, flush=True)


def real(data: Path, fabric: str) -> tuple[list[Picture], list[LabelledPicture]]:
    """The good pictures that are seen, and the test."""
    fold = new_fabric_fold(read_dataset(data), fabric)
    return [item.load().image for item in fold.seen_good], [item.load() for item in fold.test]


def woven(name: str) -> tuple[list[Picture], list[LabelledPicture]]:
    """The same of cloth from the loom: 10.5 Mpx of good cloth, and two pictures for each type of defect."""
    spec = PRESETS[name.removeprefix("woven/")]
    rng = np.random.default_rng(20)
    seen = [weave(spec, 256, 1024, rng).image for _ in range(10)]
    test = [LabelledPicture(weave(spec, 256, 1024, rng).image) for _ in range(40)]
    for kind in kinds_of(spec):
        found = 0
        while found < 2:
            defect = DefectSpec.random(rng, spec, rows=(40, 216), width=512, kind=kind)
            cloth = weave(spec, 256, 512, rng, [defect])
            if cloth.mask.any():
                test.append(LabelledPicture(cloth.image, cloth.mask, types=(kind,)))
                found += 1
    return seen, test


def measure(
    models: Path, seen: list[Picture], test: list[LabelledPicture], *, name: str, method: str, seed: int
) -> dict[str, Any]:
    """All figures of one method on one set."""
    cloth, minutes = part(seen), 0.0
    fits: list[Callable[[Sequence[Picture]], Method]] = []
    networks = [one for one in method.split("+") if one != "bars"]
    fits += [partial(_fitted_alone, models / name, one, seed=seed) for one in networks]
    normality = Normality.fit(cloth.learn, held=cloth.judge, methods=fits, bars="bars" in method.split("+"))
    for one in networks:
        minutes += fitted(models / name, one, (), seed)[1]
    pixels, found, seconds, megapixels = PixelScores(), [], 0.0, 0.0
    for picture in test:
        began = time.monotonic()
        score = normality.score(picture.image)
        seconds += time.monotonic() - began
        megapixels += score.size / 1e6
        pixels.add(score, picture.mask)
        found.append(score)
    good = [s for s, p in zip(found, test, strict=True) if p.mask is None or not p.mask.any()]
    threshold = set_operating_point(good, ALARMS, PIECES).threshold
    counts, types = RegionCounts(), defaultdict(RegionCounts)
    for score, picture in zip(found, test, strict=True):
        own = count_regions(score, picture.mask, threshold, PIECES)
        counts += own
        if len(set(picture.types)) == 1:
            types[picture.types[0]] += own
    figures = pixels.figures()
    return {
        "auroc": figures.auroc,
        "ap": figures.ap,
        "ap_picture": figures.ap_picture,
        "aupro": figures.aupro,
        "recall": counts.recall,
        "types": {kind: [own.found, own.defects] for kind, own in sorted(types.items()) if own.defects},
        "minutes": round(minutes, 2),
        "mpx_per_s": round(megapixels / seconds, 3),
        "threads": torch.get_num_threads(),
    }


def _fitted_alone(folder: Path, method: str, even: Sequence[Picture], *, seed: int) -> Method:
    return fitted(folder, method, even, seed)[0]


def fitted(folder: Path, method: str, even: Sequence[Picture], seed: int) -> tuple[Method, float]:
    """A method fitted to good cloth, and the minutes that took; from the folder if it is there."""
    name, _, residuals = method.partition(":")
    if name == "grey":
        return _Grey(), 0.0
    path = folder / f"{name}-{STEPS.get(name, 0)}-{seed}.safetensors"
    if not path.is_file():
        began = time.monotonic()
        if name == "diffusion":
            made: Method = train_denoising(even, steps=STEPS[name], seed=seed)
        else:
            made = fitting(name, steps=STEPS.get(name), seed=seed)(even)  # type: ignore[arg-type]
        minutes = (time.monotonic() - began) / 60
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {key: np.ascontiguousarray(value) for key, value in made.to_arrays().items()}
        save_file(arrays | {"minutes": np.array([minutes])}, path)
    arrays = load_file(path)
    (minutes,) = arrays.pop("minutes")
    if residuals == "search":
        return _Search(FAnoGan.from_arrays(arrays)), float(minutes)
    if residuals:
        names = ("pixels", "features", "frozen")
        arrays["residuals"] = np.array([one in residuals.split("/") for one in names], np.float32)
    opened = Denoising.from_arrays(arrays) if name == "diffusion" else open_method(name, arrays)
    return opened, float(minutes)


class _Grey:
    """The deviation of the cloth from grey, averaged over a few pixels as the GANs' residuals are."""

    name = "grey"

    def strangeness(self, even: Picture) -> Any:
        x = to_input(even, 3, torch.device("cpu"))
        return pixel_residual(x, torch.zeros_like(x))[0, 0].numpy()

    def to_arrays(self) -> dict[str, Any]:
        return {}


class _Search:
    """AnoGAN with f-AnoGAN's generator."""

    name = "anogan"

    def __init__(self, made: FAnoGan) -> None:
        self._made = made
        self.to_arrays = made.to_arrays

    def strangeness(self, even: Picture) -> Any:
        return self._made.search(even)


def draw(path: Path, models: Path) -> None:
    """What is woven again of three defects, and what each method says of them."""
    from PIL import Image, ImageDraw, ImageFont

    seen, test = woven("woven/denim")
    folder, cloth = models / "woven/denim", part(seen)
    gan, squeezed, student = (fitted(folder, name, (), 0)[0] for name in ("fanogan", "ganomaly", "student"))
    if not (isinstance(gan, FAnoGan) and isinstance(squeezed, Ganomaly)):
        raise TypeError("the models are not those of their names")
    fits = [partial(_fitted_alone, folder, name, seed=0) for name in ("memory", "prediction")]
    both, light = (
        Normality.fit(cloth.learn, held=cloth.judge, methods=fits, bars=False),
        Light.of(cloth.learn),
    )
    gan.residuals = ("pixels",)
    heads = (
        "cloth",
        "f-AnoGAN weaves",
        "its map",
        "GANomaly weaves",
        "its map",
        "student",
        "memory + prediction",
    )
    side, gap, top = 160, 6, 22
    sheet = Image.new(
        "RGB", (len(heads) * (side + gap) - gap, top + len(SHOWN) * (side + gap) - gap), "white"
    )
    for column, head in enumerate(heads):
        ImageDraw.Draw(sheet).text((column * (side + gap), 3), head, "black", ImageFont.load_default(13))
    for row, kind in enumerate(SHOWN):
        picture = next(one for one in test if one.types == (kind,))
        even = light.even(picture.image)
        ys, xs = np.nonzero(picture.mask)  # type: ignore[arg-type]  # these are labelled
        window = tuple(
            slice(start := int(np.clip(np.median(at) - side / 2, 0, room - side)), start + side)
            for at, room in ((ys, even.shape[0]), (xs, even.shape[1]))
        )
        x = to_input(even, gan.channels, gan.device)
        with torch.inference_mode():
            woven_again = [gan.generator(gan.encode(x)), squeezed.decoder(squeezed.encoder(x))]
        shown = [_shown(made) for made in woven_again]
        maps = [_heat(one.strangeness(even)) for one in (gan, squeezed, student)] + [
            _heat(both.score(picture.image))
        ]
        for column, one in enumerate((even, shown[0], maps[0], shown[1], maps[1], maps[2], maps[3])):
            tile = Image.fromarray(np.ascontiguousarray(one[window]))
            sheet.paste(tile, (column * (side + gap), top + row * (side + gap)))
    sheet.save(path)


def _shown(made: torch.Tensor) -> Any:
    rgb = made[0].expand(3, -1, -1).permute(1, 2, 0)
    return ((rgb + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu().numpy()


def _heat(strange: Any) -> Any:
    """From its middle to its highest."""
    low, high = np.median(strange), strange.max()
    grey = ((strange - low) / (high - low)).clip(0, 1) * 255
    return cv2.applyColorMap(np.rint(grey).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each method's mean over real and over woven sets, with the deviation over seeds."""
    lines = [
        "| cloth | method | seeds | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for cloth, sets in (("AITEX", REAL.split(",")), ("woven", WOVEN.split(","))):
        of = [row for row in rows if row["set"] in sets]
        for method in sorted({row["method"] for row in of}):
            seeds = {row["seed"] for row in of if row["method"] == method}
            whole = [
                own
                for seed in sorted(seeds)
                if len(own := [r for r in of if (r["method"], r["seed"]) == (method, seed)]) == len(sets)
            ]
            if not whole:
                continue
            cells = []
            for column in COLUMNS:
                means = [np.mean([row[column] for row in own]) for own in whole]
                spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 and column != "minutes" else ""
                cells.append(f"{np.mean(means):.3f}{spread}")
            lines.append(f"| {cloth} | {method} | {len(whole)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_set(rows: list[dict[str, Any]]) -> str:
    """Markdown: each method on each set, the mean over seeds."""
    columns = COLUMNS[:5]
    lines = [
        "| cloth | method | seeds | " + " | ".join(columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for name, method in sorted({(row["set"], row["method"]) for row in rows}):
        own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
        cells = [f"{np.mean([row[column] for row in own]):.3f}" for column in columns]
        lines.append(f"| {name} | {method} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_type(rows: list[dict[str, Any]]) -> str:
    """Markdown: found of all defects of each type, over all sets and seeds; columns are methods."""
    methods = sorted({row["method"] for row in rows})
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for row in rows:
        for kind, (found, there) in row["types"].items():
            counts[kind][row["method"]][0] += found
            counts[kind][row["method"]][1] += there
    lines = ["| type | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for kind in sorted(counts):
        cells = [f"{counts[kind][m][0]}/{counts[kind][m][1]}" if m in counts[kind] else "" for m in methods]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
