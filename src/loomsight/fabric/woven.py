"""Where a picture shows cloth, not what lies beside its selvedge; and how clearly a change of it is seen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.types import Mask, Picture

WOVEN = 2.0
"""Grey levels by which threads differ, at least, where there is cloth."""
_AROUND = 25  # pixels: light changes no faster
_THREADS = 15  # pixels, over which threads are seen to differ
SCALES = (1.0, 1.5, 3.0)
"""Pixels: as fine as a yarn, and as an eye that does not resolve the weave."""


def texture(image: Picture) -> Float[NDArray[np.float32], "h w"]:
    """Grey levels of an RGB picture, lighting left out."""
    grey = image.mean(axis=2, dtype=np.float32)
    return np.asarray(grey - cv2.blur(grey, (_AROUND, _AROUND)))


def beside(image: Picture, woven: float = WOVEN) -> Mask:
    """Where there is no cloth: pure white or black, or all alike within ``woven`` grey levels."""
    threads = texture(image)
    flat = np.sqrt(cv2.blur(threads * threads, (_THREADS, _THREADS))) < woven
    return np.asarray(flat | (image.min(axis=2) > 251) | (image.max(axis=2) < 4))


def spread(values: NDArray[np.float32]) -> float:
    """Deviation, from the median: a selvedge or a seam in the window does not widen it."""
    return max(1.4826 * float(np.median(np.abs(values - np.median(values)))), 0.7)


def visibilities(
    change: Float[NDArray[np.float32], "h w c"], where: Mask, threads: Float[NDArray[np.float32], "i j"]
) -> Iterator[float]:
    """How strong a change is at each of :data:`SCALES`, in deviations of the cloth's own texture.

    The change is smoothed as the texture is, so that noise averages out and a tone does not. The scale at
    which it is clearest counts: to know that it is seen, the first at which it is will do.

    Args:
        change: grey levels by which a picture differs from the cloth before.
        where: what counts, not empty; threads: the :func:`texture` of good cloth, of any size.

    Yields:
        0 for no change; about 1 where an attentive eye begins to see it.
    """
    for sigma in SCALES:
        seen = _smooth(change, sigma).reshape(*where.shape, -1)[where]
        strength = float(np.sqrt(np.square(seen).mean(axis=0).max()))  # of the colour that changed most
        yield strength / spread(_smooth(threads, sigma)[::2, ::2])  # smooth: a quarter says as much


def _smooth(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def cloth_within(off: Mask, least: int) -> tuple[slice, slice] | None:
    """The rows and columns of a picture that are cloth.

    Args:
        off: where there is none, see :func:`beside`.
        least: pixels; a strip of cloth that is narrower is none.

    Returns:
        all of them, less those along one axis at one selvedge or both that are mostly off the cloth; None
        where no cloth is left.
    """
    height, width = off.shape
    rows, columns = _longest(off.mean(axis=1) < 0.5), _longest(off.mean(axis=0) < 0.5)
    parts = (rows, slice(0, width)), (slice(0, height), columns)
    part = max(parts, key=lambda own: np.count_nonzero(~off[own]) - np.count_nonzero(off[own]))
    return part if min(off[part].shape) >= least else None


def _longest(true: NDArray[np.bool_]) -> slice:
    """The longest run of them."""
    runs, at = [slice(0, 0)], 0
    for value, own in groupby(true.tolist()):
        end = at + len(list(own))
        if value:
            runs.append(slice(at, end))
        at = end
    return max(runs, key=lambda run: run.stop - run.start)
