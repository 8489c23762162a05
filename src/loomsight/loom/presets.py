"""Cloth by the names of the trade, and random cloth to learn from."""

from __future__ import annotations

import difflib

import numpy as np

from loomsight.errors import UsageError
from loomsight.loom.spec import ClothSpec
from loomsight.loom.weaves import STRUCTURES, construction

PRESETS: dict[str, ClothSpec] = {
    "sheeting": ClothSpec(ends_per_cm=24, picks_per_cm=22, hairiness=0.2),
    "canvas": ClothSpec(ends_per_cm=12, picks_per_cm=11, twist=6, warp_colour=(196, 178, 142),
                        weft_colour=(190, 172, 136)),
    "oxford": ClothSpec(structure="basket 2/2", ends_per_cm=26, picks_per_cm=24, warp_colour=(120, 150, 200),
                        weft_colour=(232, 232, 228)),
    "gabardine": ClothSpec(structure="twill 2/1", ends_per_cm=30, picks_per_cm=20, warp_colour=(150, 132, 98),
                           weft_colour=(140, 122, 90), sheen=0.6),
    "denim": ClothSpec(structure="twill 3/1", ends_per_cm=25, picks_per_cm=18, cover=0.97, twist=6,
                       warp_colour=(52, 66, 108), weft_colour=(205, 205, 200), gap_colour=(18, 22, 36),
                       thickness_noise=0.14, tone_noise=0.07),
    "serge": ClothSpec(structure="twill 2/2", ends_per_cm=24, picks_per_cm=22, hairiness=0.4,
                       warp_colour=(66, 70, 88), weft_colour=(70, 74, 92)),
    "herringbone": ClothSpec(structure="herringbone", ends_per_cm=18, picks_per_cm=17, hairiness=0.5,
                             warp_colour=(150, 142, 130), weft_colour=(62, 56, 52)),
    "diamond": ClothSpec(structure="diamond twill", ends_per_cm=20, picks_per_cm=20, hairiness=0.3,
                         warp_colour=(196, 186, 168), weft_colour=(96, 74, 62)),
    "drill": ClothSpec(structure="broken twill", ends_per_cm=24, picks_per_cm=18, warp_colour=(98, 108, 84),
                       weft_colour=(106, 116, 92)),
    "sateen": ClothSpec(structure="satin 5", ends_per_cm=34, picks_per_cm=26, sheen=0.9, fibre=0.03,
                        warp_colour=(178, 60, 74), weft_colour=(168, 54, 68)),
    "ticking": ClothSpec(structure="satin 8", ends_per_cm=36, picks_per_cm=30, sheen=1.0, fibre=0.02,
                        warp_order=(48, 16), warp_colour=(232, 226, 208), weft_colour=(96, 108, 140)),
    "dobby": ClothSpec(structure="dobby", ends_per_cm=22, picks_per_cm=22, warp_colour=(214, 216, 222),
                       weft_colour=(112, 138, 178)),
    "houndstooth": ClothSpec(structure="twill 2/2", ends_per_cm=18, picks_per_cm=18, hairiness=0.4,
                             warp_order=(4, 4), weft_order=(4, 4), warp_colour=(226, 222, 212),
                             weft_colour=(34, 34, 38)),
    "gingham": ClothSpec(ends_per_cm=22, picks_per_cm=22, warp_order=(24, 24), weft_order=(24, 24),
                         warp_colour=(232, 232, 230), weft_colour=(60, 96, 168)),
    "regatta": ClothSpec(ends_per_cm=24, picks_per_cm=22, warp_order=(12, 12), warp_colour=(60, 84, 140),
                         weft_colour=(232, 232, 230)),
    "corduroy": ClothSpec(structure="corduroy", ends_per_cm=22, picks_per_cm=24, warp_colour=(104, 66, 38),
                          weft_colour=(140, 90, 50)),
    "gauze": ClothSpec(structure="gauze", ends_per_cm=9, picks_per_cm=10, warp_colour=(226, 224, 216),
                       weft_colour=(220, 218, 210), gap_colour=(52, 58, 66)),
    "printed": ClothSpec(ends_per_cm=22, picks_per_cm=22, print="leaves", print_colour=(70, 120, 90),
                         warp_colour=(232, 228, 214), weft_colour=(228, 224, 210)),
    "jersey": ClothSpec(structure="jersey", ends_per_cm=12, picks_per_cm=15, hairiness=0.3,
                        warp_colour=(150, 156, 164), weft_colour=(150, 156, 164)),
    "breton": ClothSpec(structure="jersey", ends_per_cm=12, picks_per_cm=15, weft_order=(14, 7),
                        warp_colour=(44, 54, 92), weft_colour=(228, 226, 218)),
    "rib": ClothSpec(structure="rib 2/2", ends_per_cm=11, picks_per_cm=13, warp_colour=(92, 44, 54),
                     weft_colour=(120, 58, 70)),
    "interlock": ClothSpec(structure="interlock", ends_per_cm=12, picks_per_cm=14,
                           weft_colour=(216, 208, 196)),
    "pique": ClothSpec(structure="pique", ends_per_cm=10, picks_per_cm=13, weft_colour=(84, 128, 112)),
    "fleece": ClothSpec(structure="fleece", weft_colour=(186, 188, 186), relief=0.3),
}  # fmt: skip
"""Qualities, at 0.1 mm/px unless said."""

RANDOM = ("random", "woven", "knitted")
"""Domain randomisation: any cloth, or any of that construction."""


def preset(name: str, rng: np.random.Generator) -> ClothSpec:
    """A quality of `PRESETS`, or random cloth for a name of `RANDOM`.

    Raises:
        UsageError: no such name; it says the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name not in RANDOM:
        near = difflib.get_close_matches(name, [*PRESETS, *RANDOM], n=1, cutoff=0.0)[0]
        raise UsageError("no such preset", where=name, why=f"the nearest is {near}")
    among = [structure for structure in STRUCTURES if name in ("random", construction(structure))]
    return ClothSpec.random(rng, among)
