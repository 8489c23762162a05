"""One answer from two networks: type and box from the detector, shape from the segmenter.

Each network's score is counted in logits from where its own alarms on good cloth end: its *margin*. That is
counted, not extrapolated: from little cloth a threshold for the promise lies logits above all that was seen,
by luck more for one network than for the other, and the stricter one would have no say. A region of the score
map joins the surest box that it lies on, or a part of that box where tiles saw pieces, as the shape of that
defect, and their margins add up as evidence does: log(eᵃ + eᵇ + eᵃ⁺ᵇ). A box may hold many regions, but no
region ties two boxes together: a streak of faint regions would make one box of a whole picture. A box that
holds less than a quarter of a region is of a part of that defect, and grows to hold all of it; of one that is
no alarm itself only the part of each region counts that fits it best. So a defect that one network sees
clearly is found though the other does not see it, and one that both see faintly, each a little below, is
found as well; what one sees faintly and the other not at all is not. The promise is kept by the fused
threshold, set on good cloth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from loomsight.detection.joining import overlap
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.regions import Grouping, find_regions
from loomsight.fabric.types import UNKNOWN, Box, Region, ScoreMap

REACH = 3.0
"""Logits below its zero to which a network's answer counts, if the other agrees."""
_NEAR = 4  # pixels between a region and a box of one defect
_PART = 0.25  # of a region's box: what holds less of it is of a part of the defect
_SURE = 1e-6  # from 0 and 1: a score's logit stays finite


@dataclass(frozen=True, slots=True)
class FusionPoint:
    """The thresholds that two networks are fused at.

    Attributes:
        segmenter, detector: the score, in (0, 1], that each one's margin is counted from.
        margin: logits that the evidence of both must reach.
        min_area, merge_gap, faint: of the score map's regions, which are cut at ``segmenter``, see
            :class:`Grouping`.
        threshold: the score that a defect at this margin is given; None: ``segmenter``.
    """

    segmenter: float
    detector: float
    margin: float
    min_area: int
    merge_gap: int
    faint: float = 1.0
    threshold: float | None = None

    @classmethod
    def of_map(cls, threshold: float, grouping: Grouping) -> FusionPoint:
        """That of a map alone, beside which no detector stands."""
        return cls(threshold, 1.0, 0.0, grouping.min_area, grouping.merge_gap, grouping.faint)

    def set_by(self, together: OperatingPoint, segmenter: OperatingPoint) -> FusionPoint:
        """The same with the margin of a promise.

        Args:
            together: of the evidence of both networks on good cloth, the sigmoid of each margin.
            segmenter: of the map, by the same promise: what a defect at this margin is given as score.
        """
        return replace(self, margin=max(0.0, _logit(together.threshold)), threshold=segmenter.threshold)

    @property
    def alarm(self) -> float:
        """The score of a defect whose evidence is just enough."""
        return self.segmenter if self.threshold is None else self.threshold

    @property
    def grouping(self) -> Grouping:
        """What is one region of the score map."""
        return Grouping(self.min_area, self.merge_gap, self.faint)


def fuse(
    score: ScoreMap, boxes: Sequence[Region], point: FusionPoint, *, faint: bool = False
) -> list[Region]:
    """The defects of a picture, surest first.

    Args:
        score: the segmenter's map, float32 HW in [0, 1].
        boxes: what the detector found, its faint answers too.
        faint: also what there is not evidence enough for.

    Returns:
        regions at or above the fused threshold, whose ``score`` is on the segmenter's scale, where the fused
        threshold is ``point.alarm``. A defect that the segmenter does not see has the area and the length
        of its box; one that the detector does not see has the segmenter's box. Its type is "unknown" there,
        and where a box that is no alarm itself only agrees.
    """
    groups = evidence(score, boxes, point)
    found = [_region(group, point) for group in groups if faint or group.margin >= point.margin]
    return sorted(found, key=lambda region: (-region.score, region.box))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What both networks say of one defect: its regions, its box if it has one, and the margin of both."""

    regions: tuple[Region, ...]
    box: Region | None
    margin: float


def evidence(score: ScoreMap, boxes: Sequence[Region], point: FusionPoint) -> list[Evidence]:
    """Every possible defect of a picture with its margin, in no order."""
    low = _sigmoid(_logit(point.segmenter) - REACH)
    regions = find_regions(score, point.segmenter, point.grouping)
    for faint in find_regions(score, low, point.grouping):
        if faint.score < point.segmenter:
            regions.append(faint)
    faint_box = _sigmoid(_logit(point.detector) - REACH)
    kept = sorted((box for box in boxes if box.score >= faint_box), key=lambda box: -box.score)
    of_box: list[list[Region]] = [[] for _ in kept]
    alone: list[Region] = []
    for region in regions:
        k = next((k for k, box in enumerate(kept) if _on_one_defect(region, box)), None)
        (alone if k is None else of_box[k]).append(region)
    together = [
        Evidence(tuple(own), box, _together(_margin(own, point.segmenter), _margin([box], point.detector)))
        for box, own in zip(kept, of_box, strict=True)
    ]
    return together + [Evidence((one,), None, _margin([one], point.segmenter)) for one in alone]


def _on_one_defect(region: Region, box: Region) -> bool:
    """Whether a third of either lies on the other, or on a part of it."""
    grown = np.array([-_NEAR, -_NEAR, _NEAR, _NEAR])
    a, parts = np.array(region.box) + grown, np.array(box.parts or (box.box,)) + grown
    sides = np.minimum(a[2:], parts[:, 2:]) - np.maximum(a[:2], parts[:, :2])
    areas = np.prod(parts[:, 2:] - parts[:, :2], axis=1).clip(max=np.prod(a[2:] - a[:2]))
    return bool((np.prod(sides.clip(0), axis=1) * 3 >= areas).any())


def _margin(answers: Sequence[Region], threshold: float) -> float:
    return max((_logit(one.score) for one in answers), default=-math.inf) - _logit(threshold)


def _together(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    if low == -math.inf:
        return high
    return high + math.log1p(math.exp(low - high) + math.exp(low))


def _region(group: Evidence, point: FusionPoint) -> Region:
    score = _sigmoid(group.margin - point.margin + _logit(point.alarm))
    if group.box is None:
        return replace(group.regions[0], score=score, type=UNKNOWN)
    if not group.regions:
        x0, y0, x1, y1 = group.box.box
        return replace(group.box, area=(x1 - x0) * (y1 - y0), score=score)
    level = min(0.0, _margin(group.regions, point.segmenter))
    if _margin([group.box], point.detector) >= level:
        regions, box, kind = group.regions, group.box.box, group.box.type
    else:  # a box that only agrees neither names a defect, nor gathers what is faint itself
        regions = tuple(one for one in group.regions if _margin([one], point.segmenter) >= level)
        box, kind = _under(group.box, regions), UNKNOWN
    # the pieces of one defect that a box holds together: as long as they reach
    all_of = np.array([one.box for one in regions])
    reach = max(all_of[:, 2].max() - all_of[:, 0].min(), all_of[:, 3].max() - all_of[:, 1].min())
    length = regions[0].length if len(regions) == 1 else float(reach)
    return Region(_holding(box, all_of), sum(one.area for one in regions), length, score, kind)


def _under(box: Region, regions: Sequence[Region]) -> Box:
    """What of a faint box is of these regions: an unsure one goes on from tile to tile through a picture."""
    met = []
    for region in regions:
        pieces = (replace(box, box=part, parts=()) for part in box.parts or (box.box,))
        parts = np.array([piece.box for piece in pieces if _on_one_defect(region, piece)])
        met.append(parts[np.argmax(overlap(parts, np.broadcast_to(region.box, parts.shape)))])
    return _hull(np.array(met))


def _holding(box: Box, regions: Int[NDArray[np.int_], "n 4"]) -> Box:
    """A box, grown to hold those regions of which it holds a part only."""
    ours = np.array(box)
    shared = np.minimum(regions[:, 2:], ours[2:]) - np.maximum(regions[:, :2], ours[:2])
    areas = np.prod(regions[:, 2:] - regions[:, :2], axis=1)
    beyond = regions[np.prod(shared.clip(0), axis=1) < _PART * areas]
    return _hull(np.vstack([ours, beyond]))


def _hull(boxes: Int[NDArray[np.int_], "n 4"]) -> Box:
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    return x0, y0, x1, y1


def _logit(p: float) -> float:
    p = min(max(p, _SURE), 1 - _SURE)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
