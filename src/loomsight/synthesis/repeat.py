"""The cloth's own repeat continued into a hole: what lies under a blanked window before it is repaired."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage

from loomsight.fabric.types import Mask

_REACH = 32  # pixels around the region in which the cloth's repeat is looked for
_SHORTEST = 5  # pixels of a shift, at least: all cloth agrees with itself a pixel away


def continued(
    cloth: Float[NDArray[np.float32], "3 h w"], region: Mask
) -> Float[NDArray[np.float32], "3 h w"]:
    """The cloth with nothing left of what was in the region, and its own repeat there instead.

    Pixels are taken from the same place one repeat, or several, away: the cloth is shifted so that what
    lies around the region agrees best with itself (masked autocorrelation), and by the next best shift
    where that one has no cloth to give. What no shift reaches is 0, the cloth's mean.
    """
    out = np.where(region, np.float32(0), cloth)
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        return out
    near = (
        slice(max(0, int(rows[0]) - _REACH), int(rows[-1]) + 1 + _REACH),
        slice(max(0, int(columns[0]) - _REACH), int(columns[-1]) + 1 + _REACH),
    )
    part, known = out[:, near[0], near[1]], ~region[near]  # a view: what is filled there is filled in ``out``
    missing = ~known
    for shift in _repeats(part.mean(0), known):
        (y, from_y), (x, from_x) = (_overlap(n, by) for n, by in zip(known.shape, shift, strict=True))
        take = missing[y, x] & known[from_y, from_x]
        part[:, y, x][:, take] = part[:, from_y, from_x][:, take]
        missing[y, x] &= ~take
        if not missing.any():
            break
    return out


def _repeats(grey: NDArray[np.float32], known: Mask, *, most: int = 24) -> list[tuple[int, int]]:
    """Shifts (down, right) under which the known part of a picture agrees with itself, the best first."""
    size = [cv2.getOptimalDFTSize(2 * n) for n in grey.shape]
    weight = known.astype(np.float32)
    one, first, square = (np.fft.rfft2(weight * values, size) for values in (1, grey, grey * grey))

    def correlation(a: NDArray[np.complex128], b: NDArray[np.complex128]) -> NDArray[np.float64]:
        return np.fft.irfft2(np.conj(a) * b, size)

    pairs = correlation(one, one)
    differences = correlation(square, one) + correlation(one, square) - 2 * correlation(first, first)
    cost = differences / np.maximum(pairs, 1)
    down, right = (np.fft.fftfreq(n, 1 / n).round().astype(int) for n in size)
    near = np.maximum(np.abs(down)[:, None], np.abs(right)[None]) < _SHORTEST
    cost[near | (pairs < 0.08 * known.size)] = np.inf
    # Minima only: the neighbours of a good shift are good too, and say nothing new.
    places = np.argwhere((cost <= ndimage.minimum_filter(cost, 5, mode="wrap")) & np.isfinite(cost))
    order = np.argsort(cost[tuple(places.T)], kind="stable")[:most]
    return [(int(down[y]), int(right[x])) for y, x in places[order]]


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Where along a side p and p + shift both lie in the picture: slices for p and for p + shift."""
    first, last = max(0, -shift), max(0, min(length, length - shift))
    return slice(first, last), slice(first + shift, last + shift)
