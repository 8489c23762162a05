"""Does the line still see what it saw when the fabric was learned? It says so before false alarms do."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from loomsight.anomaly.drift import ONE_SIDED, measure
from loomsight.fabric.look import Look
from loomsight.fabric.types import Picture
from loomsight.profile import Profile

MOST = 200  # pictures looked at, evenly over the roll, and as many in full; of a video of unknown length, all
_WINDOW, _FEWEST = 15, 5  # pictures whose median counts, fewer of a shorter roll: one stain is no drift
_RECALIBRATE = "recalibrate: 'loomsight teach' with good cloth of today"


class DriftCheck:
    """Looks at pictures of an inspection as they pass, and at their score maps.

    Args:
        profile: of the fabric; without a drift card nothing is looked at.
        total: how many pictures will come; None when unknown.
    """

    def __init__(self, profile: Profile, total: int | None) -> None:
        self._card = profile.card.drift
        self._every = max(1, math.ceil((total or 0) / MOST))
        self._due = 0  # the next picture whose whole map is wanted
        self._last: dict[str, deque[tuple[str, float]]] = {}
        # of each figure, too high or too low: the farthest so far, and where it began
        self._found: dict[tuple[str, bool], tuple[float, str]] = {}

    def look(self, index: int, name: str, picture: Picture, score: Look) -> None:
        """Measure picture number ``index`` if it is one of the sample."""
        # Behind a gate only some pictures are looked at in full, and only these tell of the whole cloth.
        whole = score.complete and index >= self._due
        if self._card is None or not (whole or index % self._every == 0):
            return
        if score.complete:
            self._due = index + self._every
        for key, value in measure(picture, score.dense() if score.complete else None).items():
            last = self._last.setdefault(key, deque(maxlen=_WINDOW))
            last.append((name, value))
            if len(last) >= _FEWEST:
                self._judge(key)

    def _judge(self, key: str) -> None:
        """Whether the last pictures are off in one figure."""
        assert self._card is not None  # noqa: S101 — without one nothing is looked at
        allowed = self._card.allowed[key]
        all_off = [(seen, self._off(key, value)) for seen, value in self._last[key]]
        off = float(np.median([by for _, by in all_off]))
        if abs(off) > allowed:
            first = next(seen for seen, by in all_off if abs(by) > allowed and by * off > 0)
            before, since = self._found.get((key, off > 0), (0.0, first))
            self._found[key, off > 0] = (off if abs(off) > abs(before) else before, since)

    def _off(self, key: str, value: float) -> float:
        assert self._card is not None  # noqa: S101 — without one nothing is looked at
        off = value - self._card.usual[key]
        return max(off, 0.0) if key in ONE_SIDED else off

    def warnings(self) -> list[str]:
        """What has drifted, from which picture on, and what to do; asked when the roll has ended."""
        for key, last in self._last.items():
            if len(last) < _FEWEST:  # there were no more
                self._judge(key)
        return [
            f"{_words(key, off)} From {since} on. Check the lamp and the lens, or {_RECALIBRATE}."
            for (key, _), (off, since) in self._found.items()
        ]


def _words(key: str, off: float) -> str:
    percent = f"{abs(math.expm1(off)):.0%}"
    if key == "unrest":
        return "The whole cloth looks stranger than the learned cloth: another lot of yarn?"
    if key == "slope":
        return f"The light falls off by {percent} more across the picture than when the fabric was learned."
    what, less, more, high = {
        "light": ("The light is", "weaker", "stronger", "strong"),
        "contrast": ("The contrast of the weave is", "lower", "higher", "high"),
        "focus": ("Fine detail is", "weaker", "stronger", "strong"),
    }[key]
    if off > math.log(3):
        return f"{what} {math.exp(off):.0f} times as {high} as when the fabric was learned."
    return f"{what} {percent} {less if off < 0 else more} than when the fabric was learned."
