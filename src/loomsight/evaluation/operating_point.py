"""The threshold, from good cloth alone: as low as a promised rate of false alarms allows.

Every region on good cloth is a false alarm. As the threshold falls, a first alarm appears at b₁, a second
at b₂, and so on; :func:`alarm_thresholds` finds these for one score map, and they are pooled over all. Let
K be the number of alarms that the promise allows in the area seen.

* **K ≥ 1: counted.** The threshold is just above b_⌊K⌋. If alarms come independently, new cloth of the
  same area brings ⌊K⌋ of them above b_⌊K⌋ on average, although the cloth seen shows only ⌊K⌋ − 1.
  (The obvious choice, just above b_⌊K⌋₊₁, shows ⌊K⌋ and brings ⌊K⌋ + 1.)
* **K < 1: extrapolated.** The area is too small to show the promise. The logits of the highest m ≤ 20
  alarms are taken as an exponential tail above the lowest of them (Hill, *Annals of Statistics* 3, 1975),
  its scale raised by one standard error: t = b_m + β(1 + 1/√(m−1))·ln(m/K), and never below b₁. With
  fewer than five alarms β is at least 1, the tail of a logistic distribution.

**What is certain.** If alarms come independently and new cloth is like the good cloth seen, then whatever
distribution the scores have, the mean number of alarms that new cloth of the same area brings above the s-th
highest alarm is distributed as Gamma(s): the finite-sample guarantee of conformal prediction (Vovk et al.,
Algorithmic Learning in a Random World, 2005) for counts in an area. :meth:`OperatingPoint.certain` turns that
into a rate. It needs no assumption on the tail, and it is wide: with no alarm in 1 Mpx, up to 3.7 in each Mpx
are possible. Twelve allowed alarms make it about a factor of two. It holds for scores and a grouping that
were fixed before this cloth was looked at. In a profile a network's scores are, but the cloth held back also
says what a normality expects, how it is united with the network, and which faint pixels join pieces: there
the bounds are what chance alone leaves open, no more (benchmarks/certainty.py counts how often they hold).

Alarms in clusters, or cloth that differs from what was seen, break the promise; more good cloth helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.errors import DatasetError, UsageError
from loomsight.fabric.regions import EVERY_PIXEL, Grouping, faint_pixels, label_parts
from loomsight.fabric.types import ScoreMap

TAIL = 20
"""At most this many of the highest alarms describe the tail."""
KEPT = 40
"""So many alarms are kept at least, so that a threshold can be moved later."""
FAINT_SHARE = 0.02
"""The share of good cloth whose pixels join pieces to one region, although they are no alarm."""
LOWEST = 1 / 65535
"""No threshold is lower: it is the lowest score that a 16-bit map shows."""

_FEW = 5
_NARROW = 0.05  # logits: no tail falls faster
_SWEEP = 100_000  # pixels of a map that are looked at, the highest first


@dataclass(frozen=True, slots=True)
class AlarmRate:
    """A promise: at most so many false alarms per piece of cloth.

    Attributes:
        value: false alarms per unit, above 0.
        unit: ``"megapixel"`` or ``"100 m"``.
        megapixels: the size of one unit.
    """

    value: float
    unit: str
    megapixels: float

    def __post_init__(self) -> None:
        if not (self.value > 0 and self.megapixels > 0):
            raise ValueError(f"a rate needs positive numbers, got {self.value} per {self.megapixels} Mpx")

    @classmethod
    def per_megapixel(cls, value: float) -> Self:
        """So many a million pixels: when the scale is unknown."""
        return cls(value, "megapixel", 1.0)

    @classmethod
    def per_100_m(cls, value: float, *, mm_per_pixel: float, web_width_mm: float) -> Self:
        """So many per 100 m of a web of this width."""
        return cls(value, "100 m", 100_000 * web_width_mm / mm_per_pixel**2 / 1e6)

    def allowed(self, megapixels: float) -> float:
        """How many alarms an area may have."""
        return self.value * megapixels / self.megapixels

    def __str__(self) -> str:
        return f"{self.value:g} false alarms per {self.unit}"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what it promises.

    Attributes:
        threshold: the lowest score that is an alarm, in (0, 1].
        promised: false alarms per ``unit``.
        unit: ``"megapixel"`` or ``"100 m"``.
        megapixels_seen: good cloth that the threshold rests on.
        alarms_allowed: what the promise allows in that area.
        alarms_seen: what the threshold gives in it. More than allowed only when so many good pixels have
            the highest score, 1, that no threshold keeps the promise.
        extrapolated: the area was too small to show the promise, see the module.
        min_area, merge_gap, faint: of the regions counted, see :class:`Grouping`; the threshold holds for
            these only.
        highest: the highest alarms on good cloth, falling, among which the threshold can be moved; None
            when they were not kept.
        floor: no threshold is lower: below it there may be alarms that are not listed.
    """

    threshold: float
    promised: float
    unit: str
    megapixels_seen: float
    alarms_allowed: float
    alarms_seen: int
    extrapolated: bool
    min_area: int
    merge_gap: int
    highest: tuple[float, ...] | None = None
    floor: float = LOWEST
    faint: float = 1.0

    @property
    def grouping(self) -> Grouping:
        """What is one region."""
        return Grouping(self.min_area, self.merge_gap, self.faint)

    @property
    def rate(self) -> AlarmRate:
        """What it promises."""
        return AlarmRate(self.promised, self.unit, self.promised * self.megapixels_seen / self.alarms_allowed)

    def certain(self, confidence: float = 0.95) -> tuple[float, float]:
        """Between which rates, in the promise's unit, the true rate lies with this confidence.

        The threshold lies between the alarms s and s + 1 of the cloth seen. The lower bound is 0 when s is.
        """
        from scipy.stats import gamma

        per_alarm, seen = self.promised / self.alarms_allowed, self.alarms_seen
        low = float(gamma.ppf((1 - confidence) / 2, seen)) if seen else 0.0
        return low * per_alarm, float(gamma.ppf((1 + confidence) / 2, seen + 1)) * per_alarm

    def moved(self, promised: float) -> Self:
        """The same for another promise in the same unit; nothing is learned or scored again.

        Raises:
            UsageError: so many alarms that they were not kept.
        """
        if promised == self.promised:
            return self
        allowed, highest = self.alarms_allowed * promised / self.promised, self.highest or ()
        # with fewer than are kept, these are all there were
        if self.highest is None or math.floor(allowed) > len(highest) >= KEPT:
            most = self.promised * (len(highest) + 1) / self.alarms_allowed
            raise UsageError(
                f"cannot promise {promised:g} false alarms per {self.unit}",
                why=f"only the {len(highest)} highest alarms of the good cloth were kept",
                do=f"{f'ask for less than {most:.3g}, or ' if highest else ''}learn again with that promise",
            )
        threshold = _threshold(highest, allowed, self.floor)
        return replace(
            self,
            threshold=threshold,
            promised=promised,
            alarms_allowed=allowed,
            alarms_seen=sum(alarm >= threshold for alarm in highest),
            extrapolated=allowed < 1,
        )


def joined_through_faint(pieces: Grouping, good: Sequence[ScoreMap]) -> Grouping:
    """The same, but that pieces are one where pixels join them as only :data:`FAINT_SHARE` of good cloth has.

    Raises:
        DatasetError: there is no map.
    """
    if not good:
        raise _no_cloth()
    some = np.concatenate([score.ravel()[::7] for score in good])
    return replace(pieces, faint=float(np.quantile(some, 1 - FAINT_SHARE)))


def set_operating_point(
    good: Iterable[ScoreMap], rate: AlarmRate, grouping: Grouping = EVERY_PIXEL
) -> OperatingPoint:
    """Find the lowest threshold that keeps the promise on good cloth.

    Args:
        good: score maps of good cloth, best of pictures the network did not learn from; read once.
        rate: the promise.
        grouping: what will be one region.

    Raises:
        DatasetError: there is no map.
    """
    alarms: list[float] = []
    megapixels, floor = 0.0, LOWEST
    for score in good:
        megapixels += score.size / 1e6
        most = max(KEPT, math.floor(rate.allowed(megapixels)) + 1)
        found, lowest = alarm_thresholds(score, grouping, most=most)
        alarms.extend(found)
        floor = max(floor, lowest)
    if not megapixels:
        raise _no_cloth()
    return point_from_alarms(alarms, rate, megapixels, grouping, floor=floor)


def point_from_alarms(
    alarms: Sequence[float],
    rate: AlarmRate,
    megapixels: float,
    grouping: Grouping = EVERY_PIXEL,
    *,
    floor: float = LOWEST,
) -> OperatingPoint:
    """The same for whatever gives alarms with a score, such as the boxes of a detector.

    Args:
        alarms: the score of each alarm on good cloth, in [0, 1]; the highest suffice.
        megapixels: the area of that cloth, above 0.
        grouping: what one alarm is, where they are regions of a score map.
        floor: no threshold is lower: below it there may be alarms that are not listed.
    """
    falling = sorted(alarms, reverse=True)
    allowed = rate.allowed(megapixels)
    threshold = _threshold(falling, allowed, floor)
    kept = max(KEPT, math.floor(allowed) + 1)
    return OperatingPoint(
        threshold=threshold,
        promised=rate.value,
        unit=rate.unit,
        megapixels_seen=megapixels,
        alarms_allowed=allowed,
        alarms_seen=int(sum(alarm >= threshold for alarm in falling)),
        extrapolated=allowed < 1,
        min_area=grouping.min_area,
        merge_gap=grouping.merge_gap,
        faint=grouping.faint,
        highest=tuple(float(alarm) for alarm in falling[:kept]),
        floor=floor,
    )


def _no_cloth() -> DatasetError:
    return DatasetError("no good cloth to set the operating point on", do="hold back a good picture")


def _threshold(falling: Sequence[float], allowed: float, floor: float) -> float:
    nth = math.floor(allowed)
    if nth >= 1:
        threshold = _just_above(falling[nth - 1]) if nth <= len(falling) else LOWEST
    else:
        threshold = _extrapolated(list(falling[:TAIL]), allowed)
    return min(max(threshold, floor), 1.0)


def alarm_thresholds(
    score: ScoreMap, grouping: Grouping = EVERY_PIXEL, *, most: int
) -> tuple[Float[NDArray[np.float32], " n"], float]:
    """The thresholds at which a map first shows one region, two, three, … as the threshold falls.

    Exact: the pixels enter from the highest down and join their neighbours (a union-find, as in the
    component tree of Najman & Couprie, 2006). Regions that join later still count as two from then on, so
    the number never falls with the threshold.

    Args:
        score: float32 HW in [0, 1].
        grouping: what is one region.
        most: stop after so many regions.

    Returns:
        at most ``most`` thresholds, falling; and the score down to which the map was swept, below which
        there may be more. The sweep ends after ``most`` regions or the highest 100,000 pixels.
    """
    reach = grouping.merge_gap + 1
    padded = np.pad(score, reach).ravel()  # the margin keeps a row's end from touching the next row
    through = label_parts(np.pad(faint_pixels(score, grouping.faint), reach))[1].ravel()
    flat = score.ravel()
    last = np.partition(flat, flat.size - _SWEEP)[flat.size - _SWEEP] if flat.size > _SWEEP else 0
    pixels = np.flatnonzero((padded >= last) & (padded > 0))
    order = pixels[np.argsort(-padded[pixels], kind="stable")]
    values = padded[order]
    width = score.shape[1] + 2 * reach
    around = [
        dy * width + dx
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if (dy, dx) != (0, 0)
    ]
    # Equal scores enter together: a group ends where the score changes.
    ends = np.flatnonzero(np.diff(values, append=-1)) + 1
    parts = _Parts(around, grouping.min_area)
    found: list[np.float32] = []
    start = 0
    for end in ends.tolist():
        entering = order[start:end]
        for pixel, way in zip(entering.tolist(), through[entering].tolist(), strict=True):
            parts.enter(pixel, way)
        found.extend([values[start]] * min(parts.large - len(found), most - len(found)))
        if len(found) >= most:
            return np.array(found, np.float32), float(values[start])
        start = end
    return np.array(found, np.float32), float(last)


class _Parts:
    """Connected parts of a growing set of pixels."""

    def __init__(self, around: list[int], min_area: int) -> None:
        self._around, self._min_area = around, max(min_area, 1)
        self._parent: dict[int, int] = {}
        self._area: dict[int, int] = {}
        self._on_way: dict[int, int] = {}  # of each part of the faint pixels one pixel that has entered
        self.large = 0
        """How many parts have the least area."""

    def enter(self, pixel: int, way: int) -> None:
        """Add a pixel, and the number of the part of the faint pixels that it lies in, 0: in none."""
        parent = self._parent
        parent[pixel], self._area[pixel] = pixel, 1
        self.large += self._min_area == 1
        if way:
            self._join(pixel, self._on_way.setdefault(way, pixel))
        for step in self._around:
            if pixel + step in parent:
                self._join(pixel, pixel + step)

    def _join(self, pixel: int, other: int) -> None:
        area, least = self._area, self._min_area
        here, there = self._root(pixel), self._root(other)
        if here == there:
            return
        if area[here] < area[there]:
            here, there = there, here
        self.large -= (area[here] >= least) + (area[there] >= least)
        self._parent[there] = here
        area[here] += area.pop(there)
        self.large += area[here] >= least

    def _root(self, pixel: int) -> int:
        parent = self._parent
        while parent[pixel] != pixel:
            parent[pixel] = parent[parent[pixel]]
            pixel = parent[pixel]
        return pixel


def tail_scale(alarms: Sequence[float]) -> float:
    """Over how many logits the highest alarms on good cloth become e times rarer.

    The mean excess of at most :data:`TAIL` logits over the lowest of them (Hill, 1975); 1, the tail of a
    logistic distribution, where there are fewer than five. What two networks say can be compared in it.

    Args:
        alarms: the score of each alarm, in [0, 1].
    """
    logits = sorted((_logit(float(alarm)) for alarm in alarms), reverse=True)[:TAIL]
    if len(logits) < _FEW:
        return 1.0
    return max(sum(logit - logits[-1] for logit in logits[:-1]) / (len(logits) - 1), _NARROW)


def _extrapolated(alarms: list[float], allowed: float) -> float:
    """The threshold above which ``allowed`` < 1 alarms are expected, from the highest alarms seen."""
    if not alarms:
        return LOWEST
    logits = [_logit(float(alarm)) for alarm in alarms]
    count = len(logits)
    scale = 1.0
    if count > 1:
        scale = sum(logit - logits[-1] for logit in logits[:-1]) / (count - 1)
        scale *= 1 + 1 / math.sqrt(count - 1)
    if count < _FEW:
        scale = max(scale, 1.0)
    logit = logits[-1] + scale * math.log(count / allowed)
    return max(_just_above(alarms[0]), 1 / (1 + math.exp(-logit)))


def _logit(score: float) -> float:
    # Float32 has no score between 1 − 2⁻²⁴ and 1, so 1 counts as half a step below itself.
    distance = max(1 - score, 2.0**-25)
    return math.log(max(score, 2.0**-40) / distance)


def _just_above(score: float) -> float:
    return float(np.nextafter(np.float32(score), np.float32(2)))
