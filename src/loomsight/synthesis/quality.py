"""The quality gate: a made defect that nobody could see, or that is a copy, teaches the wrong thing.

A sample is rejected for one of these reasons, in this order:

=====================  ==================================================================================
too small, too large   its mask has too few pixels, or leaves too little good cloth around it
off the cloth          some of it lies where nothing is woven: beside the selvedge
background changed     a pixel farther from the mask than a margin differs from the cloth before
invisible              the change, or that of a part of it, is lost in the cloth's own texture
mask does not fit      the mask is not where the cloth visibly changed
like good cloth        much changed, but into something that this cloth has elsewhere too
copy                   it is nearer to a real known defect than two different real defects are
=====================  ==================================================================================

All but the last need the sample alone. That needs a
:class:`~loomsight.evaluation.fidelity.Memory` of the real defects.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from loomsight.config import Config
from loomsight.evaluation.fidelity import Memory, PatchFeatures, agreement, changed, grown
from loomsight.fabric.regions import split_parts
from loomsight.fabric.types import Picture
from loomsight.fabric.woven import SCALES, WOVEN, beside, spread, texture, visibilities
from loomsight.synthesis.samples import Sample

_GAP = 6  # pixels: pieces of a mask with no more between them are one part
_PART = 0.7  # how visible a part of a mask must be, against the whole


class GateSettings(Config):
    """What a sample must be; the defaults let 95 % of real pasted and of drawn defects pass."""

    visible: float = Field(1.0, ge=0)  # strength of the change, in deviations of the cloth's own texture
    unusual: float = Field(1.2, ge=0)  # how far from what the cloth is elsewhere, in its own spread
    agreement: float = Field(0.3, ge=0, le=1)  # of the mask with what visibly changed
    margin: NonNegativeInt = 12  # pixels around the mask that may change
    smallest: PositiveInt = 6  # pixels of a mask
    largest: float = Field(0.6, gt=0, le=1)  # share of the window
    woven: float = Field(WOVEN, ge=0)  # grey levels by which threads differ, at least, where there is cloth
    beside: float = Field(0.2, ge=0, le=1)  # share of a mask that may lie where there is none


class QualityGate:
    """A :data:`loomsight.synthesis.samples.Judge`.

    Args:
        settings: what a sample must be.
        memory: the real defects it must not copy; without it copies are not looked for.
    """

    def __init__(self, settings: GateSettings | None = None, memory: Memory | None = None) -> None:
        self._settings, self._memory = settings or GateSettings(), memory
        self._features: PatchFeatures | None = None

    def __call__(self, sample: Sample) -> str | None:
        """Why a sample is rejected, in a few words; None if it is good."""
        settings, mask = self._settings, sample.mask
        if mask.sum() < settings.smallest:
            return "too small"
        if mask.mean() > settings.largest:
            return "too large"
        if float(beside(sample.cloth, settings.woven)[mask].mean()) > settings.beside:
            return "off the cloth"
        if (sample.image != sample.cloth)[~grown(mask, settings.margin)].any():
            return "background changed"
        return self._unseen(sample) or ("copy" if self._copied(sample) else None)

    def _unseen(self, sample: Sample) -> str | None:
        settings = self._settings
        parts = split_parts(sample.mask, _GAP)
        weakest = min((visibility(replace(sample, mask=part)) for part in parts), default=0.0)
        if visibility(sample) < settings.visible or weakest < _PART * settings.visible:
            return "invisible"
        if agreement(sample.mask, changed(sample.cloth, sample.image)) < settings.agreement:
            return "mask does not fit"
        return "like good cloth" if strangeness(sample) < settings.unusual else None

    def _copied(self, sample: Sample) -> bool:
        if self._memory is None:
            return False
        self._features = self._features or PatchFeatures()
        return bool(self._memory.copies([sample], self._features)[0])


def visibility(sample: Sample) -> float:
    """How strong the change is within the mask; see :func:`loomsight.fabric.woven.visibilities`."""
    change = sample.image.astype(np.float32) - sample.cloth
    return max(visibilities(change, sample.mask, texture(sample.cloth)))


def strangeness(sample: Sample) -> float:
    """How far the masked cloth is from what the cloth is elsewhere, whatever was there before.

    A generator that weaves new cloth where the old was changes every pixel and makes no defect. Tone at
    several scales, colour and liveliness of the texture are compared by the upper quartile of their distance
    from the cloth's median, within the mask after and in the whole window before; the clearest counts.

    Returns:
        about 1 for good cloth.
    """
    best = 0.0
    for before, after in zip(_maps(sample.cloth), _maps(sample.image), strict=True):
        middle, deviation = np.median(before), spread(before)
        usual = max(float(np.quantile(np.abs(before - middle), 0.75)) / deviation, 0.3)
        best = max(best, float(np.quantile(np.abs(after[sample.mask] - middle), 0.75)) / deviation / usual)
    return best


def _maps(image: Picture) -> list[NDArray[np.float32]]:
    """What is seen of a cloth: tone at each scale, liveliness, and two differences of colours."""
    threads = texture(image)
    red, green, blue = cv2.split(image.astype(np.float32))
    return [
        *(cv2.GaussianBlur(threads, (0, 0), sigma) for sigma in SCALES),
        np.sqrt(cv2.GaussianBlur(threads * threads, (0, 0), 2.0)),
        *(cv2.GaussianBlur(one - other, (0, 0), 1.5) for one, other in ((red, green), (blue, green))),
    ]
