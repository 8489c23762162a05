"""The loom: cloth made yarn by yarn, and defects drawn into real cloth, both with exact masks."""

from loomsight.loom.cloth import Cloth, WovenDefect, weave, weave_roll
from loomsight.loom.drawn import DRAWN_KINDS, draw_defect
from loomsight.loom.faults import WOVEN_KINDS, DefectSpec
from loomsight.loom.presets import PRESETS, preset
from loomsight.loom.spec import ClothSpec
from loomsight.loom.weaves import STRUCTURES

__all__ = [
    "DRAWN_KINDS",
    "PRESETS",
    "STRUCTURES",
    "WOVEN_KINDS",
    "Cloth",
    "ClothSpec",
    "DefectSpec",
    "WovenDefect",
    "draw_defect",
    "preset",
    "weave",
    "weave_roll",
]
