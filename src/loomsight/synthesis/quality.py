"""The quality gate: a made defect that nobody could see, or that is a copy, teaches the wrong thing.

A sample is rejected for one of these reasons, in this order:

=====================  ==================================================================================
too small, too large   its mask has too few pixels, or leaves too little good cloth around it
background changed     a pixel farther from the mask than a margin differs from the cloth before
invisible              the change is lost in the cloth's own texture
mask does not fit      the mask is not where the cloth visibly changed
copy                   it is nearer to a real known defect than two different real defects are
=====================  ==================================================================================

The first four need the sample alone. The last needs a :class:`Memory` of the real defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from loomsight.config import Config
from loomsight.evaluation.fidelity import (
    PatchFeatures,
    agreement,
    around,
    changed,
    distances,
    grown,
    near,
)
from loomsight.fabric.types import Mask, Picture
from loomsight.synthesis.patches import Look
from loomsight.synthesis.samples import Sample

_SIDE = 64  # pixels of the square in which defects are compared
_RIM = 4  # pixels of cloth around a defect that are compared with it
_SCALES = (1.0, 1.5, 3.0)  # pixels: as fine as a yarn, and as an eye that does not resolve the weave


class GateSettings(Config):
    """What a sample must be; the defaults let 95 % of real pasted and of drawn defects pass."""

    visible: float = Field(1.0, ge=0)  # strength of the change, in deviations of the cloth's own texture
    agreement: float = Field(0.3, ge=0, le=1)  # of the mask with what visibly changed
    margin: NonNegativeInt = 12  # pixels around the mask that may change
    smallest: PositiveInt = 6  # pixels of a mask
    largest: float = Field(0.6, gt=0, le=1)  # share of the window


class RealDefect(Protocol):
    """A real defect with some of its own cloth: uint8 HWC RGB and its bool HW mask."""

    @property
    def image(self) -> Picture: ...
    @property
    def mask(self) -> Mask: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """The real defects that a generator has learned from, as features, and how near is a copy.

    Attributes:
        features: float32 (n, d), a row for each real defect and each of its mirror images.
        limit: a sample nearer to one of them is a copy.
    """

    features: Float[NDArray[np.float32], "n d"]
    limit: float

    @classmethod
    def of(cls, real: Sequence[RealDefect], features: PatchFeatures | None = None) -> Self:
        """Remember real defects.

        Args:
            real: every defect once, as :func:`loomsight.synthesis.paste.cut_parts` cuts them: the limit
                is the distance that one in twenty of them has to its nearest other.

        Raises:
            ValueError: fewer than two defects.
        """
        features = features or PatchFeatures()
        squares = [_isolated(one.image, one.mask, Look.of(one.image, one.mask)) for one in real]
        plain = features(squares)
        mirrored = [features([square[turn] for square in squares]) for turn in _MIRRORED]
        return cls(np.concatenate([plain, *mirrored]), near(plain))

    def distance(self, seen: Float[NDArray[np.float32], "n d"]) -> Float[NDArray[np.float64], " n"]:
        """Of each row to the nearest real defect."""
        return np.asarray(distances(seen, self.features).min(axis=1))


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
        if (sample.image != sample.cloth)[~grown(mask, settings.margin)].any():
            return "background changed"
        if visibility(sample) < settings.visible:
            return "invisible"
        if agreement(mask, changed(sample.cloth, sample.image)) < settings.agreement:
            return "mask does not fit"
        return "copy" if self._copied(sample) else None

    def _copied(self, sample: Sample) -> bool:
        if self._memory is None:
            return False
        self._features = self._features or PatchFeatures()
        square = _isolated(sample.image, sample.mask, Look.of(sample.cloth))
        return bool(self._memory.distance(self._features([square]))[0] < self._memory.limit)


def visibility(sample: Sample) -> float:
    """How strong the change is within the mask, in deviations of the cloth's own texture.

    Before and after are smoothed alike, at several scales, so that noise averages out and a tone does not.
    The texture is measured with lighting left out and by its median deviation, so that a selvedge in the
    window does not hide a defect beside it. The scale at which the change is clearest counts.

    Returns:
        0 for no change; about 1 where an attentive eye begins to see it.
    """
    change = sample.image.astype(np.float32) - sample.cloth
    grey = sample.cloth.mean(axis=2, dtype=np.float32)
    texture = grey - cv2.blur(grey, (25, 25))
    best = 0.0
    for sigma in _SCALES:
        own = cv2.GaussianBlur(texture, (0, 0), sigma)
        deviation = max(1.4826 * float(np.median(np.abs(own - np.median(own)))), 0.7)
        seen = cv2.GaussianBlur(change, (0, 0), sigma)[sample.mask]
        strength = float(np.sqrt(np.square(seen).mean(axis=0).max()))  # of the colour that changed most
        best = max(best, strength / deviation)
    return best


_MIRRORED = (np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1])


def _isolated(image: Picture, mask: Mask, look: Look) -> Picture:
    """The square around a defect as it differs from its cloth, the cloth itself made an even grey."""
    cut, own = around(image, mask, _SIDE)
    plain = ((look.encode(cut) + 1) * 127.5).transpose(1, 2, 0).astype(np.uint8)
    return np.where(grown(own, _RIM)[..., None], plain, np.uint8(127))
