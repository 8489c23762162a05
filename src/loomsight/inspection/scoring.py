"""A profile against labelled pictures: the pixels of its map, the regions that it reports, their types.

Pixels are scored where a mask tells of each; regions on every labelled picture, as an inspection reports
them: fused with the detector's boxes if there is one, and not what lies within the profile's margins. Figures
over all thresholds count the fainter regions too. A defect without a box has that of its part of the mask.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from loomsight.detection.fusion import FusionPoint, fuse
from loomsight.evaluation.boxes import MOST, BoxScores, count_boxes
from loomsight.evaluation.confusion import Confusion, pair_types
from loomsight.evaluation.pixels import PixelScores
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.instances import true_boxes
from loomsight.fabric.types import UNKNOWN, LabelledPicture, Picture, Region, ScoreMap
from loomsight.profile import Profile

RATES = (1, 4, 10)
"""False alarms per megapixel that recall is given at."""


class ProfileScores:
    """Add labelled pictures one by one, then ask for figures.

    Args:
        profile: what is scored.
        types: that the pictures' labels tell apart; without any, none are compared.
    """

    def __init__(self, profile: Profile, types: Collection[str] = ()) -> None:
        self._engine, self._detector = profile.engine(), profile.detector()
        point, card = profile.card.operating_point, profile.card.detector
        self._map, self._margin = point, profile.margin
        self._point = FusionPoint.of_map(point.threshold, point.grouping) if card is None else card.fusion
        self._types = tuple(sorted({*types} - {UNKNOWN}))
        self._pixels, self._counts = PixelScores(), RegionCounts()
        self._boxes, self._typed = BoxScores(), BoxScores(self._types)
        self._pairs: list[tuple[str, str]] = []
        self._pictures = self._defective = 0

    def add(self, picture: LabelledPicture) -> None:
        """Look at one picture and compare with its labels."""
        image, mask, across = picture.image, picture.mask, self._margin.across(picture.image)
        score = self._engine.score(image)
        seen = [] if self._detector is None else self._detector.detect(image)
        every = fuse(score, seen, self._point, faint=True)
        found = [one for one in every if not self._margin.hides(one.box, across)]
        if self._types:
            found = self._named(image, score, found)
        boxes, types = true_boxes(picture)
        kept = [number for number, box in enumerate(boxes) if not self._margin.hides(box, across)]
        boxes, types = boxes[kept], [types[number] for number in kept]
        score = self._margin.between(score)
        mask = None if mask is None else self._margin.between(mask)
        shape = score.shape[0], score.shape[1]
        # an alarm at the very threshold is one, however its score was rounded
        alarms = [region for region in found if region.score >= self._point.alarm - 1e-9]
        if mask is not None:
            self._pixels.add(score, mask)
        if mask is not None and self._detector is None:
            self._counts += count_regions(score, mask, self._map.threshold, self._map.grouping)
        else:
            self._counts += count_boxes(alarms, boxes, shape)
        for scores in (self._boxes, self._typed):
            scores.add(found, boxes, types, shape)
        self._pairs += [pair for pair in pair_types(alarms, boxes, types) if pair[0] != UNKNOWN]
        self._pictures += 1
        self._defective += len(boxes) > 0

    def _named(self, image: Picture, score: ScoreMap, found: list[Region]) -> list[Region]:
        """The regions with types, as far as these count for precision and may have one: that takes long."""
        named = list(found)
        asked = [
            number
            for number, one in enumerate(found[:MOST])
            if one.score >= self._point.alarm - 1e-9
            or score[one.box[1] : one.box[3], one.box[0] : one.box[2]].max() >= self._engine.named_from
        ]
        for number, one in zip(asked, self._engine.name(image, [found[k] for k in asked]), strict=True):
            named[number] = one
        return named

    def figures(self) -> dict[str, Any]:
        """All figures by name; None is one that these pictures do not define."""
        boxes = self._boxes.figures()
        return {
            **asdict(self._pixels.figures()),
            "pictures": self._pictures,
            "defective": self._defective,
            "threshold": self._map.threshold,
            "recall": self._counts.recall,
            "false_alarms_per_mpx": self._counts.false_alarms_per_megapixel,
            **{f"recall_at_{rate}": self._boxes.recall_at(rate) for rate in RATES},
            "box_ap": boxes.ap,
            "box_ap50": boxes.ap50,
            "box_ap_small": boxes.ap_small,
            "box_ap50_typed": self._typed.figures().ap50 if self._types else None,
            "types_right": self.confusion().right,
        }

    def confusion(self) -> Confusion:
        """Which type of defect was called what at the profile's threshold; empty without types."""
        return Confusion.of(self._pairs)
