"""Even light: the same cloth looks the same under a new lamp, an old one, or one that shines from a side.

A lamp multiplies what the cloth reflects by a smooth field. Here the field is a plane in the logarithm of the
brightness, laid through the medians of small blocks so that neither defects nor a selvedge bend it, and the
picture is divided by it. Afterwards the cloth's contrast is stretched to the same measure for every fabric:
networks that know photographs see little in cloth of two shades of grey.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.errors import DatasetError
from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.types import Picture

_BLOCK = 32  # pixels a side
_ROUNDS = 5  # of reweighting
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
            rgb = to_rgb(picture)[::3, ::3].reshape(-1, 3)
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

    def even(self, image: Picture) -> Picture:
        """A picture as it would look under even light, with its contrast stretched.

        Args:
            image: uint8, HW or HWC RGB.

        Returns:
            uint8 HWC RGB; the cloth's middle lies at half of the range.
        """
        middle = np.array(self.middle, np.float32)
        gain = float(middle.mean()) / brightness(image)
        gain = np.clip(gain, 1 / _GAIN, _GAIN)
        even = to_rgb(image).astype(np.float32) * gain[..., None]
        stretched = (even - middle) * np.float32(self.stretch) + np.float32(127.5)
        return np.asarray(np.rint(stretched).clip(0, 255), np.uint8)


def brightness(image: Picture) -> Float[NDArray[np.float32], "h w"]:
    """The brightness of the cloth at each place, a smooth field: what the lamp gives there.

    Args:
        image: uint8, HW or HWC RGB.

    Returns:
        grey levels above 0; of a picture smaller than three blocks a side along that side constant.
    """
    grey = to_grey(image)
    height, width = grey.shape
    rows, columns = max(1, height // _BLOCK), max(1, width // _BLOCK)
    blocks = grey[: rows * (height // rows), : columns * (width // columns)]
    blocks = blocks.reshape(rows, height // rows, columns, width // columns).swapaxes(1, 2)
    seen = np.log(np.maximum(np.median(blocks.reshape(rows, columns, -1), axis=2), 1.0)).ravel()
    ys, xs = (_centred(count) for count in (rows, columns))
    plane = [np.ones(rows * columns)]
    plane += [np.repeat(ys, columns)] if rows >= 3 else []
    plane += [np.tile(xs, rows)] if columns >= 3 else []
    basis = np.stack(plane, axis=1)
    fit = np.zeros(basis.shape[1])
    fit[0] = np.median(seen)
    for _ in range(_ROUNDS):  # Tukey's biweight: a block far off the plane has no say
        off = seen - basis @ fit
        scale = max(4.7 * 1.48 * float(np.median(np.abs(off))), 0.02)
        weight = np.where(np.abs(off) < scale, (1 - (off / scale) ** 2) ** 2, 0.0)
        pulled = basis * weight[:, None]
        fit = np.linalg.lstsq(pulled.T @ basis, pulled.T @ seen, rcond=None)[0]
    down, across = iter(fit[1:]), np.zeros(width)
    field = np.full(height, fit[0])
    if rows >= 3:
        field = field + next(down) * _centred(height)
    if columns >= 3:
        across = next(down) * _centred(width)
    return np.exp(field[:, None] + across[None, :]).astype(np.float32)


def _centred(count: int) -> Float[NDArray[np.float64], " n"]:
    """Places of equal cells from −1 to 1."""
    return (np.arange(count) + 0.5) / count * 2 - 1
