"""A score map as a picture: where it is suspicious, by how much, over the cloth it belongs to."""

from __future__ import annotations

import cv2
import numpy as np

from loomsight.fabric.images import to_grey
from loomsight.fabric.scores import logits
from loomsight.fabric.types import Picture, ScoreMap

_FROM, _TO = -6.0, 3.0  # logits above the threshold: colourless, and the strongest colour


def heat_map(image: Picture, score: ScoreMap, threshold: float) -> Picture:
    """The cloth in pale grey; violet, red and yellow where the score comes near the threshold and passes it.

    Args:
        image: uint8, HW or HWC RGB; score: float32 HW in [0, 1], of the same size.
        threshold: the lowest score that is an alarm, in (0, 1]; two thirds of the way to yellow.

    Returns:
        uint8 HWC RGB.
    """
    hot = ((logits(score) - logits(threshold) - _FROM) / (_TO - _FROM)).clip(0, 1).astype(np.float32)
    colour = cv2.applyColorMap(np.rint(hot * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = 90 + to_grey(image).astype(np.float32) * (165 / 255)
    share = np.minimum(1.0, 1.5 * hot)[..., None] * 0.85
    shown = grey[..., None] * (1 - share) + colour * share
    return np.asarray(np.rint(shown), np.uint8)
