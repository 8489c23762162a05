"""Make docs/gallery.md and its pictures again: every preset, every fault, every effect of making and camera.

python docs/pictures/gallery.py
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from loomsight.fabric.types import Picture
from loomsight.loom import PRESETS, ClothSpec, DefectSpec, weave
from loomsight.loom.faults import FAULTS, Fault, WovenKind

HERE = Path(__file__).parent
COLUMNS, TILE = 4, (190, 300)  # a tile, height and width, at native resolution
LINE, GAP = 24, 8
# what the faults are shown in: yarns of two tones, wide enough to follow
WOVEN = ClothSpec(structure="twill 2/2", ends_per_cm=15, picks_per_cm=14, weft_colour=(128, 118, 104))
PLAIN = ClothSpec(ends_per_cm=16, picks_per_cm=15, tone_noise=0.02, thickness_noise=0.06)
KNITTED = ClothSpec(structure="jersey", ends_per_cm=10, picks_per_cm=13, tone_noise=0.02)
SHOWN_MM = 16.0  # longer faults are cut to this …
RUNS_ON_MM = 40.0  # … but for those that are never shorter than this: they run through the tile
IN_PLAIN = ("missing pick", "reed mark", "weft bar", "barré", "starting mark", "weft crack", "smash")
"""Faults that are clearer in plain cloth of one tone."""

EFFECTS: dict[str, dict[str, object]] = {
    "twist, 8 turns per cm": {"twist": 8, "ends_per_cm": 10, "picks_per_cm": 10},
    "hairiness 0.9": {"hairiness": 0.9},
    "uneven yarn": {"thickness_noise": 0.3},
    "specks, 8 per cm²": {"specks": 8.0},
    "reed marks, 3 ends a dent": {"ends_per_dent": 3, "reed_marks": 0.12},
    "barré within tolerance": {"barre": 0.03},
    "bow": {"bow": 0.05},
    "skew": {"skew": 0.1},
    "tension waves": {"tension_waves_mm": 1.2},
    "selvedge": {"selvedges": "left"},
    "moiré: yarns of 2.2 px": {"ends_per_cm": 46, "picks_per_cm": 46, "blur": 0.3},
    "area camera, JPEG 50": {"camera": "area", "vignetting": 0.5, "gradient": 0.3, "jpeg": 50},
    "streaks of the camera": {"streaks": 0.2},
    "encoder jitter": {"jitter_px": 2},
    "print: dots": {"print": "dots"},
    "print: stripes": {"print": "stripes"},
    "print: checks": {"print": "checks"},
    "print: leaves": {"print": "leaves"},
}


def main() -> None:
    save("gallery-cloth.jpg", ((name, cloth(spec)) for name, spec in PRESETS.items()))
    save("gallery-effects.jpg", ((name, cloth(ClothSpec.parse(some))) for name, some in EFFECTS.items()))
    groups: dict[str, list[WovenKind]] = {"woven": [], "knitted": [], "any": []}
    for kind, fault in FAULTS.items():
        groups[group(fault)].append(kind)
    for name, kinds in groups.items():
        save(f"gallery-faults-{name}.jpg", ((kind, cloth(shown_in(kind), kind)) for kind in kinds))
    (HERE.parent / "gallery.md").write_text(page(groups), encoding="utf-8")


def group(fault: Fault) -> str:
    """Which picture shows it."""
    return "any" if "nonwoven" in fault.made else fault.made[0]


def shown_in(kind: WovenKind) -> ClothSpec:
    """The cloth in which a fault is shown."""
    if FAULTS[kind].made == ("knitted",):
        return KNITTED
    return PLAIN if kind in IN_PLAIN else WOVEN


def cloth(spec: ClothSpec, kind: WovenKind | None = None) -> Picture:
    """A tile of the cloth, with one severe defect in its middle if a kind is given."""
    height, width = TILE
    spec = spec.model_copy(update={"selvedges": "left"}) if kind == "selvedge cut" else spec
    defects = []
    if kind is not None:
        middle = (height // 2, height // 2 + 1)
        defect = DefectSpec.random(np.random.default_rng(3), spec, rows=middle, width=width, kind=kind)
        x = defect.x if kind == "selvedge cut" else width / 2
        usual = max(defect.length_mm, 1.2 * (FAULTS[kind].low * FAULTS[kind].high) ** 0.5)
        length = 2 * RUNS_ON_MM if FAULTS[kind].low >= RUNS_ON_MM else min(SHOWN_MM, usual)
        defects = [defect.model_copy(update={"x": x, "length_mm": length, "strength": 0.8})]
    image = weave(spec, height, width, np.random.default_rng(1), defects).image
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def save(name: str, tiles: Iterable[tuple[str, Picture]]) -> None:
    """Lay named tiles out in rows."""
    named = list(tiles)
    height, width = TILE
    rows = -(-len(named) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + LINE)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (label, tile) in enumerate(named):
        row, column = divmod(number, COLUMNS)
        x, y = column * (width + GAP), row * (height + LINE)
        plain = unicodedata.normalize("NFD", label).encode("ascii", "ignore").decode()  # as the font has it
        draw.text((x, y + 4), plain, "black", font)
        sheet.paste(Image.fromarray(tile), (x, y + LINE))
    sheet.save(HERE / name, quality=85, optimize=True)


def page(groups: dict[str, list[WovenKind]]) -> str:
    """The gallery page, Markdown."""
    names = {"woven": "Woven cloth", "knitted": "Knitted cloth", "any": "Any cloth"}
    parts = [
        "<!-- Written by docs/pictures/gallery.py. -->\n",
        "# What the loom weaves\n",
        "All of it at 0.1 mm a pixel, as it comes from the loom, one pixel of the picture for one of the "
        "cloth. Weave your own:\n",
        "```\nloomsight weave cloth --preset denim --defects 2 --out denim\n"
        "loomsight weave roll --preset jersey --metres 3 --running --out roll\n"
        "loomsight weave dataset --fabrics 40 --out woven\n```\n",
        "## Qualities\n",
        "The names that `--preset` takes. `random`, `woven` and `knitted` are other cloth each time.\n",
        "![Every preset](pictures/gallery-cloth.jpg)\n",
        "## Yarn, making, finish and camera\n",
        "All of these are good cloth: nothing here is labelled a defect. "
        "[The parameters](reference/configuration.md) go into a YAML file for `--cloth`.\n",
        "![Effects](pictures/gallery-effects.jpg)\n",
        "## Defects\n",
        f"Each at severity 0.8, in the cloth that shows it best; those longer than {SHOWN_MM:g} mm are cut "
        "to that here, or run through the picture where they are always long.\n",
    ]
    for name, kinds in groups.items():
        parts += [f"### {names[name]}\n", f"![Defects](pictures/gallery-faults-{name}.jpg)\n"]
        parts += ["| Defect | Runs | Usual length, mm |\n|---|---|---|"]
        runs = {"warp": "along the warp", "weft": "along the weft", "both": "either way"}
        parts += [f"| {kind} | {runs[FAULTS[kind].runs]} | {FAULTS[kind].low:g} to {FAULTS[kind].high:g} |"
                  for kind in kinds] + [""]  # fmt: skip
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    main()
