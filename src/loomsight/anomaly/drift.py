"""Has the light, the lens or the yarn changed since a fabric was learned?

Five numbers of a picture and its score map, each cheap, are compared with those of the good cloth that was
learned. They move long before false alarms do, because evened light and a threshold hide the beginning:

* **light**: the logarithm of the brightness; **slope**: of its ratio between the brightest and the darkest
  side; a lamp ages, or shines from elsewhere;
* **contrast**: the logarithm of the weave's contrast by its brightness; **focus**: of the share of the finest
  detail in it; a lens that is out of focus, dust, another yarn;
* **unrest**: the median of the map in logits: the whole cloth is stranger, another lot of yarn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from loomsight.config import Config
from loomsight.fabric.images import to_grey
from loomsight.fabric.light import Plane, sample
from loomsight.fabric.scores import logits
from loomsight.fabric.types import Picture, ScoreMap

LEAST: Mapping[str, float] = MappingProxyType(
    {"light": 0.16, "slope": 0.16, "contrast": 0.2, "focus": 0.3, "unrest": 0.8}
)
"""What each number may differ by at least: good cloth of one day differs by less, whatever it shows."""
ONE_SIDED = ("slope", "unrest")
"""Of these only more is drift: a flatter light and a calmer map are no fault."""
_TIMES = 4.0  # deviations of the good pictures among themselves


class DriftCard(Config):
    """What good cloth showed: each number's median, and how far from it is usual."""

    usual: dict[str, float]
    allowed: dict[str, float]


def reference(pictures: Iterable[Picture], maps: Iterable[ScoreMap]) -> DriftCard:
    """From good cloth as it was learned: whole pictures, and score maps of some of it."""
    seen: dict[str, list[float]] = {name: [] for name in LEAST}
    for picture in pictures:
        for name, value in _of_picture(picture).items():
            seen[name].append(value)
    seen["unrest"] = [unrest(score) for score in maps]
    usual, allowed = {}, {}
    for name, values in seen.items():
        usual[name] = float(np.median(values))
        deviation = 1.48 * float(np.median(np.abs(np.array(values) - usual[name])))
        allowed[name] = max(LEAST[name], _TIMES * deviation)
    return DriftCard(usual=usual, allowed=allowed)


def measure(picture: Picture, score: ScoreMap | None) -> dict[str, float]:
    """The five numbers of a picture, uint8 HW or HWC RGB, and its score map; without that no unrest."""
    return _of_picture(picture) | ({} if score is None else {"unrest": unrest(score)})


def unrest(score: ScoreMap) -> float:
    """The median of a score map, in logits."""
    return float(logits(float(np.median(score[::3, ::3]))))


def sharpness(picture: Picture) -> float:
    """Energy of the finest detail as a share of all contrast: falls when the picture is out of focus."""
    grey = to_grey(picture)
    finest, contrast = (
        float(cv2.meanStdDev(one)[1].item()) ** 2 for one in (cv2.Laplacian(grey, cv2.CV_16S), grey)
    )
    return finest / contrast if contrast > 0 else 0.0


def _of_picture(picture: Picture) -> dict[str, float]:
    light = Plane.of(picture)
    low, high = np.percentile(to_grey(sample(picture, 3)), [16, 84])
    return {
        "light": light.middle,
        "slope": 2 * (abs(light.down) + abs(light.across)),
        "contrast": math.log(max(float(high - low), 1.0)) - light.middle,
        "focus": math.log(max(sharpness(picture), 1e-6)),
    }
