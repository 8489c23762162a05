"""Does woven cloth look like cloth? A classifier that saw only woven structures names real fabrics.

Texture codes of random woven cloth, one linear classifier (ridge regression on one-hot targets, the codes
whitened by PCA), tested on woven cloth of other seeds and on real pictures of good cloth.

    python benchmarks/structures.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.datasets import read_dataset
from loomsight.fabric.types import Picture
from loomsight.loom import STRUCTURES, ClothSpec, weave
from loomsight.progress import LineProgress
from loomsight.texture.gram import TextureEncoder

REAL = ("aitex", "kth")  # fabrics whose structure a person can name from the picture
SIZE = 256  # pixels a side
NEAREST = 0.2  # pixels may be this much smaller than a line camera's
ASKEW = 12.0  # degrees, deviation
COMPONENTS = 96
RIDGE = 30.0
FAMILIES = {
    "plain": ("plain", "basket 2/2"),
    "twill": ("twill 2/1", "twill 2/2", "twill 3/1", "broken twill", "herringbone", "diamond twill"),
    "satin": ("satin 5", "satin 8"),
    "dobby": ("dobby",),
    "knit": ("jersey", "rib 1/1", "rib 2/2", "interlock", "pique"),
    "corduroy": ("corduroy",),
    "gauze": ("gauze",),
    "fleece": ("fleece",),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--each", type=int, default=30, help="woven fabrics of each structure to learn from")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    encoder, progress = TextureEncoder("auto"), LineProgress(sys.stderr, 30)
    family = {structure: name for name, own in FAMILIES.items() for structure in own}

    def codes(each: int, seed: int) -> tuple[NDArray[np.float64], list[str]]:
        pairs = [(structure, copy) for structure in STRUCTURES for copy in range(each)]
        rows = [
            look(encoder, woven(structure, [seed, number]))
            for number, (structure, _) in enumerate(progress.track(pairs, "woven", len(pairs)))
        ]
        return np.array(rows), [structure for structure, _ in pairs]

    train, names = codes(asked.each, 2 * asked.seed)
    test, truth = codes(max(1, asked.each // 5), 2 * asked.seed + 1)
    name = classifier(train, names)
    said = name(test)
    same = np.mean([a == b for a, b in zip(said, truth, strict=True)])
    kin = np.mean([family[a] == family[b] for a, b in zip(said, truth, strict=True)])
    print(f"woven cloth not seen: structure right {same:.2f}, family right {kin:.2f} of {len(truth)}\n")
    table({s: [family[a] for a, b in zip(said, truth, strict=True) if b == s] for s in STRUCTURES})
    if not asked.data.is_dir():
        sys.exit(f"structures: {asked.data} is not there: no real fabric was named")
    real: dict[str, list[str]] = {}
    for item in read_dataset(asked.data):
        if item.fabric.split("/")[-1].startswith(REAL) or any(part in item.fabric for part in REAL):
            picture = item.load()
            if picture.mask is not None and not picture.mask.any():
                (answer,) = name(np.array([look(encoder, picture.image)]))
                real.setdefault(item.fabric, []).append(answer)
    print("\nreal cloth\n")
    table({fabric: [family[a] for a in answers] for fabric, answers in sorted(real.items())})
    print("\nmost often named:")
    for fabric, answers in sorted(real.items()):
        print(f"* {fabric}: " + ", ".join(f"{a} {n}" for a, n in Counter(answers).most_common(3)))


def woven(structure: str, seed: list[int]) -> Picture:
    """Random good cloth of a structure: from as near as a hand lens or as far as a line camera, at times
    open, and askew as a hand holds it."""
    rng = np.random.default_rng(seed)
    spec = ClothSpec.random(rng, [structure])  # type: ignore[list-item]
    seen = {
        "mm_per_px": spec.mm_per_px * float(np.exp(rng.uniform(np.log(NEAREST), 0))),
        "cover": float(rng.uniform(0.5, 1.0)),
        "selvedges": "none",
        "print": "none",
    }
    room = int(1.5 * SIZE)
    image = weave(spec.model_copy(update=seen), room, room, rng).image
    turn = cv2.getRotationMatrix2D((room / 2, room / 2), float(rng.normal(0, ASKEW)), 1)
    turn[:, 2] -= (room - SIZE) / 2
    return np.asarray(cv2.warpAffine(image, turn, (SIZE, SIZE)), np.uint8)


def look(encoder: TextureEncoder, image: Picture) -> NDArray[np.float64]:
    """The code of the grey picture, its contrast made the same: the structure and not the colour."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    level = (grey - grey.mean()) / max(1.0, float(grey.std()))
    even = np.clip(128 + 40 * level, 0, 255).astype(np.uint8)
    return np.asarray(encoder.code(even), np.float64)


def classifier(codes: NDArray[np.float64], names: list[str]):  # type: ignore[no-untyped-def]
    """A function from codes (n, d) to names."""
    mean = codes.mean(axis=0)
    _, scale, axes = np.linalg.svd(codes - mean, full_matrices=False)
    project = axes[:COMPONENTS].T / scale[:COMPONENTS] * len(codes) ** 0.5
    labels = sorted(set(names))
    x = (codes - mean) @ project
    y = np.array([[name == label for label in labels] for name in names], float)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)))

    def name(new: NDArray[np.float64]) -> list[str]:
        return [labels[k] for k in ((new - mean) @ project @ weights).argmax(axis=1)]

    return name


def table(answers: dict[str, list[str]]) -> None:
    """Markdown: a row for each cloth, a column for each family, how often it was named."""
    print("| cloth | " + " | ".join(FAMILIES) + " |\n|---|" + "---|" * len(FAMILIES))
    for cloth, said in answers.items():
        counts = Counter(said)
        print(f"| {cloth} | " + " | ".join(str(counts[f]) if counts[f] else "" for f in FAMILIES) + " |")


if __name__ == "__main__":
    main()
