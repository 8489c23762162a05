"""Does woven cloth look like cloth? A classifier that saw only woven structures names real fabrics.

Every picture is brought to one scale, its weave's repeat 12 px, and to one contrast; what is compared are
means and deviations of the ImageNet features of EfficientNet-Lite0 at five strides. The classifier is linear
discriminant analysis with a shrunk covariance, learned on random woven cloth, and tested on woven cloth of
other seeds and on real pictures of good cloth.

    python benchmarks/structures.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from loomsight.backbones import efficientnet_lite
from loomsight.datasets import read_dataset
from loomsight.fabric.images import to_grey
from loomsight.fabric.types import Picture
from loomsight.loom import STRUCTURES, ClothSpec, weave
from loomsight.progress import LineProgress
from loomsight.texture.period import weave_period

REAL = ("aitex", "kth")  # fabrics whose structure a person can name from the picture
SIZE = 256  # pixels a side
NEAREST = 0.2  # pixels may be this much smaller than a line camera's
ASKEW = 4.0  # degrees, deviation
REPEAT = 12.0  # pixels that a weave's repeat is brought to
SHRINK = 0.5  # of the covariance, towards a multiple of the identity
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
    parser.add_argument("--each", type=int, default=60, help="woven fabrics of each structure to learn from")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    network, progress = (
        efficientnet_lite.build("lite0", output_stride=32).eval(),
        LineProgress(sys.stderr, 30),
    )
    family = {structure: name for name, own in FAMILIES.items() for structure in own}

    def codes(each: int, seed: int) -> tuple[NDArray[np.float64], list[str]]:
        pairs = [(structure, copy) for structure in STRUCTURES for copy in range(each)]
        rows = [
            look(network, woven(structure, [seed, number]))
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
                (answer,) = name(np.array([look(network, middle(picture.image))]))
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


def middle(image: Picture) -> Picture:
    """The middle of a picture, as large as the woven ones: at its sides a strip may show its selvedge."""
    top, left = (max(0, (side - SIZE) // 2) for side in image.shape[:2])
    return image[top : top + SIZE, left : left + SIZE]


@torch.inference_mode()
def look(network: efficientnet_lite.EfficientNetLite, image: Picture) -> NDArray[np.float64]:
    """What the network sees of the structure: neither colour, nor contrast, nor scale."""
    grey = to_grey(image).astype(np.float32)
    level = grey - cv2.GaussianBlur(grey, (0, 0), 25)
    even = np.clip(128 + 40 * level / max(1.0, float(level.std())), 0, 255).astype(np.uint8)
    period = weave_period(even)
    known = [side for side in (period.warp, period.weft) if side and side > 0]
    zoom = float(np.clip(REPEAT / np.exp(np.mean(np.log(known))), 0.3, 2.0)) if known else 1.0
    even = cv2.resize(
        even, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    )
    even = np.pad(even, [(0, max(0, 96 - side)) for side in even.shape], "symmetric")[:224, :224]
    x = torch.from_numpy(np.repeat(even[None, None], 3, 1)).float() / 255
    levels = [of[0].flatten(1) for of in network(x)[1:]]
    return torch.cat([part for of in levels for part in (of.mean(1), of.std(1))]).numpy().astype(np.float64)


def classifier(codes: NDArray[np.float64], names: list[str]) -> Callable[[NDArray[np.float64]], list[str]]:
    """Linear discriminant analysis: a function from codes (n, d) to names."""
    labels = sorted(set(names))
    which = np.array([labels.index(name) for name in names])
    centre, scale = codes.mean(axis=0), codes.std(axis=0) + 1e-6
    x = (codes - centre) / scale
    means = np.stack([x[which == k].mean(axis=0) for k in range(len(labels))])
    within = x - means[which]
    covariance = (1 - SHRINK) * within.T @ within / len(x)
    covariance += np.eye(len(covariance)) * SHRINK / (1 - SHRINK) * np.trace(covariance) / len(covariance)
    axes = np.linalg.solve(covariance, means.T)
    offset = -0.5 * (means.T * axes).sum(axis=0)

    def name(new: NDArray[np.float64]) -> list[str]:
        return [labels[k] for k in ((new - centre) / scale @ axes + offset).argmax(axis=1)]

    return name


def table(answers: dict[str, list[str]]) -> None:
    """Markdown: a row for each cloth, a column for each family, how often it was named."""
    print("| cloth | " + " | ".join(FAMILIES) + " |\n|---|" + "---|" * len(FAMILIES))
    for cloth, said in answers.items():
        counts = Counter(said)
        print(f"| {cloth} | " + " | ".join(str(counts[f]) if counts[f] else "" for f in FAMILIES) + " |")


if __name__ == "__main__":
    main()
