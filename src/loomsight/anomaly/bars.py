"""Bars: whole bands of cloth that are a shade off, across the web or along it.

In a weft bar, in barré or a reed mark each pixel and each yarn is as usual; only the level of a band differs
from that of the cloth beside it.

1. The picture is evened and made four times smaller, and cut into parts of up to 512 pixels.
2. In each part the level of every row is read, as the median over pieces of 64 pixels: a spot, a hole or a
   thread lies in one piece, a bar in all of them. The same is done of the columns. What is far brighter or
   darker than cloth, the machine beside it, is left out.
3. A band of rows, of three widths, differs as far as it does both from the three times as wide band around it
   and, to the same side, from the median of the part: not as the light does, which changes slowly, and not as
   good cloth beside a bar, which only differs from the bar. Of its pieces three of four show at least half of
   that: what half of them show is the machine beside the cloth, or a crease. It is marked where it is shown.
4. That is measured by the strangest band of good cloth, of each direction and width: selvedges and
   uneven yarns are expected as far as good cloth has them. What is no stranger than that is no bar. What
   lies between two bands, with no room for a third, is one bar with them.

It reads each pixel once, so that it can look at all cloth, also behind a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from loomsight.fabric.images import to_grey
from loomsight.fabric.tiles import even_cuts
from loomsight.fabric.types import Picture

_WIDTHS = (5, 9, 17)  # rows of the smaller picture: of 20, 36 and 68 pixels
_AROUND = 3  # times as wide is what a band is compared with
_PART, _PIECE = 128, 16  # pixels of the smaller picture
_MIDDLE, _OFF = 127.5, 80.0  # grey levels of evened cloth, of which two thirds lie within 40
_ONE = np.ones((_WIDTHS[0], 1), np.uint8)  # bands with less than the narrowest between them are one
_BESIDE = np.ones((_WIDTHS[0], 3), np.uint8)  # a single piece that does not show what its neighbours do
_SHORTEST = 0.75  # of the parts learned from: in shorter ones levels are noisier
_COVERED = 0.5  # of a row's cloth in a part, by a place that it is of
_SHOWING, _HALF = 0.75, 0.5  # of a bar's pieces, at least, that show so much of it
_LEAST = 0.5  # grey levels: what cannot be told from rounding is no bar
_RARE = 3.5  # times the usual deviation: of little good cloth the strangest band is not strange enough
_ARRAYS = ("highest", "squares", "counts", "lengths")
_FROM, _STEEP = 1.25, 2.0  # a band so many times as strange as good cloth's strangest scores one half
MOST = 1.5
"""The highest logit of a bar: it is known of whole rows alone, so what is found in its place comes first."""
NONE = -20.0
"""The logit where there is no bar."""


class Bars:
    """What bands of good cloth are like; made by :meth:`fit`, or from :meth:`to_arrays`.

    Args:
        highest: by how much the strangest band of rows, and of columns, of each width differs, grey levels.
        squares: the sums of the squares of all; counts: of how many, of rows and of columns.
        lengths: of the rows and the columns that they were read from, pixels of the smaller picture.
    """

    name = "bars"

    def __init__(
        self,
        highest: Float[NDArray[np.floating], "2 widths"],
        squares: Float[NDArray[np.floating], "2 widths"],
        counts: Float[NDArray[np.floating], " 2"],
        lengths: Float[NDArray[np.floating], " 2"],
    ) -> None:
        self._highest, self._squares, self._counts, self._lengths = highest, squares, counts, lengths
        self._taught: dict[int, NDArray[np.floating]] = {}  # the same as highest, lesson by lesson

    @classmethod
    def fit(cls, good: Iterable[Picture]) -> Self:
        """From pictures of good cloth as :meth:`loomsight.fabric.light.Light.even_small` gives them."""
        each = 2, len(_WIDTHS)
        made = cls(np.full(each, _LEAST), np.zeros(each), np.zeros(2), np.full(2, np.inf))
        for small in good:
            for _, _, part in _parts(small):
                made._lengths = np.minimum(made._lengths, part.shape[::-1])
                made._expect(0, part)
                made._expect(1, part.T)
        return made

    def add(self, good: Iterable[Picture]) -> None:
        """Expect what more good cloth has, too, where its rows and columns are long enough to be compared."""
        for small in good:
            for _, _, part in _parts(small):
                for direction, seen in enumerate((part, part.T)):
                    if self._judges(direction, seen):
                        self._expect(direction, seen)

    def _expect(self, direction: int, seen: Float[NDArray[np.float32], "i j"]) -> None:
        bands = _strengths_of(_levels(seen))
        self._highest[direction] = np.maximum(self._highest[direction], bands.max(1))
        self._squares[direction] += (bands * bands).sum(1)
        self._counts[direction] += bands.shape[1]

    def teach(self, small: Picture, where: Bool[NDArray[np.bool_], "i j"], *, lesson: int = 0) -> None:
        """Expect the bars that a place is of, and no others of its picture.

        A row or column is of it where it covers most of its length in a part: a spot that lies on a bar says
        nothing of the bar, nor does a selvedge of the bars that it crosses.

        Args:
            small: uint8, see :meth:`fit`; where: the place in it; lesson: its number, see :meth:`forget`.
        """
        highest = self._taught.setdefault(lesson, np.zeros_like(self._highest))
        for rows, columns, part in _parts(small):
            own = where[rows, columns]
            for direction, (seen, there) in enumerate(((part, own), (part.T, own.T))):
                if self._judges(direction, seen):
                    levels = _levels(seen)
                    covered = _by_piece(there.astype(np.float32))[:, levels.here]
                    bands = _strengths_of(levels)[:, covered.sum(1) > _COVERED * covered.shape[1]]
                    np.maximum(highest[direction], bands.max(1, initial=0), out=highest[direction])

    def forget(self, lessons: Collection[int]) -> None:
        """Expect no longer what lessons taught."""
        self._taught = {of: highest for of, highest in self._taught.items() if of not in lessons}

    def settle(self, lessons: Collection[int]) -> None:
        """Expect for good what lessons taught."""
        own = [highest for of, highest in self._taught.items() if of in {0, *lessons}]
        self.forget(lessons)
        if own:
            self._taught[0] = np.max(own, axis=0)

    def restore(self, before: Self) -> None:
        """Expect what good cloth of an earlier state has, and what lessons taught since."""
        self._highest, self._squares, self._counts = before._highest, before._squares, before._counts

    @property
    def limits(self) -> Float[NDArray[np.floating], "2 widths"]:
        """What is expected at most of rows and of columns, for each width: grey levels."""
        usual = np.sqrt(self._squares / np.maximum(self._counts, 1)[:, None])
        highest = np.max([self._highest, *self._taught.values()], axis=0)
        return np.asarray(np.maximum(highest, _RARE * usual), np.float32)

    def strangeness(self, small: Picture) -> Float[NDArray[np.float32], "i j"]:
        """The logit of each place of a smaller picture; :data:`NONE` where good cloth has stranger bands.

        Args:
            small: uint8, see :meth:`fit`.
        """
        times, expected = np.zeros(small.shape[:2], np.float32), self.limits
        for rows, columns, part in _parts(small):
            own = times[rows, columns]
            for direction, (seen, into) in enumerate(((part, own), (part.T, own.T))):
                if self._judges(direction, seen):
                    _mark(into, _levels(seen), expected[direction])
        logit = np.minimum((times - _FROM) * _STEEP, MOST)
        return np.where(times > 1, logit, np.float32(NONE)).astype(np.float32)

    def _judges(self, direction: int, seen: Float[NDArray[np.float32], "i j"]) -> bool:
        """Whether rows are long enough to be compared with those of good cloth."""
        return bool(seen.shape[1] >= _SHORTEST * self._lengths[direction])

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        known = self._highest, self._squares, self._counts, self._lengths
        arrays = {name: np.array(own, np.float32) for name, own in zip(_ARRAYS, known, strict=True)}
        return arrays | {f"taught.{of}": highest.astype(np.float32) for of, highest in self._taught.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The same again.

        Raises:
            KeyError, ValueError: these are not its arrays.
        """
        known = [np.array(arrays[name], np.float64) for name in _ARRAYS]
        if [own.shape for own in known] != [(2, len(_WIDTHS))] * 2 + [(2,)] * 2 or not (known[0] > 0).all():
            raise ValueError(f"bars of shape {known[0].shape}")
        made = cls(*known)
        for name in arrays:
            if name.startswith("taught."):
                made._taught[int(name.removeprefix("taught."))] = np.array(arrays[name], np.float64)
        return made


def _parts(small: Picture) -> Iterator[tuple[slice, slice, Float[NDArray[np.float32], "i j"]]]:
    """The parts of a picture, as even as may be: rows, columns, and grey levels."""
    grey = to_grey(small).astype(np.float32)
    for rows in even_cuts(grey.shape[0], _PART):
        for columns in even_cuts(grey.shape[1], _PART):
            yield rows, columns, grey[rows, columns]


@dataclass(frozen=True, slots=True)
class _Levels:
    """The level of each row in each piece of a part.

    Attributes:
        own: grey levels, in the pieces that are cloth, each from its own level: a selvedge is no bar across
            the rows.
        cloth: 1 where these are cloth, 0 where they are what is beside it.
        here: of all pieces, which these are.
    """

    own: Float[NDArray[np.float32], "i p"]
    cloth: Float[NDArray[np.float32], "i p"]
    here: Bool[NDArray[np.bool_], " pieces"]


def _by_piece(part: Float[NDArray[np.float32], "i j"]) -> Float[NDArray[np.float32], "i pieces"]:
    pieces = max(1, round(part.shape[1] / _PIECE))
    return np.asarray(cv2.resize(part, (pieces, len(part)), interpolation=cv2.INTER_AREA).reshape(-1, pieces))


def _levels(part: Float[NDArray[np.float32], "i j"]) -> _Levels:
    levels = _by_piece(part)
    cloth = np.abs(levels - _MIDDLE) <= _OFF
    here = cloth.mean(0) > 0.5
    own = levels[:, here]
    own = np.asarray(own - np.median(own, axis=0), np.float32)
    return _Levels(own, cloth[:, here].astype(np.float32), here)


def _bands(levels: _Levels) -> Float[NDArray[np.float32], "widths i"]:
    """By how much each band of rows is brighter than the cloth around it, or darker; 0: neither."""
    if not levels.here.any():
        return np.zeros((len(_WIDTHS), len(levels.own)), np.float32)
    sure = (levels.cloth.mean(1, keepdims=True) > 0.5).astype(np.float32)
    level = np.median(levels.own, axis=1, keepdims=True)
    own = np.hstack([_mean(level, sure, width) for width in _WIDTHS])
    off = own - np.hstack([_mean(level, sure, _AROUND * width) for width in _WIDTHS])
    # Cloth beside a bar, and between two, differs from what is around it, but not from most of the cloth.
    both = np.sign(own) * np.minimum(np.abs(own), np.abs(off))
    return np.asarray((np.where(own * off > 0, both, 0) * sure).T, np.float32)


def _shown(
    levels: _Levels, bands: Float[NDArray[np.float32], "widths i"]
) -> Bool[NDArray[np.bool_], "widths i p"]:
    """Which pieces show at least half of each band."""
    means = np.stack([_mean(levels.own, levels.cloth, width) for width in _WIDTHS])
    return np.asarray(means * np.sign(bands)[..., None] >= _HALF * np.abs(bands)[..., None], np.bool_)


def _strengths(
    bands: Float[NDArray[np.float32], "widths i"], shown: Bool[NDArray[np.bool_], "widths i p"]
) -> Float[NDArray[np.float32], "widths i"]:
    """By how much each band differs; 0 where too few of its pieces show it."""
    enough = shown.sum(2) >= max(1, _SHOWING * shown.shape[2])
    return np.asarray(np.abs(bands) * enough, np.float32)


def _strengths_of(levels: _Levels) -> Float[NDArray[np.float32], "widths i"]:
    bands = _bands(levels)
    return _strengths(bands, _shown(levels, bands))


def _mark(
    times: Float[NDArray[np.float32], "i j"],
    levels: _Levels,
    expected: Float[NDArray[np.floating], " widths"],
) -> None:
    """Raise a part to how many times as strange as expected its bars are, where they are shown."""
    bands = _bands(levels)
    if (np.abs(bands) <= expected[:, None]).all():  # nearly always: a line's speed hangs on it
        return
    shown = _shown(levels, bands)
    said = _strengths(bands, shown) / expected[:, None]
    widest = shown[said.argmax(0), np.arange(said.shape[1])]
    where = np.zeros((said.shape[1], len(levels.here)), np.uint8)
    where[:, levels.here] = widest
    where = cv2.morphologyEx(where, cv2.MORPH_CLOSE, _BESIDE)
    marked = cv2.resize(where, times.shape[::-1], interpolation=cv2.INTER_NEAREST)
    closed = cv2.morphologyEx(said.max(0)[:, None], cv2.MORPH_CLOSE, _ONE)
    np.maximum(times, closed * marked, out=times)


def _mean(
    level: Float[NDArray[np.float32], "i p"], sure: Float[NDArray[np.float32], "i p"], width: int
) -> Float[NDArray[np.float32], "i p"]:
    """Of so many rows around each, of those that are cloth; mirrored at the ends.

    Args:
        level: of each row; sure: 1 where it is cloth, else 0.
    """
    if not level.size:
        return level
    each = (level,) if sure.all() else (level * sure, sure)
    sums, *counts = (
        cv2.blur(one, (1, width), borderType=cv2.BORDER_REFLECT_101).reshape(level.shape) for one in each
    )
    return np.asarray(sums / np.maximum(counts[0], 1e-6) if counts else sums, np.float32)
