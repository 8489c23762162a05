"""Cloth is predictable: a place is as strange as its surroundings fail to foretell it.

Woven and knitted cloth repeats, so each pixel is well predicted as a weighted sum of the pixels on a ring
around it: a two-dimensional autoregressive model (Whittle, On Stationary Processes in the Plane, 1954), here
with a hole in the middle, so that a defect of several pixels cannot foretell itself. The weights are least
squares on good cloth, in closed form, at two scales: a half and a quarter of the resolution. What is left
over, squared and averaged over a few pixels, is the surprise of a place.

A mispick, a missing end or a bar is nothing in any pixel: it is one yarn's length of pixels that are all a
shade too light. So what is left over is also averaged *along* the weft and along the warp, and only then
squared: the noise of a line of n pixels shrinks to the nth part, what they have in common stays (a matched
filter for lines; Turin, *An Introduction to Matched Filters*, IRE 1960).

A few hundred multiplications for a pixel of the smaller picture: a hundred times cheaper than a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.images import to_grey
from loomsight.fabric.types import Picture

SCALES = ((2, 12, 3), (4, 8, 2))
"""How many times smaller, and the outer and the inner radius of the ring in pixels of the smaller picture."""
_SPREAD = 1.5  # pixels of the smaller picture that surprise is averaged over, a Gaussian's deviation
_LINE = 25  # pixels of the smaller picture that a line is averaged over
_LINE_SPREAD = 1.0  # and its surprise after that
_SAMPLES = 6000  # pixels of a picture
_RIDGE = 1e-3  # of the mean eigenvalue
_LEAST = 0.25  # grey levels: what cannot be told from rounding is no surprise


@dataclass(frozen=True, slots=True)
class _Ring:
    """The predictor of one scale: a kernel with a hole, and a constant."""

    scale: int
    kernel: Float[NDArray[np.float32], "k k"]
    constant: float

    def error(self, grey: Float[NDArray[np.float32], "h w"]) -> Float[NDArray[np.float32], "i j"]:
        """What the prediction leaves over of the smaller picture, grey levels."""
        small = _smaller(grey, self.scale)
        # A ring that is mirrored at the border still foretells: it has no kink of its own, as a picture has.
        said = cv2.filter2D(small, cv2.CV_32F, self.kernel, borderType=cv2.BORDER_REFLECT_101)
        return np.asarray(small - said - np.float32(self.constant), np.float32)

    def within(self, error: Float[NDArray[np.float32], "i j"]) -> Float[NDArray[np.float32], "i j"]:
        """The same without the border, where rings are mirrored and err to one side."""
        reach = self.kernel.shape[0] // 2
        inner = np.zeros_like(error)
        inside = slice(reach, -reach), slice(reach, -reach)
        inner[inside] = error[inside]
        return inner


class Prediction:
    """Predictors of a fabric from its surroundings; made by :meth:`fit`, or from :meth:`to_arrays`.

    Attributes:
        said: how many things it says of each place: how surprising that is by itself, along its row and
            along its column; weft and warp lie along these, whichever way the cloth runs.
    """

    name, said = "prediction", 3

    def __init__(self, rings: Sequence[_Ring]) -> None:
        self._rings = tuple(rings)

    @classmethod
    def fit(cls, good: Sequence[Picture], *, seed: int = 0) -> Self:
        """Solve for the weights.

        Args:
            good: evenly lit pictures (:meth:`loomsight.fabric.light.Light.even`), read once each.
        """
        sums = [_Sums(*scale) for scale in SCALES]
        for number, picture in enumerate(good):
            grey = to_grey(picture).astype(np.float32)
            for one in sums:
                one.add(_smaller(grey, one.scale), np.random.default_rng([seed, number, one.scale]))
        return cls([one.solve() for one in sums])

    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w 3"]:
        """The logarithms of the three surprises of an evenly lit picture; the first is both scales' mean."""
        grey = to_grey(even).astype(np.float32)
        errors = [ring.error(grey) for ring in self._rings]
        place = [_surprise(error * error, _SPREAD, grey.shape) for error in errors]
        inner, lines = self._rings[0].within(errors[0]), []
        for window in ((_LINE, 1), (1, _LINE)):
            mean = cv2.blur(inner, window, borderType=cv2.BORDER_REFLECT_101)
            lines.append(_surprise(mean * mean * np.float32(_LINE), _LINE_SPREAD, grey.shape))
        return np.dstack([sum(place) / len(place), *lines]).astype(np.float32)

    @staticmethod
    def joined(beyond: Sequence[Float[NDArray[np.float32], "h w"]]) -> Float[NDArray[np.float32], "h w"]:
        """One opinion of the three: two thirds of it the place's, one third the more surprising line's."""
        place, row, column = beyond
        return np.asarray((2 * place + np.maximum(row, column)) / 3, np.float32)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        arrays = {}
        for ring in self._rings:
            arrays[f"{ring.scale}.kernel"] = ring.kernel
            arrays[f"{ring.scale}.constant"] = np.array([ring.constant], np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The predictors again.

        Raises:
            KeyError, ValueError: these are not its arrays.
        """
        rings = []
        for scale, outer, _ in SCALES:
            kernel = np.ascontiguousarray(arrays[f"{scale}.kernel"], np.float32)
            if kernel.shape != (2 * outer + 1, 2 * outer + 1):
                raise ValueError(f"a predictor of shape {kernel.shape}")
            (constant,) = arrays[f"{scale}.constant"]
            rings.append(_Ring(scale, kernel, float(constant)))
        return cls(rings)


class _Sums:
    """What least squares needs of one scale: sums of products of the ring's pixels, and with the middle."""

    def __init__(self, scale: int, outer: int, inner: int) -> None:
        self.scale, self._reach = scale, outer
        y, x = np.mgrid[-outer : outer + 1, -outer : outer + 1]
        away = np.hypot(y, x)
        self._taps = np.argwhere((away <= outer) & (away > inner)) - outer
        count = len(self._taps) + 1
        self._products, self._with = np.zeros((count, count)), np.zeros(count)

    def add(self, small: Float[NDArray[np.float32], "h w"], rng: np.random.Generator) -> None:
        small = np.pad(small, max(0, 2 * self._reach + 1 - min(small.shape)), mode="reflect")
        reach, (height, width) = self._reach, small.shape
        number = min(_SAMPLES, (height - 2 * reach) * (width - 2 * reach))
        ys = rng.integers(reach, height - reach, number)
        xs = rng.integers(reach, width - reach, number)
        around = small[ys[:, None] + self._taps[:, 0], xs[:, None] + self._taps[:, 1]]
        rows = np.concatenate([around, np.ones((number, 1), np.float32)], axis=1).astype(np.float64)
        self._products += rows.T @ rows
        self._with += rows.T @ small[ys, xs].astype(np.float64)

    def solve(self) -> _Ring:
        count = len(self._products)
        ridge = _RIDGE * np.trace(self._products) / count * np.eye(count)
        weights = np.linalg.solve(self._products + ridge, self._with)
        kernel = np.zeros((2 * self._reach + 1, 2 * self._reach + 1), np.float32)
        ys, xs = (self._taps + self._reach).T
        kernel[ys, xs] = weights[:-1]
        return _Ring(self.scale, kernel, float(weights[-1]))


def _surprise(
    energy: Float[NDArray[np.float32], "i j"], spread: float, shape: tuple[int, ...]
) -> Float[NDArray[np.float32], "h w"]:
    """The logarithm of what is left over, averaged and in the size of the picture."""
    log = 0.5 * np.log(cv2.GaussianBlur(energy, (0, 0), spread) + _LEAST**2)
    return np.asarray(cv2.resize(log, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _smaller(grey: Float[NDArray[np.float32], "h w"], scale: int) -> Float[NDArray[np.float32], "h w"]:
    size = max(1, grey.shape[1] // scale), max(1, grey.shape[0] // scale)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.float32)
