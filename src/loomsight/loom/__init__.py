"""The loom: cloth made yarn by yarn, and defects drawn into real cloth, both with exact masks."""

from loomsight.loom.drawn import DRAWN_KINDS, draw_defect

__all__ = ["DRAWN_KINDS", "draw_defect"]
