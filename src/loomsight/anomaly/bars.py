"""Bars: whole bands of cloth that are a shade off, across the web or along it.

In a weft bar, in barré or a reed mark each pixel and each yarn is as usual; only the level of a band differs
from that of the cloth beside it.

1. The picture is evened and made four times smaller, and cut into parts of up to 512 pixels.
2. In each part the level of every row is read, as the median over pieces of 64 pixels: a spot, a hole or a
   thread lies in one piece, a bar in all of them. The same is done of the columns. What is far brighter or
   darker than cloth, the machine beside it, is left out.
3. A band of rows, of three widths, differs as far as it does both from the three times as wide band around it
   and, to the same side, from the median of the part: not as the light does, which changes slowly, and not as
   good cloth beside a bar, which only differs from the bar.
4. That is measured by the strangest band of good cloth, of each direction and width: selvedges and
   uneven yarns are expected as far as good cloth has them. What is no stranger than that is no bar. What
   lies between two bands, with no room for a third, is one bar with them.

It reads each pixel once, so that it can look at all cloth, also behind a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
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
_SHORTEST = 0.75  # of the parts learned from: in shorter ones levels are noisier
_COVERED = 0.5  # of a row in a part, by a place that it is of
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
        bands = _bands(seen)
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
                    bands = _bands(seen)[:, there.mean(1) > _COVERED]
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
                    said = (_bands(seen) / expected[direction][:, None]).max(0)[:, None]
                    np.maximum(into, cv2.morphologyEx(said, cv2.MORPH_CLOSE, _ONE), out=into)
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


def _bands(part: Float[NDArray[np.float32], "i j"]) -> Float[NDArray[np.float32], "widths i"]:
    """By how much each band of rows differs from the cloth around it; 0 where there is no cloth."""
    pieces = max(1, round(part.shape[1] / _PIECE))
    levels = cv2.resize(part, (pieces, part.shape[0]), interpolation=cv2.INTER_AREA).reshape(-1, pieces).T
    cloth = np.abs(levels - _MIDDLE) <= _OFF
    here = cloth.mean(1) > 0.5  # the pieces that are cloth, not the margin beside it
    if not here.any():
        return np.zeros((len(_WIDTHS), part.shape[0]), np.float32)
    # Each piece counts from its own level: a selvedge is no bar across the rows.
    level = np.median(levels[here] - np.median(levels[here], axis=1, keepdims=True), axis=0)
    sure = (cloth[here].mean(0) > 0.5).astype(np.float32)
    both = np.stack([level * sure, sure], axis=1).astype(np.float32)
    own = np.stack([_mean(both, width) for width in _WIDTHS])
    off = own - np.stack([_mean(both, _AROUND * width) for width in _WIDTHS])
    # Cloth beside a bar, and between two, differs from what is around it, but not from most of the cloth.
    return np.asarray(np.where(own * off > 0, np.minimum(np.abs(own), np.abs(off)), 0) * sure, np.float32)


def _mean(both: Float[NDArray[np.float32], "i 2"], width: int) -> Float[NDArray[np.float32], " i"]:
    """Of so many rows around each, of those that are cloth; mirrored at the ends.

    Args:
        both: the level of each row, 0 where it is no cloth; and whether it is.
    """
    sums, counts = cv2.blur(both, (1, width), borderType=cv2.BORDER_REFLECT_101).T
    return np.asarray(sums / np.maximum(counts, 1e-6), np.float32)
