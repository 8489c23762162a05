"""Figures over boxes: COCO's average precision, and region recall at a rate of false alarms.

Average precision is computed by faster-coco-eval after Lin et al. (ECCV 2014): over IoU .50 to .95, at
.50, and of small boxes (under 32 × 32 pixels of the picture). A mill reads another figure: of the true
defects, how many are touched by a region, when so many false alarms come with a megapixel of cloth.

A score map has no boxes: a level cuts a sure defect too wide and a faint one to nothing. So that a
segmenter is compared at all levels as a detector is, each of its regions ends where a defect is half as
likely as at its likeliest, its full width at half maximum: :func:`regions_at_half_maximum`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.evaluation.regions import TOLERANCE, RegionCounts
from loomsight.fabric.regions import Grouping, label_regions
from loomsight.fabric.types import Region, ScoreMap

Boxes = Float[NDArray[np.float32], "n 4"]
MOST = 100
"""Regions of a picture that count, the surest first, as COCO has it."""


@dataclass(frozen=True, slots=True)
class BoxFigures:
    """Average precision in [0, 1]; None where there is no such box.

    Attributes:
        ap: mean over IoU .50, .55, … .95; ap50: at IoU .50; ap_small: as ``ap``, boxes under 32² pixels.
    """

    ap: float | None
    ap50: float | None
    ap_small: float | None


@dataclass
class BoxScores:
    """Collect what was found and what is true, picture by picture, then ask for figures.

    Args:
        types: what is told apart; with ``None`` every defect is of one class.
    """

    types: Sequence[str] | None = None
    megapixels: float = 0.0
    _true: list[tuple[Boxes, tuple[str, ...]]] = field(default_factory=list)
    _found: list[list[Region]] = field(default_factory=list)

    def add(
        self, found: Sequence[Region], boxes: Boxes, types: Sequence[str], shape: tuple[int, int]
    ) -> None:
        """Count one picture of ``shape`` (height, width), with its true boxes (xyxy) and their types."""
        if len(boxes) != len(types):
            raise ValueError(f"each box needs a type, got {len(boxes)} boxes and {len(types)} types")
        self._true.append((np.asarray(boxes, np.float32).reshape(-1, 4), tuple(types)))
        self._found.append(sorted(found, key=lambda region: -region.score)[:MOST])
        self.megapixels += shape[0] * shape[1] / 1e6

    def figures(self) -> BoxFigures:
        """COCO's figures; with several classes, the mean over those that are there."""
        from faster_coco_eval import COCO, COCOeval_faster

        names = ("defect",) if self.types is None else tuple(self.types)
        number = {name: k for k, name in enumerate(names, 1)}
        true: list[dict[str, Any]] = []
        said: list[dict[str, Any]] = []
        for picture, ((boxes, types), regions) in enumerate(zip(self._true, self._found, strict=True), 1):
            for box, name in zip(boxes, types, strict=True):
                kind = number.get("defect" if self.types is None else name)
                if kind is not None:
                    own = {"id": len(true) + 1, "image_id": picture, "category_id": kind, "iscrowd": 0}
                    true.append({**own, **_coco(box)})
            for region in regions:
                kind = number.get("defect" if self.types is None else region.type)
                if kind is not None:
                    own = {"id": len(said) + 1, "image_id": picture, "category_id": kind}
                    said.append({**own, "score": region.score, **_coco(np.array(region.box, np.float32))})
        if not true:
            return BoxFigures(None, None, None)
        if not said:
            return BoxFigures(0.0, 0.0, 0.0)
        images = [{"id": k + 1} for k in range(len(self._true))]
        categories = [{"id": k, "name": name} for name, k in number.items()]
        data: dict[str, Any] = {"images": images, "categories": categories, "annotations": true}
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(data)
            evaluation = COCOeval_faster(truth, truth.loadRes(said), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ap, ap50, _, small = (float(value) for value in evaluation.stats[:4])
        return BoxFigures(*(None if value < 0 else value for value in (ap, ap50, small)))

    def recall_at(self, rate: float) -> float | None:
        """The share of true defects that a region touches, at the lowest threshold with at most ``rate``
        false alarms per megapixel over these pictures; None where there are no defects."""
        alarms, found = self._scores()
        if not found.size:
            return None
        allowed = int(rate * self.megapixels)
        falling = np.sort(alarms)[::-1]
        threshold = falling[allowed] if allowed < len(falling) else -np.inf
        return float(np.mean(found > threshold))

    def _scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The score of each false alarm, and for each true defect the highest score on it (−∞: none)."""
        alarms: list[float] = []
        found: list[float] = []
        for (boxes, _), regions in zip(self._true, self._found, strict=True):
            touch = touching(boxes, regions)
            scores = np.array([region.score for region in regions])
            found += [float(scores[row].max(initial=-np.inf)) for row in touch]
            alarms += scores[~touch.any(axis=0)].tolist()
        return np.array(alarms), np.array(found)


def count_boxes(found: Sequence[Region], boxes: Boxes, shape: tuple[int, int]) -> RegionCounts:
    """Compare the boxes of regions with those of true defects, in a picture of ``shape`` (height, width)."""
    touch = touching(boxes, found)
    return RegionCounts(
        defects=len(boxes),
        found=int(touch.any(axis=1).sum()),
        alarms=len(found),
        false_alarms=int((~touch.any(axis=0)).sum()),
        pixels=shape[0] * shape[1],
    )


def regions_at_half_maximum(
    score: ScoreMap, threshold: float, grouping: Grouping, *, weight: float
) -> list[Region]:
    """The regions of a segmenter's map, each as far as a defect is half as likely as at its likeliest.

    Args:
        score: float32 HW in [0, 1], the sigmoid of the segmenter's logits.
        threshold, grouping: what is a region, as :func:`loomsight.fabric.regions.label_regions`.
        weight: of a defect pixel in the loss that the segmenter learned by, by which its scores are too high
            for probabilities.

    Returns:
        regions in no order, their score the highest in them, their length the longer side of their box.
    """
    from scipy.ndimage import find_objects, maximum

    count, labels = label_regions(score, threshold, grouping)
    if not count:
        return []
    highest = np.concatenate([[np.nan], maximum(score, labels, np.arange(1, count + 1))])
    likely, peaks = (of / (of + weight * (1 - of)) for of in (score, highest.astype(np.float32)))
    inner = labels * (likely >= peaks[labels] / 2)
    areas = np.bincount(inner.ravel(), minlength=count + 1)
    found = []
    for number, (rows, columns) in enumerate(find_objects(inner, max_label=count), 1):
        box = (columns.start, rows.start, columns.stop, rows.stop)
        length = float(max(box[2] - box[0], box[3] - box[1]))
        found.append(Region(box, int(areas[number]), length, float(highest[number])))
    return found


def touching(boxes: Boxes, regions: Sequence[Region]) -> NDArray[np.bool_]:
    """Which true box is touched by which region, (boxes, regions)."""
    a = np.asarray(boxes, np.float32).reshape(-1, 1, 4)
    b = np.array([region.box for region in regions], np.float32).reshape(1, -1, 4)
    near = float(TOLERANCE)
    return np.asarray(((a[..., :2] < b[..., 2:] + near) & (b[..., :2] < a[..., 2:] + near)).all(axis=-1))


def _coco(box: NDArray[np.float32]) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
