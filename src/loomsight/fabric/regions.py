"""From a score map to regions: connected parts above a threshold, with their box, area, length and score.

A threshold alone cuts one defect into pieces: a line of the weave is sure in some places and fainter between
them. So pieces are one region where *faint* pixels join them, below the threshold but above nearly all of
good cloth (hysteresis; Canny, *A Computational Approach to Edge Detection*, PAMI 1986). A faint pixel joins,
but it is never an alarm, and counts for no area.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.fabric.types import Mask, Region, ScoreMap

MOST_FAINT = 0.1
"""The share of a picture that can be faint: where all of it is strange, a thread in it stays a region."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which pixels at or above a threshold are one region.

    Attributes:
        min_area: regions with fewer of these pixels than this are none.
        merge_gap: parts with at most this many pixels between them are one.
        faint: the score of pixels through which parts are one, as an 8-connected path, see
            :func:`faint_pixels`; from the threshold on it joins nothing that was not connected before.
    """

    min_area: int = 1
    merge_gap: int = 0
    faint: float = 1.0


EVERY_PIXEL = Grouping()
"""Regions of any size, 8-connected."""


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


def label_regions(
    score: ScoreMap, threshold: float, grouping: Grouping = EVERY_PIXEL
) -> tuple[int, NDArray[np.int32]]:
    """Number the regions of a score map.

    Args:
        score: float32 HW in [0, 1].
        threshold: the lowest score that counts; for example an operating point's.
        grouping: what is one region.

    Returns:
        how many there are, and int32 HW: 0 outside, 1, 2, … on their pixels at or above the threshold.
    """
    count, part, numbers = _numbered(score, threshold, grouping)
    labels = np.zeros(score.shape, np.int32)
    labels[part] = numbers
    return count, labels


def _numbered(
    score: ScoreMap, threshold: float, grouping: Grouping
) -> tuple[int, tuple[slice, slice], NDArray[np.int32]]:
    """How many regions there are, the part of the map that they lie in, and their numbers there."""
    above = score >= threshold
    if not above.any():
        return 0, (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.int32)
    joining = above | faint_pixels(score, grouping.faint) if grouping.faint < threshold else None
    part = span(above if joining is None else joining)  # of a roll mostly a small part
    count, labels = label_parts(above[part], grouping.merge_gap)
    if count > 1 and joining is not None:
        count, labels = _joined(count, labels, above[part], joining[part])
    if count and grouping.min_area > 1:
        large = np.bincount(labels.ravel(), minlength=count + 1) >= grouping.min_area
        large[0] = False
        count, labels = int(large.sum()), (np.cumsum(large, dtype=np.int32) * large)[labels]
    return count, part, labels


def span(where: Mask) -> tuple[slice, slice]:
    """The rows and columns that a mask lies in; none where it is empty."""
    spans = (np.flatnonzero(where.any(axis)) for axis in (1, 0))
    rows, columns = (slice(int(own[0]), int(own[-1]) + 1) if len(own) else slice(0, 0) for own in spans)
    return rows, columns


def faint_pixels(score: ScoreMap, faint: float) -> Mask:
    """The pixels that join pieces: those from this score on that are of the picture's strangest tenth."""
    found = score >= faint
    most = max(1, int(MOST_FAINT * score.size))
    if np.count_nonzero(found) > most:
        found = score >= np.partition(score, score.size - most, axis=None)[-most]
    return np.asarray(found, np.bool_)


def _joined(count: int, labels: NDArray[np.int32], above: Mask, faint: Mask) -> tuple[int, NDArray[np.int32]]:
    """The parts anew, those that lie in one part of the faint pixels as one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    others, through = label_parts(faint)
    pairs = labels[above].astype(np.int64), count + through[above].astype(np.int64)
    nodes = count + others + 1
    graph = coo_array((np.ones(len(pairs[0]), np.bool_), pairs), shape=(nodes, nodes))
    # numbered by their first node, and the parts are the first nodes
    group = connected_components(graph, directed=False)[1][1 : count + 1]
    _, numbers = np.unique(group, return_inverse=True)
    anew = np.concatenate([[0], numbers + 1]).astype(np.int32)
    return int(anew.max()), anew[labels]


def find_regions(score: ScoreMap, threshold: float, grouping: Grouping = EVERY_PIXEL) -> list[Region]:
    """The regions of a score map, in reading order (top to bottom, left to right).

    Args:
        score, threshold, grouping: as :func:`label_regions`.

    Returns:
        regions; ``length`` is the longer side of the smallest rotated rectangle around the pixels, edges
        included, so that a straight thread of n pixels has length n.
    """
    if score.ndim != 2:
        raise ValueError(f"score must be HW, got shape {score.shape}")
    count, (rows, columns), labels = _numbered(score, threshold, grouping)
    if not count:
        return []
    ys, xs = np.nonzero(labels)
    parts = labels[ys, xs]
    ys, xs = ys + rows.start, xs + columns.start
    order = np.argsort(parts, kind="stable")
    ys, xs, parts = ys[order], xs[order], parts[order]
    starts = np.flatnonzero(np.r_[True, parts[1:] != parts[:-1]])
    ends = np.r_[starts[1:], len(parts)]
    peaks = np.maximum.reduceat(score[ys, xs], starts)
    points = np.stack([xs, ys], axis=1).astype(np.int32)
    regions = [
        _region(points[start:end], float(peak)) for start, end, peak in zip(starts, ends, peaks, strict=True)
    ]
    return sorted(regions, key=lambda region: (region.box[1], region.box[0], region.box[3], region.box[2]))


def _region(points: NDArray[np.int32], score: float) -> Region:
    x0, y0 = (int(value) for value in points.min(axis=0))
    x1, y1 = (int(value) + 1 for value in points.max(axis=0))
    # The rectangle is around pixel centres; half a pixel at either end makes it around pixels.
    length = max(cv2.minAreaRect(points)[1]) + 1.0
    return Region(box=(x0, y0, x1, y1), area=len(points), length=float(length), score=score)
