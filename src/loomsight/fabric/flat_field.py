"""Flat field: the lines that a line camera draws into every picture, learned from good cloth and taken out.

A dusty or weak pixel of a line camera, or a scratch on the glass before it, makes a bright or dark line that
stands in every picture at the same column. To a network it looks like a lost or a coarse end. Cloth moves
sideways under the camera and its yarns differ, so what all good pictures share at a column is the camera's:

1. a column's level is the median over its pixels, relative to the columns around it (median of 65);
2. its gain is the median of that over the pictures;
3. a gain is corrected where it is far from 1 beside other columns, all pictures agree on it, and the dark and
   the bright pixels of the column have it alike: a coarse end that runs through all pictures is hidden
   wherever the weft lies over it, the camera's line is not.

Stripes of the cloth itself are many columns and no rarity, so they are left alone. The correction is the
multiplicative part of EMVA 1288's photo response non-uniformity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray
from scipy import ndimage

from loomsight.fabric.images import to_grey
from loomsight.fabric.types import Picture

LEAST = 5  # pictures: with fewer a yarn that runs through all of them would be called the camera's
_AROUND = 65  # columns that a column is compared with
_RARE = 6.0  # robust deviations, over the columns, from which a gain is far from 1
_AGREED = 5.0  # robust deviations, over the pictures, that a gain must exceed
_DARK, _BRIGHT = 15, 85  # percentiles of a column's pixels
_ALIKE = 0.5  # share of the gain that its dark and its bright pixels must show
_FAINT = 0.02  # a gain within this of 1 is not seen
_MOST = 0.02  # share of columns: where more are far from 1, it is the cloth's pattern
_REACH = 2  # columns beside a line that belong to its blur


@dataclass(frozen=True, slots=True)
class FlatField:
    """What each column of a camera makes of the light; 1 where it is like its neighbours."""

    gains: Float32[NDArray[np.float32], " w"]

    @property
    def lines(self) -> int:
        """How many separate lines the camera draws."""
        return int(self._labels().max(initial=0))

    def _labels(self) -> NDArray[np.int32]:
        return np.asarray(ndimage.label(self.gains != 1)[0], np.int32)

    @property
    def text(self) -> str:
        """What a person should know of it."""
        labels, apart = self._labels(), np.abs(self.gains - 1)
        at = ", ".join(str(int(np.argmax(apart * (labels == n)))) for n in range(1, min(self.lines, 5) + 1))
        lines = f"{self.lines} line{'s' * (self.lines != 1)}"
        more = ", …" if self.lines > 5 else ""
        return f"the camera draws {lines} into every picture, at column {at}{more}: taken out; clean it"

    def correct(self, image: Picture) -> Picture:
        """The picture without the lines; one of another width comes back as it is.

        Args:
            image: uint8, HW or HWC RGB.
        """
        if image.shape[1] != len(self.gains) or not self.lines:
            return image
        columns = np.flatnonzero(self.gains != 1)
        gains = self.gains[columns].reshape((1, -1) + (1,) * (image.ndim - 2))
        corrected = image.copy()
        corrected[:, columns] = np.clip(np.rint(image[:, columns] / gains), 0, 255).astype(np.uint8)
        return corrected


def flat_field(pictures: Sequence[Picture]) -> FlatField | None:
    """Learn it from good pictures of one camera that stands still; None where it draws no lines.

    Args:
        pictures: uint8, HW or HWC RGB, in the camera's own columns.
    """
    if len(pictures) < LEAST or len({image.shape[1] for image in pictures}) > 1:
        return None
    shares = [np.percentile(to_grey(image), (_DARK, 50, _BRIGHT), axis=0) for image in pictures]
    dark, middle, bright = np.stack(shares, axis=1).astype(np.float32)
    relative = _beside(middle)
    gains = np.median(relative, axis=0)
    everywhere = np.ones(gains.shape, np.bool_)
    for part in (dark, bright):
        own = np.median(_beside(part), axis=0) - 1
        everywhere &= own * np.sign(gains - 1) > _ALIKE * np.abs(gains - 1)
    apart = np.abs(gains - 1)
    spread = _deviation(relative, axis=0)
    limit = max(_RARE * float(_deviation(gains, axis=0)), _FAINT)
    seeds = everywhere & (apart > limit) & (apart > _AGREED * spread / np.sqrt(len(pictures)))
    if not seeds.any() or seeds.mean() > _MOST:
        return None
    reach = cv2.dilate(seeds.astype(np.uint8)[None], np.ones((1, 2 * _REACH + 1), np.uint8))[0] > 0
    return FlatField(np.where(reach, gains, 1).astype(np.float32))


def _beside(levels: Float32[NDArray[np.float32], "n w"]) -> Float32[NDArray[np.float32], "n w"]:
    """Each column's level as a share of that of the columns around it."""
    around = ndimage.median_filter(levels, size=(1, min(_AROUND, levels.shape[1])), mode="nearest")
    return np.asarray(levels / np.maximum(around, 1), np.float32)


def _deviation(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """A standard deviation that a few outliers do not move."""
    middle = np.median(values, axis=axis, keepdims=True)
    return np.asarray(1.4826 * np.median(np.abs(values - middle), axis=axis), np.float32)
