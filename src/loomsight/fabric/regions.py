"""From a score map to regions: connected parts above a threshold, with their box, area, length and score."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.fabric.types import Mask, Region, ScoreMap


def label_parts(mask: Mask, gap: int = 0) -> tuple[int, NDArray[np.int32]]:
    """Number the connected parts of a mask, 8-connected.

    Args:
        mask: bool HW.
        gap: parts with at most this many false pixels between them, along a row, a column or a
            diagonal, are one part: a thread that breaks up in the map stays one region.

    Returns:
        how many parts there are, and int32 HW: 0 outside, 1, 2, … inside.
    """
    if gap < 0:
        raise ValueError(f"gap must be 0 pixels or more, got {gap}")
    pixels = mask.view(np.uint8) if mask.flags.c_contiguous else mask.astype(np.uint8)
    # Two pixels k apart grow into neighbours under a k × k square, and k is the gap between them plus one.
    grown = pixels if gap == 0 else cv2.dilate(pixels, np.ones((gap + 1, gap + 1), np.uint8))
    count, labels = cv2.connectedComponents(grown, connectivity=8, ltype=cv2.CV_32S)
    numbers = np.asarray(labels, np.int32)
    return count - 1, numbers * pixels if gap else numbers


def split_parts(mask: Mask, gap: int = 0) -> list[Mask]:
    """The connected parts of a mask, each as a mask of the whole picture; see :func:`label_parts`."""
    count, labels = label_parts(mask, gap)
    return [labels == label for label in range(1, count + 1)]


def find_regions(score: ScoreMap, threshold: float, *, min_area: int = 1, merge_gap: int = 0) -> list[Region]:
    """The connected parts of ``score >= threshold``, in reading order (top to bottom, left to right).

    Args:
        score: float32 HW in [0, 1].
        threshold: the lowest score that counts; for example an operating point's.
        min_area: regions with fewer pixels than this are left out.
        merge_gap: parts with at most this many pixels between them are one region. Its area counts only
            pixels at or above the threshold.

    Returns:
        regions; ``length`` is the longer side of the smallest rotated rectangle around the pixels, edges
        included, so that a straight thread of n pixels has length n.
    """
    if score.ndim != 2:
        raise ValueError(f"score must be HW, got shape {score.shape}")
    above = score >= threshold
    if not above.any():
        return []
    _, labels = label_parts(above, merge_gap)
    ys, xs = np.nonzero(above)
    parts = labels[ys, xs]
    order = np.argsort(parts, kind="stable")
    ys, xs, parts = ys[order], xs[order], parts[order]
    starts = np.flatnonzero(np.r_[True, parts[1:] != parts[:-1]])
    ends = np.r_[starts[1:], len(parts)]
    peaks = np.maximum.reduceat(score[ys, xs], starts)
    points = np.stack([xs, ys], axis=1).astype(np.int32)
    regions = [
        _region(points[start:end], float(peak))
        for start, end, peak in zip(starts, ends, peaks, strict=True)
        if end - start >= min_area
    ]
    return sorted(regions, key=lambda region: (region.box[1], region.box[0], region.box[3], region.box[2]))


def _region(points: NDArray[np.int32], score: float) -> Region:
    x0, y0 = (int(value) for value in points.min(axis=0))
    x1, y1 = (int(value) + 1 for value in points.max(axis=0))
    # The rectangle is around pixel centres; half a pixel at either end makes it around pixels.
    length = max(cv2.minAreaRect(points)[1]) + 1.0
    return Region(box=(x0, y0, x1, y1), area=len(points), length=float(length), score=score)
