"""Is one way better than another? A bootstrap over pairs: the same pictures, folds or seeds under both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its interval.

    Attributes:
        mean: of first minus second.
        low, high: the interval's ends; when both are on one side of 0, the difference is no accident of
            which pairs were drawn.
        confidence: of the interval, in (0, 1).
        pairs: how many pairs it rests on.
    """

    mean: float
    low: float
    high: float
    confidence: float
    pairs: int


def paired_difference(
    first: Float[NDArray[np.float64], " n"],
    second: Float[NDArray[np.float64], " n"],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
) -> Difference:
    """The mean of ``first - second`` and its percentile bootstrap interval (Efron & Tibshirani, 1993).

    With a handful of pairs the interval is too narrow: five folds say little, and this cannot mend it.

    Args:
        first, second: one figure a pair, in the same order.
        rng: the same seed gives the same interval.
        confidence: of the interval.
        samples: resamplings.

    Raises:
        ValueError: no pairs, unequal lengths, or a figure that is not finite.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if np.shape(first) != np.shape(second) or difference.ndim != 1 or not difference.size:
        raise ValueError(f"pairs need two lists of one length, got {np.shape(first)} and {np.shape(second)}")
    if not np.isfinite(difference).all():
        raise ValueError("pairs need finite figures")
    # One resampling at a time: thousands of pictures × samples at once would need gigabytes.
    means = np.array([rng.choice(difference, difference.size).mean() for _ in range(samples)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(difference.mean()), float(low), float(high), confidence, difference.size)
