"""The weave's period: how many pixels from one repeat of the cloth to the next, along warp and weft.

The autocorrelation of a cloth (Wiener and Khinchin: the inverse Fourier transform of its power spectrum)
peaks at every shift that lays the weave upon itself. Along an axis those shifts are multiples of the
repeat; a twill also fits after a small step along both axes, but along one alone only after its whole
repeat, so plain, twill and basket are read the same way. It is the repeat that the camera sees: where
neighbouring yarns look alike, that is less than the lift plan's.

No network and no torch in here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import find_peaks

from loomsight.fabric.types import Picture

_LARGEST = 256  # px: no repeat longer than this is looked for
_SMALLEST = 2.5  # px: finer than this, the camera no longer resolves the weave
_BLOCK = 512  # px: the side of the windows whose autocorrelations are averaged
_CERTAIN = 0.25  # confidence from which an axis counts as periodic


@dataclass(frozen=True, slots=True)
class Period:
    """The repeat of a weave in a picture.

    Attributes:
        warp: px from one repeat to the next along the warp, the picture's height; None: no period found.
        weft: px along the weft, the picture's width; None: no period found.
        warp_confidence: in [0, 1], how far the correlation rises again after ``warp`` and twice ``warp``:
            0 on noise, 1 on a clean weave.
        weft_confidence: the same for ``weft``.
    """

    warp: float | None
    weft: float | None
    warp_confidence: float
    weft_confidence: float

    @property
    def confidence(self) -> float:
        """The better of the two axes: corduroy repeats along one only."""
        return max(self.warp_confidence, self.weft_confidence)


def weave_period(image: Picture, *, largest: int = _LARGEST) -> Period:
    """Measure the weave's repeat along both axes, to a fraction of a pixel.

    Args:
        image: uint8 HW or HWC, good cloth with its yarns within a few degrees of the axes.
        largest: px; longer repeats are not looked for. A third of the picture's side is the limit anyway.

    Returns:
        The period; an axis along which nothing repeats (fleece, felt, noise, a single colour) has None.
    """
    grey = image.astype(np.float32) if image.ndim == 2 else image[..., :3].astype(np.float32).mean(axis=2)
    correlation = _autocorrelation(grey, largest)
    middle_y, middle_x = (side // 2 for side in correlation.shape)
    # Along the axis alone: a step sideways would let a twill's diagonal pass for its repeat.
    warp, warp_confidence = _repeat(correlation[middle_y:, middle_x])
    weft, weft_confidence = _repeat(correlation[middle_y, middle_x:])
    return Period(warp, weft, warp_confidence, weft_confidence)


def _autocorrelation(grey: NDArray[np.float32], largest: int) -> NDArray[np.float64]:
    """Mean autocorrelation of the picture's blocks, 1 at its middle, for shifts up to a third of a block."""
    height, width = (min(_BLOCK, side) for side in grey.shape)
    reach_y, reach_x = (max(1, min(largest, side // 3)) for side in (height, width))
    total = np.zeros((2 * reach_y + 1, 2 * reach_x + 1))
    ones = np.ones((height, width))
    padded = (height + reach_y, width + reach_x)  # room for the shifts, so that nothing wraps around
    overlap = np.fft.irfft2(np.abs(np.fft.rfft2(ones, padded)) ** 2, padded)
    for y in _places(grey.shape[0], height):
        for x in _places(grey.shape[1], width):
            block = grey[y : y + height, x : x + width].astype(np.float64)
            # Lighting and shading vary more slowly than any repeat that is looked for.
            block -= gaussian_filter(block, min(reach_y, reach_x) / 2, mode="reflect")
            block -= block.mean()
            power = np.abs(np.fft.rfft2(block, padded)) ** 2
            shifted = np.fft.irfft2(power, padded) / np.maximum(overlap, 1.0)
            rows = np.r_[-reach_y : reach_y + 1]
            columns = np.r_[-reach_x : reach_x + 1]
            total += shifted[np.ix_(rows, columns)]
    middle = total[reach_y, reach_x]
    return total / middle if middle > 1e-6 else np.zeros_like(total)


def _places(side: int, block: int) -> list[int]:
    """Where at most four blocks along a side begin."""
    count = min(4, max(1, round(side / block)))
    return [round(place) for place in np.linspace(0, side - block, count)]


def _repeat(profile: NDArray[np.float64]) -> tuple[float | None, float]:
    """The repeat in px and its confidence, from the correlation by shift."""
    peaks, properties = find_peaks(profile, prominence=0.02)
    heights = properties["prominences"]
    keep = peaks >= _SMALLEST
    peaks, heights = peaks[keep], heights[keep]
    if not peaks.size:
        return None, 0.0
    # The whole repeat, not one yarn of it: of the peaks nearly as good as the best, the first.
    first = int(peaks[np.argmax(heights >= 0.8 * heights.max())])
    period, returns = float(_summit(profile, first)), [float(heights[peaks == first][0])]
    for multiple in range(2, 9):  # later returns sharpen the figure, and tell a weave from chance
        around = multiple * period
        low, high = int(around - 0.25 * period), int(np.ceil(around + 0.25 * period)) + 1
        if high >= profile.size:
            break
        near = [(height, peak) for height, peak in zip(heights, peaks, strict=True) if low <= peak < high]
        if not near:
            returns.append(0.0)
            break
        height, peak = max(near)
        returns.append(float(height))
        period = float(_summit(profile, int(peak))) / multiple
    confidence = float(np.clip(np.sqrt(returns[0] * (returns[1] if len(returns) > 1 else 0.0)), 0.0, 1.0))
    return (period if confidence >= _CERTAIN else None), confidence


def _summit(profile: NDArray[np.float64], peak: int) -> float:
    """Place of a peak to a fraction of a px: the top of the parabola through three samples."""
    left, top, right = profile[peak - 1 : peak + 2]
    bend = left - 2 * top + right
    return peak + (0.5 * (left - right) / bend if bend < 0 else 0.0)
