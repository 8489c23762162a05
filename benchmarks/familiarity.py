"""Familiarity on real cloth: is the nearest known fabric right, and is an unknown fabric noticed?

    python benchmarks/familiarity.py --data DIR [--seed 0] [--backbone auto] [--out results.json]

DIR holds ``kth_tips2a_good/<fabric>/*.png`` (16 fabrics) and ``aitex_f00``, ``aitex_f01``, ``aitex_f03`` and
``aitex_f04``, each with ``good/``.

* Held-back pictures: each picture in turn is left out of everything (metric, limit, neighbours) and judged.
  ``nearest``: its fabric is named right; ``false_flags``: it is called unknown.
* Held-back fabrics: each fabric in turn is left out of everything, and its pictures are judged.
  ``recall``: they are called unknown; the mean over fabrics and over pictures.

The seed shuffles the pictures of each fabric, which decides how the limit's own held-back parts are made.
Prints JSON and a markdown row; the same data and seed print the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loomsight.errors import LoomsightError, UsageError
from loomsight.fabric.images import find_images, read_image
from loomsight.files import write_json
from loomsight.texture.familiarity import Familiarity, mixed_fabrics
from loomsight.texture.gram import TextureEncoder

Codes = dict[str, NDArray[np.float32]]
AITEX = ("aitex_f00", "aitex_f01", "aitex_f03", "aitex_f04")


def encode(data: Path, encoder: TextureEncoder) -> tuple[Codes, float]:
    """Codes of every fabric's good pictures, and the median seconds a picture took."""
    folders = [data / name / "good" for name in AITEX]
    if (data / "kth_tips2a_good").is_dir():
        folders += sorted(path for path in (data / "kth_tips2a_good").iterdir() if path.is_dir())
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UsageError("no such folder", where=missing[0], do="give the folder of the data with --data")
    codes: Codes = {}
    seconds = []
    for folder in folders:
        rows = []
        for path in find_images(folder):
            start = time.perf_counter()
            rows.append(encoder.code(read_image(path)))
            seconds.append(time.perf_counter() - start)
        codes[folder.parent.name if folder.name == "good" else folder.name] = np.stack(rows)
    return codes, float(np.median(seconds))


def held_back_pictures(codes: Codes) -> tuple[float, float]:
    """Share named right, and share flagged though known."""
    right, flagged = [], []
    for fabric, rows in codes.items():
        for index, row in enumerate(rows):
            judgement = Familiarity.fit(codes | {fabric: np.delete(rows, index, axis=0)}).judge(row)
            right.append(judgement.fabric == fabric)
            flagged.append(not judgement.known)
    return float(np.mean(right)), float(np.mean(flagged))


def held_back_fabrics(codes: Codes) -> dict[str, float]:
    """For each fabric the share of its pictures that are flagged when it is unknown."""
    shares = {}
    for fabric, rows in codes.items():
        familiarity = Familiarity.fit({name: other for name, other in codes.items() if name != fabric})
        shares[fabric] = float(np.mean([not familiarity.judge(row).known for row in rows]))
    return shares


def mixtures(codes: Codes) -> tuple[float, float]:
    """Two strangers among ten line-scan pictures: share of them found, and share of the ten flagged."""
    found, flagged = [], []
    names = [name for name in AITEX if name in codes]
    for fabric in names:
        for other in names:
            wrong = set(mixed_fabrics(np.concatenate((codes[fabric][:10], codes[other][:2]))))
            if other != fabric:
                found.append(len(wrong & {10, 11}) / 2)
                flagged.append(len(wrong - {10, 11}) / 10)
    return float(np.mean(found)), float(np.mean(flagged))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", choices=("auto", "vgg16", "lite0"), default="auto")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()

    encoder = TextureEncoder(options.backbone)
    codes, seconds = encode(options.data, encoder)
    rng = np.random.default_rng(options.seed)
    codes = {name: rows[rng.permutation(len(rows))] for name, rows in codes.items()}
    nearest, false_flags = held_back_pictures(codes)
    shares = held_back_fabrics(codes)
    recall_pictures = sum(shares[name] * len(rows) for name, rows in codes.items()) / sum(
        map(len, codes.values())
    )
    strangers, flagged = mixtures(codes)
    result = {
        "backbone": encoder.source,
        "seed": options.seed,
        "fabrics": len(codes),
        "pictures": sum(map(len, codes.values())),
        "nearest": round(nearest, 4),
        "recall": round(float(np.mean(list(shares.values()))), 4),
        "recall_pictures": round(recall_pictures, 4),
        "false_flags": round(false_flags, 4),
        "false_flags_nominal": 0.05,
        "recall_by_fabric": shares,
        "mixed_found": round(strangers, 4),
        "mixed_false": round(flagged, 4),
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))
    print(f"seconds a picture, encoding (median): {seconds:.2f}", file=sys.stderr)  # no figure of the result
    print(
        "| backbone | seed | nearest known right | unknown flagged, by fabric / by picture | known flagged |"
    )
    print("|---|---|---|---|---|")
    print(
        f"| {encoder.source} | {options.seed} | {nearest:.3f} | "
        f"{result['recall']:.3f} / {recall_pictures:.3f} | {false_flags:.3f} |"
    )
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    try:
        main()
    except LoomsightError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
