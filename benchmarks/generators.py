"""How good is what the generators make, and does the texture code matter?

For each fold one fabric is new: each generator makes defects in its first ten good pictures, told the
fabric's own texture code and, in the rows "wrong code", those of the known fabrics. They are compared with
the fabric's real defects, which no generator has seen, pooled over the folds. The row "good cloth" has no
defect at all: a generator that is no nearer to the real ones than it makes nothing worth having.

    python benchmarks/generators.py --data ../shared/data --sheets /tmp/sheets

    python benchmarks/generators.py --woven docs/pictures/generators.jpg

The first reads a base for each fold, trained by benchmarks/new_fabric.py, and writes a contact sheet of each
fold: it shows real cloth, and must not be published where the pictures' licence forbids it. The second needs
no data: the loom weaves the new fabrics and their defects, and the base that comes with the program, or
another (``--base``), makes the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.base import Base, shipped
from loomsight.datasets import new_fabric_fold, read_dataset
from loomsight.evaluation.fidelity import Memory, PatchFeatures, measure_fidelity
from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.regions import split_parts
from loomsight.fabric.types import LabelledPicture, Mask, Picture
from loomsight.learn.cloth import part
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.paste import DefectPart
from loomsight.synthesis.quality import QualityGate
from loomsight.synthesis.recipe import ARMS, Material, Recipe, TileMaker
from loomsight.synthesis.samples import Sample
from loomsight.synthesis.sheet import Row, contact_sheet
from loomsight.texture.gram import TextureEncoder
from new_fabric import FOLDS, fold_base

TILE = 160


@dataclass
class Real:
    """A real defect in its cloth."""

    image: Picture
    mask: Mask


@dataclass
class Cloth:
    """A new fabric: what generators may see of it, its real defects, and the known fabrics."""

    name: str
    good: Sequence[Picture]
    test: Sequence[LabelledPicture]
    known: Sequence[LabelledPicture]
    base: Base
    code: NDArray[np.float32] = field(init=False)
    wrong: list[NDArray[np.float32]] = field(init=False)
    parts: list[DefectPart] = field(init=False)
    """At most 200 real defects of the known fabrics, which must not be copied."""

    def __post_init__(self) -> None:
        encoder = TextureEncoder(self.base.card.encoder)
        self.code = encoder.codes(self.good[:3]).mean(axis=0)
        by_fabric: dict[str, Picture] = {}
        for picture in self.known:
            by_fabric.setdefault(picture.fabric, picture.image)
        some = list(by_fabric.values())[:: max(1, len(by_fabric) // 12)]
        self.wrong = list(encoder.codes(some))
        material = Material(self.good, list(self.known))
        parts = [one for found in material.parts.values() for one in found]
        self.parts = [parts[i] for i in np.random.default_rng(5).permutation(len(parts))[:200]]

    @property
    def defects(self) -> list[Real]:
        """Each real defect by itself: a picture with two is two."""
        found = []
        for picture in self.test:
            if picture.mask is None:
                continue
            image, parts = to_rgb(picture.image), split_parts(picture.mask, gap=4)
            found += [Real(image, own) for own in parts if 6 <= own.sum() <= 0.6 * TILE * TILE]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a tree of fabrics")
    parser.add_argument("--folds", default=FOLDS, help="fabrics to take as new")
    parser.add_argument("--bases", type=Path, default=Path("benchmarks/bases"), help="a base for each fold")
    parser.add_argument("--samples", type=int, default=64, help="of each generator and fold")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet of each fold")
    parser.add_argument("--woven", type=Path, help="a picture: woven cloth alone, by the base that ships")
    parser.add_argument("--base", type=Path, help="of the woven ones; default: the one that ships")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.base_minutes, asked.base_diffusion = 15.0, False
    cloths = woven(asked.base or shipped(), asked.seed) if asked.woven else folds(asked)
    pooled: dict[str, list[tuple[Sample, str | None]]] = {}
    real: list[Real] = []
    memories: list[Real] = []
    rows: list[Row] = []
    for number, cloth in enumerate(cloths):
        made = make_all(cloth, asked.samples, asked.seed + 100 * number)
        for name, samples in made.items():
            pooled.setdefault(name, []).extend(samples)
        real += cloth.defects
        memories += cloth.parts
        own = rows_of(
            cloth,
            made,
            asked.seed,
            columns=6 if asked.woven else 12,
            origin="woven" if asked.woven else "real",
        )
        if asked.woven:
            rows += [row for row in own if row[0] not in {"paste", "drawn", "refined"}]
        elif asked.sheets:
            asked.sheets.mkdir(parents=True, exist_ok=True)
            write(asked.sheets / f"{cloth.name}.png", contact_sheet(own, columns=12, title=cloth.name))
    if asked.woven:
        write(
            asked.woven,
            contact_sheet(rows, columns=6, cell=96),
        )
    print(table(pooled, real, memories, asked.seed))


def folds(asked: argparse.Namespace) -> list[Cloth]:
    """The folds of the new-fabric protocol."""
    if not asked.data.is_dir():
        sys.exit(f"generators: {asked.data} is not there: give a tree of fabrics with --data, or --woven")
    items = read_dataset(asked.data)
    found = []
    for fabric in asked.folds.split(","):
        fold = new_fabric_fold(items, fabric, good_seen=10)
        known, test = [item.load() for item in fold.known], [item.load() for item in fold.test]
        good = part([item.load().image for item in fold.seen_good]).learn
        found.append(Cloth(fabric, good, test, known, fold_base(asked, fold, known)))
    return found


def woven(folder: Path, seed: int) -> list[Cloth]:
    """Four fabrics from the loom, and twelve more that are known."""
    known = []
    for number in range(12):
        rng = np.random.default_rng([seed, number, 31])
        spec = ClothSpec.random(rng)
        for copy in range(2):
            cloth = weave(spec, 256, 320, rng, defects="random" if copy else ())
            known.append(LabelledPicture(cloth.image, cloth.mask, fabric=f"known {number}"))
    found = []
    base = Base.open(folder)
    for number, structure in enumerate(("plain", "twill 2/2", "basket 2/2", "satin 5")):
        rng = np.random.default_rng([seed, number, 32])
        spec = ClothSpec.random(rng).model_copy(update={"structure": structure})
        good = [weave(spec, 256, 512, rng).image for _ in range(3)]
        pictures = [weave(spec, 256, 512, rng, defects="random") for _ in range(8)]
        test = [LabelledPicture(one.image, one.mask, fabric=structure) for one in pictures]
        found.append(Cloth(structure, [to_rgb(image) for image in good], test, known, base))
    return found


def make_all(cloth: Cloth, count: int, seed: int) -> dict[str, list[tuple[Sample, str | None]]]:
    """Samples of every arm, each with the reason for which the quality gate would reject it."""
    material = Material(cloth.good, list(cloth.known))
    maker = TileMaker(Recipe(arms=("drawn",), tile=TILE), material, seed=seed)
    gate = QualityGate(memory=Memory.of(cloth.parts))

    def windows(rng: np.random.Generator) -> list[Picture]:
        return [maker.cloth(rng) for _ in range(count)]

    def simple(arm: str, rng: np.random.Generator) -> list[Sample]:
        made = []
        for window in windows(rng):
            image, mask, _ = ARMS[arm](material, window, rng)
            if material.grey:
                image = to_rgb(to_grey(image))
            made.append(Sample(window, image, mask, 0, arm))
        return made

    def generated(arm: str, rng: np.random.Generator, codes: Sequence[Any]) -> list[Sample]:
        generator, cloths, made = cloth.base.generator(arm), windows(rng), []
        for number, start in enumerate(range(0, count, 8)):
            made += generator.make(cloths[start : start + 8], codes[number % len(codes)], rng)
        return made

    makers: dict[str, Callable[[np.random.Generator], list[Sample]]] = {}
    for arm in ("paste", "drawn"):
        makers[arm] = partial(simple, arm)
    for arm in cloth.base.arms:
        makers[arm] = partial(generated, arm, codes=[cloth.code])
        if arm != "refined":  # which is not told any
            makers[f"{arm}, wrong code"] = partial(generated, arm, codes=cloth.wrong)
    made = {}
    for name, make in makers.items():
        samples = make(np.random.default_rng([seed, 9]))
        made[name] = [(one, "no defect" if not one.mask.any() else gate(one)) for one in samples]
    # Good cloth "with a defect" where the drawn ones have one: what a generator must be nearer than.
    made["good cloth"] = [
        (Sample(one.cloth, one.cloth, one.mask, 0, "good cloth"), "invisible") for one, _ in made["drawn"]
    ]
    return made


def rows_of(
    cloth: Cloth, made: dict[str, list[tuple[Sample, str | None]]], seed: int, *, columns: int, origin: str
) -> list[Row]:
    """Real defects, then those of each generator that passed the gate."""
    rng = np.random.default_rng(seed)
    real = cloth.defects
    chosen = [real[i] for i in rng.permutation(len(real))[:columns]]
    rows: list[Row] = [(f"{cloth.name}\n{origin}", [(one.image, one.mask) for one in chosen])]
    for name, samples in made.items():
        passed = [one for one, reason in samples if reason is None]
        if name != "good cloth" and "wrong" not in name and passed:
            rows.append((name, [(one.image, one.mask) for one in passed[:columns]]))
    return rows


def table(
    pooled: dict[str, list[tuple[Sample, str | None]]], real: list[Real], memories: list[Real], seed: int
) -> str:
    """Markdown: fidelity of each row, of all samples and of those that passed the gate."""
    features = PatchFeatures()
    some = np.random.default_rng(seed).permutation(len(memories))[:300]
    memory = Memory.of([memories[i] for i in some], features)
    lines = [
        f"{len(real)} real defects; features: {features.name}",
        "",
        "| made by | samples | KID ×1000 | diversity | background error | mask agreement | memorised |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, samples in pooled.items():
        for gated in (False, True):
            used = [s for s, reason in samples if s.mask.any() and (reason is None or not gated)]
            if len(used) < 20 or (gated and name == "good cloth"):
                continue
            f = measure_fidelity(used, real, np.random.default_rng(seed), memory=memory, features=features)
            lines.append(
                f"| {name}{', gate' if gated else ''} | {f.samples} of {len(samples)} | "
                f"{1000 * f.kid:.1f} ± {1000 * f.kid_deviation:.1f} | {f.diversity or 0:.3f} | "
                f"{f.background_error:.2f} | {f.mask_agreement:.2f} | {f.memorised:.3f} |"
            )
    return "\n".join(lines)


def write(path: Path, sheet: Picture) -> None:
    """As PNG or JPEG, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
