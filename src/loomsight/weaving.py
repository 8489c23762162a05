"""What ``loomsight weave`` writes: a piece of cloth, a roll as a line delivers it, a labelled data set.

Each lies in a new folder, which appears when all of it is written, with the YAML that weaves it again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

import loomsight
from loomsight.config import Config
from loomsight.datasets.writers import write_dataset
from loomsight.errors import UsageError
from loomsight.fabric.images import write_png
from loomsight.fabric.types import LabelledPicture
from loomsight.files import new_folder, write_json, write_text
from loomsight.loom import Cloth, ClothSpec, DefectSpec, preset, weave, weave_roll
from loomsight.loom.faults import FAULTS, WovenKind, kinds_of
from loomsight.progress import Progress
from loomsight.synthesis.sheet import contact_sheet

_NOTE = "Woven by a program: no camera saw this cloth."
_SHOWN = 8  # pictures in a row of the sheet


class RollSettings(Config):
    """A roll to weave."""

    metres: float = Field(default=1.0, gt=0, le=10_000)
    width: int = Field(default=1024, ge=64, le=16_384)
    """Pixels across the web."""
    frame_height: int = Field(default=512, ge=64, le=8192)
    defects_per_m2: NonNegativeFloat = 30.0
    periodic_mm: float | None = Field(default=None, ge=10)
    """Circumference of a damaged roller, which marks the cloth at each turn."""
    running: bool = False
    """Whether a fault of one end or wale runs for up to three metres."""


class DatasetSettings(Config):
    """A data set to weave."""

    fabrics: PositiveInt = 20
    good: NonNegativeInt = 10
    """Good pictures of each fabric."""
    defective: NonNegativeInt = 10
    """Pictures of each fabric with one to three defects."""
    width: int = Field(default=512, ge=64, le=8192)
    height: int = Field(default=320, ge=64, le=8192)
    preset: str = "random"
    """A quality, or random, woven or knitted for other cloth each time; several are separated by commas."""
    layout: str = "plain"


def weave_cloth(
    spec: ClothSpec, out: Path, *, height: int, width: int, kinds: Sequence[WovenKind], count: int, seed: int
) -> Cloth:
    """Write cloth.png, mask.png, cloth.yaml and defects.json.

    Args:
        kinds: a defect of each of these; then `count` of any type.

    Raises:
        UsageError: this cloth cannot have such a defect, or ``out`` exists.
        StorageError: ``out`` cannot be written.
    """
    rng = np.random.default_rng([seed, 1])
    inner = (round(0.1 * height), max(1, round(0.9 * height)))
    wanted: list[WovenKind | None] = [*kinds, *[None] * count]
    defects = [DefectSpec.random(rng, spec, rows=inner, width=width, kind=kind) for kind in wanted]
    cloth = weave(spec, height, width, np.random.default_rng(seed), defects)
    with new_folder(out) as work:
        write_png(work / "cloth.png", cloth.image)
        write_png(work / "mask.png", cloth.mask.astype(np.uint8) * 255)
        write_text(work / "cloth.yaml", to_yaml(spec))
        write_json(work / "defects.json", [asdict(defect) for defect in cloth.defects])
    return cloth


def write_roll(
    spec: ClothSpec, out: Path, settings: RollSettings, *, seed: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the frames, their masks, the encoder's positions and the truth of a roll.

    ``frames/`` is what a line delivers; ``masks/`` the defective pixels of each frame; ``encoder.csv`` the
    place of each frame's first line; ``truth.json`` each defect once, with its box in every frame it crosses.

    Returns:
        What truth.json holds.
    """
    roll = weave_roll(
        spec,
        np.random.default_rng(seed),
        metres=settings.metres,
        frame_height=settings.frame_height,
        width=settings.width,
        defects_per_m2=settings.defects_per_m2,
        periodic_mm=settings.periodic_mm,
        running=settings.running,
    )
    frames = int(np.ceil(settings.metres * 1000 / spec.mm_per_px / settings.frame_height - 1e-6))
    found: dict[int, dict[str, Any]] = {}
    lines = ["frame,picture,first_line,metres"]
    with new_folder(out) as work:
        for number, cloth in enumerate((progress or Progress()).track(roll, "weaving", max(1, frames))):
            name = f"{number + 1:06d}.png"
            first = number * settings.frame_height
            write_png(work / "frames" / name, cloth.image)
            write_png(work / "masks" / name, cloth.mask.astype(np.uint8) * 255)
            lines.append(f"{number + 1},{name},{first},{first * spec.mm_per_px / 1000:.4f}")
            for defect in cloth.defects:
                row = found.setdefault(
                    defect.number,
                    {
                        "number": defect.number,
                        "type": defect.type,
                        "severity": round(defect.strength, 3),
                        "length_mm": round(defect.length_mm, 2),
                        "metres": round(defect.place.metres, 4),
                        "millimetres": round(defect.place.millimetres, 2),
                        "frames": [],
                    },
                )
                row["frames"].append({"picture": name, "box": defect.box, "area_px": defect.area})
        truth = {
            "program": f"loomsight {loomsight.__version__}",
            "seed": seed,
            "mm_per_px": spec.mm_per_px,
            "settings": settings.model_dump(),
            "defects": list(found.values()),
            "note": _NOTE,
        }
        write_text(work / "cloth.yaml", to_yaml(spec))
        write_text(work / "encoder.csv", "\n".join(lines) + "\n")
        write_json(work / "truth.json", truth)
    return truth


def weave_dataset(
    out: Path, settings: DatasetSettings, *, seed: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Write a labelled data set, the YAML of each fabric, a contact sheet and a dataset card.

    Returns:
        What card.json holds.
    """
    names = settings.preset.split(",")
    specs = [
        preset(names[number % len(names)].strip(), np.random.default_rng([seed, number]))
        for number in range(settings.fabrics)
    ]
    counts: dict[str, int] = {}
    shown: list[tuple[Any, Any]] = []
    each = settings.good + settings.defective

    def pictures() -> Iterator[LabelledPicture]:
        for number in (progress or Progress()).track(
            range(settings.fabrics * each), "weaving", len(specs) * each
        ):
            fabric, copy = divmod(number, each)
            rng = np.random.default_rng([seed, fabric, copy])
            defective = copy >= settings.good
            cloth = weave(specs[fabric], settings.height, settings.width, rng, "random" if defective else ())
            for defect in cloth.defects:
                counts[defect.type] = counts.get(defect.type, 0) + 1
            if defective and len(shown) < 4 * _SHOWN and copy == settings.good:
                shown.append((cloth.image, cloth.mask))
            yield LabelledPicture(
                cloth.image,
                cloth.mask,
                boxes=np.array([defect.box for defect in cloth.defects], np.float32).reshape(-1, 4),
                types=tuple(defect.type for defect in cloth.defects),
                fabric=f"{fabric + 1:03d}-{specs[fabric].structure.replace(' ', '-').replace('/', '')}",
                source=f"{fabric} {copy}",
            )

    with new_folder(out) as work:
        write_dataset(pictures(), work / "data", settings.layout)
        for number, spec in enumerate(specs):
            write_text(work / "fabrics" / f"{number + 1:03d}.yaml", to_yaml(spec))
        card = {
            "program": f"loomsight {loomsight.__version__}",
            "seed": seed,
            "settings": settings.model_dump(),
            "pictures": settings.fabrics * each,
            "structures": sorted({spec.structure for spec in specs}),
            "defects": dict(sorted(counts.items())),
            "note": _NOTE,
        }
        write_json(work / "card.json", card)
        write_text(work / "README.md", _card(card))
        if shown:
            rows = [("", shown[at : at + _SHOWN]) for at in range(0, len(shown), _SHOWN)]
            write_png(work / "sheet.png", contact_sheet(rows, title="Woven cloth", note=_NOTE))
    return card


def _card(card: dict[str, Any]) -> str:
    """The dataset card, Markdown."""
    settings = card["settings"]
    types = "\n".join(f"| {kind} | {count} | {FAULTS[kind].low:g} to {FAULTS[kind].high:g} |"
                      for kind, count in card["defects"].items())  # fmt: skip
    return f"""---
license: cc0-1.0
task_categories: [image-segmentation, object-detection]
tags: [textile, defect-detection, synthetic]
---
# Woven cloth: {card["pictures"]} pictures of {settings["fabrics"]} fabrics

**What it is.** Pictures of cloth and of its defects, {settings["width"]} × {settings["height"]} px, made
yarn by yarn by {card["program"]}. {card["note"]} Structures: {", ".join(card["structures"])}.

**Labels.** Each defect has its type, its box and a mask that is exact: the difference to the same cloth
without the defect. Uneven yarn, reed marks, bands within tolerance, bow and skew are not labelled.

| Defect | Number | Usual length, mm |
|---|---|---|
{types}

**How to make it again.** Seed {card["seed"]} and the settings in card.json; fabrics/ has each fabric's
parameters.

**For.** Training and testing inspection where real defects are missing. **Not for** claims of accuracy
on real cloth without a test on real cloth.

**Licence.** Nobody's picture is in it: CC0 1.0.
"""


def to_yaml(spec: ClothSpec) -> str:
    """The parameters of a cloth; `loomsight weave --cloth` reads them."""
    import yaml

    values = {
        key: list(value) if isinstance(value, tuple) else value for key, value in spec.model_dump().items()
    }
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def check_kinds(kinds: Sequence[str], spec: ClothSpec) -> list[WovenKind]:
    """The defects by name.

    Raises:
        UsageError: this cloth cannot have one; it says the nearest.
    """
    possible = kinds_of(spec)
    for kind in kinds:
        if kind not in possible:
            near = difflib.get_close_matches(kind, possible, n=1, cutoff=0.0)[0]
            why = f"{spec.structure} cannot have it; the nearest that it can have is {near}"
            raise UsageError("bad --defect", where=repr(kind), why=why)
    return [kind for kind in possible for given in kinds if given == kind]
