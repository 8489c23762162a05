"""What an inspector counts: defects found, and false alarms per area of cloth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from loomsight.fabric.regions import EVERY_PIXEL, Grouping, label_parts, label_regions
from loomsight.fabric.types import Mask, ScoreMap

TOLERANCE = 3
"""A region counts as on a defect when it comes within this many pixels of it: masks are drawn by hand."""
TRUTH_GAP = 5
"""Parts of a mask with at most this many pixels between them are one defect, drawn in pieces."""


@dataclass(frozen=True, slots=True)
class RegionCounts:
    """Counts of one picture, or with ``+`` of many.

    Attributes:
        defects: true defects; found: how many of them a predicted region touches.
        alarms: predicted regions; false_alarms: how many of them touch no defect.
        pixels: all pixels looked at, of good and of defective pictures.
    """

    defects: int = 0
    found: int = 0
    alarms: int = 0
    false_alarms: int = 0
    pixels: int = 0

    def __add__(self, other: RegionCounts) -> RegionCounts:
        return RegionCounts(
            defects=self.defects + other.defects,
            found=self.found + other.found,
            alarms=self.alarms + other.alarms,
            false_alarms=self.false_alarms + other.false_alarms,
            pixels=self.pixels + other.pixels,
        )

    @property
    def recall(self) -> float | None:
        """The share of defects found; None where there are none."""
        return self.found / self.defects if self.defects else None

    @property
    def false_alarms_per_megapixel(self) -> float | None:
        """False alarms per million pixels; None before any picture."""
        return self.false_alarms / (self.pixels / 1e6) if self.pixels else None


def count_regions(
    score: ScoreMap,
    mask: Mask | None,
    threshold: float,
    grouping: Grouping = EVERY_PIXEL,
    *,
    tolerance: int = TOLERANCE,
    truth_gap: int = TRUTH_GAP,
) -> RegionCounts:
    """Compare the regions of a score map with the defects of a mask.

    Args:
        score: float32 HW in [0, 1].
        mask: bool HW, or None for good cloth.
        threshold, grouping: as :func:`loomsight.fabric.regions.label_regions`.
        tolerance: a region and a defect touch when they have pixels at most this many rows and columns
            apart.
        truth_gap: parts of the mask with at most this many pixels between them are one defect.

    Raises:
        ValueError: the shapes differ.
    """
    if mask is not None and mask.shape != score.shape:
        raise ValueError(f"score and mask must have one shape, got {score.shape} and {mask.shape}")
    alarms, predicted = label_regions(score, threshold, grouping)
    if mask is None or not mask.any():
        return RegionCounts(alarms=alarms, false_alarms=alarms, pixels=score.size)
    defects, true = label_parts(mask, truth_gap)
    hits = np.unique(true[mask & _grown(predicted > 0, tolerance)])
    good_alarms = np.unique(predicted[(predicted > 0) & _grown(mask, tolerance)])
    return RegionCounts(
        defects=defects,
        found=len(hits),
        alarms=alarms,
        false_alarms=alarms - len(good_alarms),
        pixels=score.size,
    )


def _grown(mask: Mask, by: int) -> Mask:
    """The mask and everything at most ``by`` pixels from it."""
    side = 2 * by + 1
    pixels: UInt8[NDArray[np.uint8], "h w"] = mask.astype(np.uint8)
    return np.asarray(cv2.dilate(pixels, np.ones((side, side), np.uint8))).astype(np.bool_)
