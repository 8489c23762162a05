"""Defects, made where they happen: at the yarn. A yarn breaks, thickens or floats; the rest follows.

The cloth around a defect is rendered twice, good and bad; the mask comes from the difference, so it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from loomsight.errors import UsageError
from loomsight.fabric.types import Mask
from loomsight.loom import faults_cloth, faults_knit, faults_yarn
from loomsight.loom.faults import FAULTS, DefectSpec, WovenKind, kinds_of
from loomsight.loom.render import Renderer, Window
from loomsight.loom.yarns import Table

FAINT = 0.8
"""Contrast below which a defect is lost in the unevenness of the cloth."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A woven defect: what it adds to the good cloth, and where it can be seen.

    Attributes:
        top, left: its place on the cloth, pixels.
        change: (rows, columns, channels), before the lens.
        mask: (rows, columns).
        contrast: the change in its mask (root mean square) over the deviation of the good cloth there, pixel
            by pixel or yarn by yarn, whichever shows it better. Below `FAINT` hardly anybody sees it.
    """

    top: int
    left: int
    change: Table
    mask: Mask
    contrast: float


def weave_defect(cloth: Renderer, defect: DefectSpec) -> Patch:
    """Weave the cloth around a defect twice, good and bad, and keep the difference.

    Raises:
        UsageError: this cloth cannot have such a defect.
    """
    rng = np.random.default_rng(defect.seed)
    spec, fault = cloth.spec, FAULTS[defect.type]
    possible = kinds_of(spec)
    if defect.type not in possible:
        raise UsageError(
            f"{spec.structure} cannot have a {defect.type}",
            where="defects",
            why="with no selvedge in the picture"
            if defect.type == "selvedge cut"
            else f"it is {spec.construction}",
            do=f"choose one of {', '.join(possible)}",
        )
    length = defect.length_mm / spec.mm_per_px
    room = 6 * max(spec.px_per_end, spec.px_per_pick) + 8
    beside = room + fault.reach_mm / spec.mm_per_px
    rows = math.ceil({"warp": 0.5 * length + room, "weft": beside, "both": 0.9 * length + room}[fault.runs])
    columns = math.ceil(
        {"warp": beside, "weft": 0.5 * length + room, "both": 0.9 * length + room}[fault.runs]
    )
    y, x = int(defect.y), int(np.clip(defect.x, 0, cloth.width - 1))
    window = Window(cloth, y - rows, x - columns, y + rows, x + columns)
    good = window.seen()
    change = _MAKERS[defect.type](window, defect, rng) - good
    mask = _mask(cloth, change)
    return Patch(window.top, window.left, change, mask, _contrast(cloth, change, good, mask))


def _contrast(cloth: Renderer, change: Table, good: Table, mask: Mask) -> float:
    if not mask.any():
        return 0.0
    yarn = 0.5 * max(cloth.spec.px_per_end, cloth.spec.px_per_pick)
    best = 0.0
    for softness in (max(0.3, cloth.spec.blur), yarn):
        seen, around = (
            cv2.GaussianBlur(plane, (0, 0), softness).reshape(plane.shape) for plane in (change, good)
        )
        noise = cloth.spec.noise / (1 if softness != yarn else 3.5 * yarn)
        change_of = np.sqrt(np.square(seen[mask]).mean(axis=0))
        best = max(best, float((change_of / np.hypot(around.std(axis=(0, 1)), noise + 0.5)).max()))
    return best


def _mask(cloth: Renderer, change: Table) -> Mask:
    """Through the lens, where the change is visible: 97 % of its energy, gaps of a pixel closed."""
    pad = cloth.camera.blur_reach
    wide = np.pad(change, ((pad, pad), (pad, pad), (0, 0)))
    amount = np.abs(cloth.camera.blurred(wide)[pad : -pad or None, pad : -pad or None]).max(axis=2)
    peak = float(amount.max())
    if peak < 2.0:
        return np.zeros(amount.shape, np.bool_)
    order = np.sort(amount, axis=None)
    energy = np.cumsum(np.square(order, dtype=np.float64))
    enough = float(order[int(np.searchsorted(energy, 0.03 * energy[-1]))])
    mask = (amount >= max(1.25, min(0.3 * peak, enough))).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)


_MAKERS: dict[WovenKind, Callable[[Window, DefectSpec, np.random.Generator], Table]] = {
    "broken end": faults_yarn.broken_end,
    "missing end": faults_yarn.missing_end,
    "double end": faults_yarn.double_end,
    "broken pick": faults_yarn.broken_pick,
    "missing pick": faults_yarn.missing_pick,
    "double pick": faults_yarn.double_pick,
    "mispick": faults_yarn.mispick,
    "float": faults_yarn.float_,
    "slub": faults_yarn.slub,
    "snarl": faults_yarn.snarl,
    "knot": faults_yarn.knot,
    "reed mark": faults_yarn.reed_mark,
    "weft bar": faults_yarn.weft_bar,
    "barré": faults_yarn.barre,
    "starting mark": faults_yarn.starting_mark,
    "weft crack": faults_yarn.weft_crack,
    "weft curling": faults_yarn.weft_curling,
    "burl mark": faults_yarn.burl_mark,
    "smash": faults_yarn.smash,
    "warp ball": faults_yarn.warp_ball,
    "ladder": faults_knit.ladder,
    "dropped stitch": faults_knit.dropped_stitch,
    "needle line": faults_knit.needle_line,
    "sinker mark": faults_knit.sinker_mark,
    "barriness": faults_yarn.barre,
    "spandex miss": faults_knit.spandex_miss,
    "hole": faults_cloth.hole,
    "tear": faults_cloth.tear,
    "nep": faults_cloth.nep,
    "fuzzy ball": faults_cloth.fuzzy_ball,
    "oil stain": faults_cloth.oil_stain,
    "stain": faults_cloth.stain,
    "colour spot": faults_cloth.colour_spot,
    "contamination": faults_cloth.contamination,
    "crease": faults_cloth.crease,
    "selvedge cut": faults_cloth.selvedge_cut,
}
