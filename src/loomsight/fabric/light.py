"""Even light: the same cloth looks the same under a new lamp, an old one, or one that shines from a side.

A lamp multiplies what the cloth reflects by a smooth field. Here the field is a plane in the logarithm of the
brightness, laid through the medians of small blocks so that neither defects nor a selvedge bend it, and the
picture is divided by it. Afterwards the cloth's contrast is stretched to the same measure for every fabric:
networks that know photographs see little in cloth of two shades of grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from loomsight.errors import DatasetError
from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.types import Box, Picture

SMALLER = 4
"""How many times smaller a small picture is; and of so many rows and columns the light is read from one."""
_BLOCK = 32  # pixels a side
_ROUNDS = 5  # of reweighting
_SORTED = 2**20  # numbers sorted at a time, about
_CONTRAST = 40.0  # grey levels of half the stretched spread
_MOST = 3.0  # times, that contrast is stretched at most: beyond it is the camera's noise
_GAIN = 2.5  # times, that brightness is changed at most: what is darker is no matter of the lamp


@dataclass(frozen=True, slots=True)
class Light:
    """The brightness of a fabric, and how much of it its weave takes.

    Attributes:
        middle: the median of red, green and blue, in (0, 255].
        spread: half the range of grey levels that two thirds of the cloth lie in, above 0.
    """

    middle: tuple[float, float, float]
    spread: float

    @classmethod
    def of(cls, pictures: Iterable[Picture]) -> Self:
        """Of good cloth.

        Raises:
            DatasetError: there is no picture.
        """
        middles, spreads = [], []
        for picture in pictures:
            rgb = to_rgb(sample(picture, 3)).reshape(-1, 3)
            low, high = np.percentile(rgb @ np.full(3, 1 / 3), [16, 84])
            middles.append(np.median(rgb, axis=0))
            spreads.append((high - low) / 2)
        if not middles:
            raise DatasetError("no good cloth to read the light from")
        red, green, blue = np.maximum(np.median(middles, axis=0), 1.0)
        return cls((float(red), float(green), float(blue)), max(float(np.median(spreads)), 1.0))

    @property
    def stretch(self) -> float:
        """How many times contrast grows, at least 1."""
        return float(np.clip(_CONTRAST / self.spread, 1.0, _MOST))

    def even(self, image: Picture, box: Box | None = None) -> Picture:
        """A picture as it would look under even light, with its contrast stretched.

        Args:
            image: uint8, HW or HWC RGB.
            box: xyxy pixels; only this part of the picture is made.

        Returns:
            uint8 HWC RGB; the cloth's middle lies at half of the range.
        """
        height, width = image.shape[:2]
        left, top, right, bottom = box or (0, 0, width, height)
        return self._evened(image[top:bottom, left:right], brightness(image, box))

    def even_at(self, image: Picture, boxes: Sequence[tuple[int, int, int, int]]) -> list[Picture]:
        """Some parts of a picture as :meth:`even` would give them, for a share of its time.

        The light of the whole picture is read from a fourth of its rows and columns.

        Args:
            boxes: of each part top, left, bottom and right, within the picture.
        """
        height, width = image.shape[:2]
        plane = Plane.of(image)
        parts = []
        for top, left, bottom, right in boxes:
            rows, columns = np.arange(top, bottom) / SMALLER, np.arange(left, right) / SMALLER
            size = -(-height // SMALLER), -(-width // SMALLER)
            field = np.exp(plane.at(rows, columns, size)).astype(np.float32)
            parts.append(self._evened(image[top:bottom, left:right], field))
        return parts

    def even_small(self, image: Picture) -> Picture:
        """The picture :data:`SMALLER` times smaller and under even light, for a share of its time."""
        height, width = (max(1, side // SMALLER) for side in image.shape[:2])
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        plane = Plane.of(image)
        field = np.exp(plane.at(np.arange(height), np.arange(width), (height, width)))
        return self._evened(small, field.astype(np.float32))

    def _evened(self, image: Picture, field: Float[NDArray[np.float32], "h w"]) -> Picture:
        middle = np.array(self.middle, np.float32)
        gain = np.clip(float(middle.mean()) / field, 1 / _GAIN, _GAIN) * np.float32(self.stretch)
        lit = cv2.multiply(to_rgb(image), cv2.merge([gain] * 3), dtype=cv2.CV_32F)
        offset = np.append(
            127.5 - self.stretch * middle.astype(np.float64), 0.0
        )  # OpenCV's scalars have four
        return np.asarray(cv2.add(lit, offset, dtype=cv2.CV_8U), np.uint8)


def sample(image: Picture, step: int) -> Picture:
    """One row and column of each ``step``, each at another place: a weave that repeats so often is all seen.

    Args:
        image: uint8, HW or HWC RGB.
    """
    rows, columns = (_places(side, step) for side in image.shape[:2])
    return np.asarray(image.take(rows, axis=0).take(columns, axis=1), np.uint8)


def _places(side: int, step: int) -> NDArray[np.intp]:
    number = np.arange(-(-side // step))
    places: NDArray[np.intp] = np.minimum(step * number + (step - 1) * number % step, side - 1)
    return places


def brightness(image: Picture, box: Box | None = None) -> Float[NDArray[np.float32], "h w"]:
    """The brightness of the cloth at each place, a smooth field: what the lamp gives there.

    Args:
        image: uint8, HW or HWC RGB.
        box: xyxy pixels; only of this part, as all of the picture shows it.

    Returns:
        grey levels above 0; of a picture smaller than three blocks a side along that side constant.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box or (0, 0, width, height)
    field = Plane.through(image, _BLOCK).at(np.arange(top, bottom), np.arange(left, right), (height, width))
    return np.exp(field).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Plane:
    """The logarithm of the brightness: in the middle, and by how much more it is below and on the right."""

    middle: float
    down: float
    across: float

    @classmethod
    def of(cls, image: Picture) -> Self:
        """Of a picture, uint8 HW or HWC RGB, read from a fourth of its rows and columns."""
        return cls.through(sample(image, SMALLER), _BLOCK // SMALLER)

    @classmethod
    def through(cls, image: Picture, block: int) -> Self:
        """Laid through the medians of blocks of so many pixels a side."""
        grey = to_grey(image)
        height, width = grey.shape
        rows, columns = max(1, height // block), max(1, width // block)
        blocks = grey[: rows * (height // rows), : columns * (width // columns)]
        blocks = blocks.reshape(rows, height // rows, columns, width // columns).swapaxes(1, 2)
        seen = np.log(np.maximum(_medians(blocks.reshape(rows * columns, -1)), 1.0))
        ys, xs = (_centred(count) for count in (rows, columns))
        basis = [np.ones(rows * columns)]
        basis += [np.repeat(ys, columns)] if rows >= 3 else []
        basis += [np.tile(xs, rows)] if columns >= 3 else []
        plane = np.stack(basis, axis=1)
        fit = np.zeros(plane.shape[1])
        fit[0] = np.median(seen)
        for _ in range(_ROUNDS):  # Tukey's biweight: a block far off the plane has no say
            off = seen - plane @ fit
            scale = max(4.7 * 1.48 * float(np.median(np.abs(off))), 0.02)
            weight = np.where(np.abs(off) < scale, (1 - (off / scale) ** 2) ** 2, 0.0)
            pulled = plane * weight[:, None]
            fit = np.linalg.lstsq(pulled.T @ plane, pulled.T @ seen, rcond=None)[0]
        slopes = iter(fit[1:])
        down = float(next(slopes)) if rows >= 3 else 0.0
        return cls(float(fit[0]), down, float(next(slopes)) if columns >= 3 else 0.0)

    def at(
        self, rows: NDArray[Any], columns: NDArray[Any], size: tuple[int, int]
    ) -> Float[NDArray[np.float64], "h w"]:
        """At rows and columns, in pixels of a picture of that height and width."""
        y, x = ((places + 0.5) / side * 2 - 1 for places, side in zip((rows, columns), size, strict=True))
        return np.asarray((self.middle + self.down * y)[:, None] + (self.across * x)[None, :])


def _medians(levels: UInt8[NDArray[np.uint8], "n k"]) -> Float[NDArray[np.float64], " n"]:
    """The median of each row. NumPy 2 sorts numbers of 32 bits many at once, where the processor can."""
    length = levels.shape[1]
    medians = []
    for part in np.array_split(levels, max(1, levels.size // _SORTED)):
        ordered = part.astype(np.int32)
        ordered.sort(axis=1)
        medians.append(ordered[:, [(length - 1) // 2, length // 2]].mean(axis=1))
    return np.concatenate(medians)


def _centred(count: int) -> Float[NDArray[np.float64], " n"]:
    """Places of equal cells from −1 to 1."""
    return (np.arange(count) + 0.5) / count * 2 - 1
