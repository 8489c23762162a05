"""One operating point for two maps: what a segmenter knows, and what is strange.

A segmenter's score and a strangeness have nothing in common but what they do on good cloth: that is how they
are compared. The highest alarms of each on good cloth have logits with an exponential tail; its scale β says
over how many logits alarms become e times rarer (evaluation/operating_point.py). So

    margin = (logit(score) − logit(threshold)) / β

counts the same in both maps: at a margin of m, e⁻ᵐ of the alarms that the threshold has. The union's map is
the larger margin at each place, as a score again; its threshold is then set on good cloth by the same
promise, so that both maps together keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.evaluation.operating_point import (
    AlarmRate,
    OperatingPoint,
    joined_through_faint,
    set_operating_point,
    tail_scale,
)
from loomsight.fabric.regions import Grouping
from loomsight.fabric.scores import logits
from loomsight.fabric.types import ScoreMap


@dataclass(frozen=True, slots=True)
class UnionPoint:
    """Where two maps stand on good cloth.

    Attributes:
        segmenter, strangeness: each map's own threshold at the promise, in (0, 1].
        segmenter_scale, strangeness_scale: logits over which alarms become e times rarer, above 0.
    """

    segmenter: float
    segmenter_scale: float
    strangeness: float
    strangeness_scale: float

    def unite(
        self,
        known: ScoreMap,
        strange: ScoreMap,
        calmed: Float[NDArray[np.float32], "h w"] | None = None,
    ) -> ScoreMap:
        """The map of both: one half where either reaches its own threshold.

        Args:
            calmed: logits that the segmenter is less sure by where a place was taught to be good, at most 0;
                the strangeness has its own share of that already.
        """
        from scipy.special import expit

        sure = _margin(known, self.segmenter, self.segmenter_scale)
        if calmed is not None:
            sure = sure + calmed / np.float32(self.segmenter_scale)
        surer = np.maximum(sure, _margin(strange, self.strangeness, self.strangeness_scale))
        return np.asarray(expit(surer), np.float32)


def calibrate_union(
    known: Sequence[ScoreMap],
    strange: Sequence[ScoreMap],
    rate: AlarmRate,
    pieces: Grouping,
    *,
    calmed: Sequence[Float[NDArray[np.float32], "h w"] | None] | None = None,
) -> tuple[UnionPoint, OperatingPoint, list[ScoreMap]]:
    """Set a union on good cloth.

    Args:
        known, strange: the maps of the same good pictures, best of pictures that neither learned from.
        rate: what the union promises.
        pieces: of its regions; what is faint is found for each map.
        calmed: for each picture what :meth:`UnionPoint.unite` takes.

    Returns:
        the point, the union's own operating point, and the union's maps.

    Raises:
        DatasetError: there is no map.
    """
    from scipy.special import expit

    less = calmed or [None] * len(known)
    # What is taken off where a place was taught to be good must not set the segmenter's threshold.
    quiet = [
        one if own is None else np.asarray(expit(logits(one) + own), np.float32)
        for one, own in zip(known, less, strict=True)
    ]
    sure, odd = (_point(maps, rate, pieces) for maps in (quiet, strange))
    scales = [tail_scale(one.highest or ()) for one in (sure, odd)]
    point = UnionPoint(sure.threshold, scales[0], odd.threshold, scales[1])
    united = [point.unite(*three) for three in zip(known, strange, less, strict=True)]
    return point, _point(united, rate, pieces), united


def _point(good: Sequence[ScoreMap], rate: AlarmRate, pieces: Grouping) -> OperatingPoint:
    return set_operating_point(good, rate, joined_through_faint(pieces, good))


def _margin(score: ScoreMap, threshold: float, scale: float) -> Float[NDArray[np.float32], "h w"]:
    return np.asarray((logits(score) - logits(threshold)) / np.float32(scale), np.float32)
