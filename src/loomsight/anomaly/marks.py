"""Printed marks: what was taught to be good once is silent wherever it comes again.

The weave runs differently through each print of a mark, so neither its pixels nor its features are the same
twice. How strange it is, place by place, is: the map of strangeness, a quarter of the size, is compared with
that of the taught place (normalised cross-correlation; Lewis, *Fast Template Matching*, 1995). Where they are
alike, as much is taken off as the mark itself was strange: a hole in it is stranger still.

A spot or a streak is no mark: most defects look so. What is like an ellipse of its own extent is not learned.
Nor is, of good cloth in which nobody pointed at a place, what does not come twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.types import Mask

_SMALLER = 4
_LIKE = 0.87  # correlation of a mark with itself elsewhere: 0.8 to 0.97; with other defects: 0.8 at most
_SPOT = 0.85  # correlation with an ellipse from which on it is a spot
_SIDE = 6  # places of the smaller map that a mark has a side, at least
_MOST = 32  # marks that are kept
_CALM = 0.3  # the score below which one place is like another
_SURE, _APART, _EACH = 1.0, 25, 8  # tails of a mark, pixels that join its parts, and looked at in a picture
_HALO, _NOTHING = 4, -5.0  # places around a mark and around the picture; how strange nothing is
_TIMES, _MORE = 1.25, 1.0  # what is taken off: so many times what the mark was, and so much more


@dataclass(frozen=True, slots=True)
class _Mark:
    """How strange a mark is, in tails, a quarter of the size; its lesson, and those that contradict it."""

    form: Float[NDArray[np.float32], "i j"]
    lesson: int = 0
    silenced: frozenset[int] = frozenset()


class Marks:
    """The marks of a fabric."""

    def __init__(self, known: Sequence[_Mark] = ()) -> None:
        self._known = list(known)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def reach(self) -> int:
        """Pixels of the longest side of a mark, with what is around it; 0 where none is known."""
        return _SMALLER * max((max(one.form.shape) for one in self._known if not one.silenced), default=0)

    def teach(self, strange: Float[NDArray[np.float32], "h w"], where: Mask, *, lesson: int = 0) -> bool:
        """Learn a mark; False where the place has too little form for one.

        Args:
            strange: how strange each place of the picture is, in tails; where: the mark's place in it.
            lesson: its number, see :meth:`forget`.
        """
        rows, columns = (np.flatnonzero(where.any(axis)) // _SMALLER for axis in (1, 0))
        if min(np.ptp(rows), np.ptp(columns)) < _SIDE:
            return False
        # With what is around it, where it is a little strange too; the padding moves the place by as much.
        mark = _padded(strange)[rows[0] : rows[-1] + 2 * _HALO + 1, columns[0] : columns[-1] + 2 * _HALO + 1]
        inner = mark[_HALO:-_HALO, _HALO:-_HALO]
        if inner.max() <= 0 or _like_an_ellipse(inner) > _SPOT:
            return False
        self._known = [*self._known, _Mark(mark.copy(), lesson)][-_MOST:]
        return True

    def find(self, strange: Sequence[Float[NDArray[np.float32], "h w"]], *, lesson: int = 0) -> None:
        """Learn the marks that good pictures have in common, as each of them shows it."""
        found = list[_Mark]()
        for number, one in enumerate(strange):
            joined = cv2.morphologyEx(
                (one > _SURE).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((_APART, _APART), np.uint8)
            )
            count, _, boxes, _ = cv2.connectedComponentsWithStats(joined)
            for x, y, width, height, _ in sorted(boxes[1:count].tolist(), key=lambda box: -box[4])[:_EACH]:
                where = np.zeros(one.shape, np.bool_)
                where[y : y + height, x : x + width] = True
                mark = Marks()
                others = (strange[at] for at in range(len(strange)) if at != number)
                if mark.teach(one, where, lesson=lesson) and any(
                    mark.calm(other) is not None for other in others
                ):
                    found += mark._known
        self._known = [*self._known, *found][-_MOST:]

    def contradict(self, strange: Float[NDArray[np.float32], "h w"], where: Mask, *, lesson: int = 0) -> None:
        """No mark lies in this place: what was taken for one there is a defect; with lesson 0 for good."""
        kept = []
        for mark in self._known:
            calmed = Marks([replace(mark, silenced=frozenset())]).calm(strange)
            if calmed is None or not (calmed[where] < 0).any():
                kept.append(mark)
            elif lesson:
                kept.append(replace(mark, silenced=mark.silenced | {lesson}))
        self._known = kept

    def forget(self, lessons: Collection[int]) -> None:
        """Take lessons back; what they contradicted is a mark again."""
        self._known = [
            replace(mark, silenced=mark.silenced.difference(lessons))
            for mark in self._known
            if mark.lesson not in lessons
        ]

    def settle(self, lessons: Collection[int]) -> None:
        """Keep for good what lessons taught and contradicted."""
        self._known = [
            replace(mark, lesson=0) if mark.lesson in lessons else mark
            for mark in self._known
            if mark.silenced.isdisjoint(lessons)
        ]

    def calm(self, strange: Float[NDArray[np.float32], "h w"]) -> Float[NDArray[np.float32], "h w"] | None:
        """What is taken off where a mark is found, in tails and at most 0; None where there is none."""
        small = _padded(strange)
        off = np.zeros_like(small)
        for mark in (one.form for one in self._known if not one.silenced):
            height, width = mark.shape
            if height > small.shape[0] or width > small.shape[1] or small.max() < mark.max() / 2:
                continue
            like = cv2.matchTemplate(_seen(small), _seen(mark), cv2.TM_CCOEFF_NORMED)
            taken = cv2.dilate(mark, np.ones((_HALO + 1, _HALO + 1), np.uint8))
            taken = np.where(taken > 0, _TIMES * taken + _MORE, 0).astype(np.float32)
            for y, x in np.argwhere(like >= _LIKE):
                here = slice(y, y + height), slice(x, x + width)
                if small[here].max() >= mark.max() / 2:  # a flat map is like any other
                    off[here] = np.maximum(off[here], taken)
        if not off.any():
            return None
        off = off[_HALO:-_HALO, _HALO:-_HALO]
        return np.asarray(-cv2.resize(off, strange.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All marks, as plain arrays: of each its form, and its lesson before those that contradict it."""
        arrays = {}
        for number, mark in enumerate(self._known):
            arrays[str(number)] = mark.form
            arrays[f"{number}.lessons"] = np.array([mark.lesson, *sorted(mark.silenced)], np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The marks again; those written before lessons were told apart are of none."""
        known = []
        for key in sorted((key for key in arrays if key.isdigit()), key=int):
            lesson, *silenced = (int(one) for one in arrays.get(f"{key}.lessons", (0,)))
            known.append(_Mark(np.array(arrays[key], np.float32), lesson, frozenset(silenced)))
        return cls(known)


def _smaller(strange: Float[NDArray[np.float32], "h w"]) -> Float[NDArray[np.float32], "i j"]:
    size = max(1, strange.shape[1] // _SMALLER), max(1, strange.shape[0] // _SMALLER)
    return np.asarray(cv2.resize(strange, size, interpolation=cv2.INTER_AREA), np.float32)


def _padded(strange: Float[NDArray[np.float32], "h w"]) -> Float[NDArray[np.float32], "i j"]:
    """The smaller map with nothing around it: there is room for what is around a mark at an edge."""
    return np.pad(_smaller(strange), _HALO, constant_values=_NOTHING)


def _seen(strange: Float[NDArray[np.float32], "i j"]) -> Float[NDArray[np.float32], "i j"]:
    """What is compared: calm places are all alike, and so are the strangest."""
    from scipy.special import expit

    return np.asarray(np.maximum(expit(strange), _CALM), np.float32)


def _like_an_ellipse(mark: Float[NDArray[np.float32], "i j"]) -> float:
    """The correlation with a Gaussian of the same middle and extent."""
    seen = _seen(mark) - _CALM
    y, x = np.indices(mark.shape)
    places = np.stack([y.ravel(), x.ravel()]).astype(np.float64)
    weight = seen.ravel() / seen.sum()
    away = places - (places @ weight)[:, None]
    extent = (away * weight) @ away.T + 0.1 * np.eye(2)
    blob = np.exp(-0.5 * (away * np.linalg.solve(extent, away)).sum(0))
    return float(np.corrcoef(seen.ravel(), blob)[0, 1])
