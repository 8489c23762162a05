"""A memory of good cloth: a place is as strange as its features are far from all that was seen.

Roth et al., *Towards Total Recall in Industrial Anomaly Detection* (PatchCore, CVPR 2022), made for cloth:

* each of the network's three scales has a memory of its own, at its own resolution, and a place's distance is
  the geometric mean over them: the fine ones say where, the coarse ones whether;
* features are decorrelated, half way (eigenvalues to the power ¼): what hardly varies in good cloth counts
  more, what the camera's noise alone moves does not drown the rest;
* a picture is looked at in pieces, as large as the budget of memory allows;
* the memory is a coreset of a fixed size, kept while pictures stream by: what it covers already is dropped at
  once, and when the buffer is full a greedy k-centre (Gonzalez, 1985) keeps the vectors that cover best, in
  place. So its size is the same after ten pictures and after ten thousand, and good cloth can be added at
  any time.

What is *taught*, a defect that was missed or a false alarm, is a set of features too, kept apart: where a
place is nearer to one than to all good cloth, it is as much stranger, or less strange, as it is nearer. Of a
defect only what good cloth is not like is kept: what lies further from the memory than the memory covers, and
further from other good cloth than that lies from the memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from loomsight.anomaly.features import LEVELS, STEP, Features, windows
from loomsight.anomaly.taught import Taught
from loomsight.config import Config
from loomsight.errors import DatasetError
from loomsight.fabric.tiles import even_cuts
from loomsight.fabric.types import Mask, Picture
from loomsight.progress import Progress

_SAMPLE = 4000  # features of a window that are looked at, per scale, at most
_ROWS = 1024  # features compared at a time: more leave the processor's cache, fewer keep its cores waiting
_TAUGHT = 256  # features of each scale that are compared with, of taught defects and of good cloth each, and
_A_PLACE = 32  # that are kept of one lesson
_PLACE = 512**2  # pixels of a place of which every feature is looked at
_CORESET = 1 / 128  # of the budget, with its buffer; the rest is the network's, while it looks at a piece
_A_PIXEL = 1100  # bytes: 750 that it needs at once, and what is kept of each size that it has seen
_CONTEXT = 128  # pixels around a piece that the network sees, at most, and
_AROUND = 0.25  # of the side of what is looked at
_SHOWN = 1024**2  # pixels of a large picture that show as much as a small picture
_STATE = ("middle", "projection", "bank")
_POWER = 0.25  # of the eigenvalues: 0 leaves features as they are, ½ whitens
_LEAST = 1e-6
_SPARED = 1.05  # times as far from a taught defect as from good cloth is good cloth at least
_FURTHEST = 1e3  # times nearer: what was taught says no more
_Inner: TypeAlias = tuple[tuple[float, float], ...]
"""Where something begins and ends along each axis, as shares of its length."""
LEAST_MB = 64.0
"""The least budget: with less the network could not look at a piece of cloth."""


class MemorySettings(Config):
    """How much memory remembering takes, beyond the libraries and the network's weights."""

    budget_mb: Annotated[float, Field(ge=LEAST_MB, allow_inf_nan=False)] = 512.0  # 1/128 is for what it knows


class _Level:
    """The memory of one scale: a projection, a coreset, and what was taught."""

    def __init__(self, middle: Tensor, projection: Tensor, bank: Tensor, *, reach: float = 0.0) -> None:
        self.middle, self.projection, self.bank = middle, projection, bank
        self.reach = reach  # what lies nearer to the bank is covered already
        self.taught_good, self.taught_bad = Taught(bank[:0]), Taught(bank[:0])
        self.good = self.bad = bank[:0]  # what is compared with of these
        self.room = bank  # the bank is its beginning

    def take(self, vectors: Float[Tensor, "n c"], size: int) -> None:
        """Add up to ``size`` vectors; past twice that many, those that cover best are kept."""
        count = len(self.bank)
        if len(self.room) < 3 * size:
            room = self.middle.new_empty(3 * size, len(self.middle))
            room[:count] = self.bank
            self.room = room
        self.room[count : count + len(vectors)] = vectors
        self.bank = self.room[: count + len(vectors)]
        if len(self.bank) > 2 * size:
            self.reduce(size)

    def reduce(self, size: int) -> None:
        """Keep those ``size`` vectors that cover best, in their place: there is no room for a copy."""
        if len(self.bank) <= size:
            return
        chosen, self.reach = _k_centre(self.bank, size)
        for at in torch.split(torch.arange(size), _ROWS):  # what is kept moves down, in order
            self.room[at] = self.room[chosen[at]]
        self.bank = self.room[:size]

    def hold(self) -> None:
        """Compare with what was taught and holds: of many lessons with what covers it best."""
        self.good, self.bad = (_reduced(own.live, _TAUGHT) for own in (self.taught_good, self.taught_bad))

    def project(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return (features - self.middle) @ self.projection

    def strangeness(self, features: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The logarithm of the distance to good cloth."""
        return _nearest(self.project(features), self.bank).clamp(min=_LEAST).log()

    def recognised(self, features: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The log of how much nearer to a taught defect than to good cloth, less the same of taught cloth."""
        projected = self.project(features)
        near = _nearest(projected, self.bank).clamp(min=_LEAST)
        said = torch.zeros(len(projected), device=projected.device)
        for taught, sign in ((self.bad, 1), (self.good, -1)):
            if len(taught):
                nearer = near / _nearest(projected, taught).clamp(min=_LEAST)
                said = said + sign * nearer.clamp(1.0, _FURTHEST).log()
        return said


class Memory:
    """Good cloth, remembered. Made by :meth:`fit`, or from what :meth:`to_arrays` gave.

    All its pictures are evenly lit: see :meth:`loomsight.fabric.light.Light.even`.
    """

    name = "memory"

    def __init__(self, features: Features, levels: Sequence[_Level], settings: MemorySettings) -> None:
        self._features, self._levels, self._settings = features, list(levels), settings

    @classmethod
    def fit(
        cls,
        good: Sequence[Picture],
        settings: MemorySettings | None = None,
        *,
        seconds: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Remember good cloth.

        Args:
            good: uint8 HWC RGB pictures; read one at a time, so a sequence that loads them as they are asked
                for takes no memory.
            seconds: for all; pictures that are left then are not seen. At least one always is.

        Raises:
            DatasetError: there is no picture.
            WeightsError: the network's weights are missing.
        """
        if not len(good):
            raise DatasetError("no good cloth to remember")
        settings, progress = settings or MemorySettings(), progress or Progress()
        began = time.monotonic()
        order = np.random.default_rng([seed, 1]).permutation(len(good))
        features = Features()
        made = cls(features, _levels(features, (good[i] for i in order[:8]), _side(settings)), settings)
        for done, index in enumerate(order, 1):
            made._see(good[index], np.random.default_rng([seed, 2, int(index)]))
            progress.step("good cloth remembered", done, len(order))
            if seconds is not None and time.monotonic() - began > seconds:
                break
        made._reduce()
        return made

    def add(self, good: Iterable[Picture], *, seed: int = 0) -> None:
        """Remember more good cloth; nothing is trained, and what is remembered already stays covered."""
        for number, picture in enumerate(good):
            self._see(picture, np.random.default_rng([seed, 3, number]))
        self._reduce()

    @torch.no_grad()
    def teach(self, picture: Picture, where: Mask, *, defect: bool, lesson: int = 0) -> None:
        """Learn from one place: a defect that was missed, or good cloth that raised a false alarm.

        Args:
            picture: the whole picture; where: bool HW, the place; defect: whether it is one.
            lesson: its number, above 0, by which :meth:`forget` takes it back; 0 if that never will be.

        Raises:
            ValueError: the place is empty or has another size than the picture.
        """
        if where.shape != picture.shape[:2] or not where.any():
            raise ValueError(f"a place needs pixels in a mask of {picture.shape[:2]}, got {where.shape}")
        shown: list[list[Tensor]] = [[] for _ in self._levels]
        around = _around(self._side)
        step = 1 + int(where.sum()) // _PLACE  # of a large place some features say enough
        for piece in _pieces(where.shape, self._side, around):
            if where[piece].any():
                rows, columns = (slice(max(0, own.start - around), own.stop + around) for own in piece)
                there = np.zeros_like(where)
                there[piece] = where[piece]
                levels = self._features.levels(picture[rows, columns])
                for level, own, vectors in zip(self._levels, shown, levels, strict=True):
                    cells = _cells(there[rows, columns], vectors.shape[1:])
                    at = level.project(vectors.flatten(1).T[cells])
                    # What was said before of the very same place no longer holds.
                    (level.taught_good if defect else level.taught_bad).contradict(at, lesson)
                    own.append(at[::step])
        for level, parts in zip(self._levels, shown, strict=True):
            at = torch.cat(parts)
            if defect:
                # Good cloth lies around a defect and in its holes: only what is strange there is the defect.
                strange = _nearest(at, level.bank)
                at = at[strange >= max(float(strange.max()) / 2, level.reach)]
            (level.taught_bad if defect else level.taught_good).add(_reduced(at, _A_PLACE), lesson)
            level.hold()

    def forget(self, lessons: Collection[int]) -> None:
        """Take lessons back; what they contradicted holds again."""
        for level in self._levels:
            for taught in (level.taught_good, level.taught_bad):
                taught.forget(lessons)
            level.hold()

    def settle(self, lessons: Collection[int]) -> None:
        """Keep lessons for good: they can no longer be taken back, and take no more room of their own."""
        for level in self._levels:
            for taught in (level.taught_good, level.taught_bad):
                taught.settle(lessons)
                taught.thin(_TAUGHT, lambda vectors: _k_centre(vectors, _TAUGHT)[0])
            level.hold()

    def restore(self, before: Self) -> None:
        """Remember the good cloth of an earlier state and no other; what was taught of places stays."""
        for level, old in zip(self._levels, before._levels, strict=True):
            level.bank = level.room = old.bank
            level.reach = old.reach

    def take_over(self, other: Self) -> None:
        """Take over what another memory was taught."""
        for level, old in zip(self._levels, other._levels, strict=True):
            back = torch.linalg.inv(old.projection)
            for name in ("taught_good", "taught_bad"):
                own = getattr(old, name)
                setattr(level, name, own.projected(level.project(own.vectors @ back + old.middle)))
            level.hold()

    @torch.no_grad()
    def spare(self, good: Iterable[Picture], *, lesson: int = 0) -> None:
        """Forget of the taught defects what some good cloth is as near to as to the cloth remembered.

        With a lesson, until that is taken back.
        """
        near = [torch.zeros(len(level.taught_bad), dtype=torch.bool) for level in self._levels]
        for picture in good:
            for seen, inner, _ in _cut(picture, self._side):
                levels = self._features.levels(seen)
                for level, spared, vectors in zip(self._levels, near, levels, strict=True):
                    projected = level.project(_within(vectors, inner))
                    for part in torch.split(projected, _ROWS):
                        least = _SPARED * _nearest(part, level.bank)[:, None]
                        nearer = torch.cdist(part, level.taught_bad.vectors) < least
                        spared[nearer.any(0).cpu()] = True
        for level, spared in zip(self._levels, near, strict=True):
            level.taught_bad.silence(spared, lesson)
            level.hold()

    @property
    def features(self) -> Features:
        """The frozen network that it compares by."""
        return self._features

    @property
    def taught(self) -> bool:
        """Whether anything was that holds."""
        return any(len(level.good) + len(level.bad) for level in self._levels)

    @property
    def lessons_kept(self) -> bool:
        """Whether anything was, also what is contradicted."""
        return any(len(level.taught_good) + len(level.taught_bad) for level in self._levels)

    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """The logarithm of the distance to good cloth, averaged over the scales."""
        (said,) = self.strangeness_of([even])
        return said

    def strangeness_of(self, even: Sequence[Picture]) -> Iterator[Float[NDArray[np.float32], "h w"]]:
        """The same of several pictures or tiles, in order."""
        return self._means(even, _Level.strangeness)

    def recognised_of(self, even: Sequence[Picture]) -> Iterator[Float[NDArray[np.float32], "h w"]]:
        """How much more like taught defects than like good cloth, as a logarithm; below 0 the reverse."""
        return self._means(even, _Level.recognised)

    def _means(
        self, even: Sequence[Picture], said: Callable[[_Level, Tensor], Tensor]
    ) -> Iterator[NDArray[np.float32]]:
        for one, levels in zip(even, self._features.levels_of(even), strict=True):
            yield self._mean((one.shape[0], one.shape[1]), levels, said)

    @torch.no_grad()
    def _mean(
        self, size: tuple[int, int], levels: Sequence[Tensor], said: Callable[[_Level, Tensor], Tensor]
    ) -> NDArray[np.float32]:
        total = torch.zeros(size)
        for level, vectors in zip(self._levels, levels, strict=True):
            own = said(level, vectors.flatten(1).T).view(1, 1, *vectors.shape[1:])
            total += torch.nn.functional.interpolate(own, size, mode="bilinear")[0, 0].cpu()
        return np.asarray(total.numpy() / len(self._levels), np.float32)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        arrays = {"budget": np.array([_CORESET * self._settings.budget_mb], np.float32)}  # the coreset's
        for number, level in enumerate(self._levels):
            for name in _STATE:
                arrays[f"{number}.{name}"] = getattr(level, name).cpu().numpy()
            for name in ("good", "bad"):
                taught: Taught = getattr(level, f"taught_{name}")
                arrays |= {f"{number}.{name}{what}": part for what, part in taught.to_arrays().items()}
            arrays[f"{number}.reach"] = np.array([level.reach], np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The memory again.

        Raises:
            KeyError: these are not its arrays.
        """
        features = Features()
        (budget,) = (max(round(float(value) / _CORESET, 4), LEAST_MB) for value in arrays["budget"])
        levels = []
        for number in range(LEVELS):
            own = {
                name: torch.from_numpy(np.ascontiguousarray(arrays[f"{number}.{name}"], np.float32)).to(
                    features.device
                )
                for name in _STATE
            }
            level = _Level(own["middle"], own["projection"], own["bank"])
            level.taught_good, level.taught_bad = (
                Taught.from_arrays(arrays, f"{number}.{name}", features.device) for name in ("good", "bad")
            )
            level.hold()
            (level.reach,) = (float(value) for value in arrays[f"{number}.reach"])
            levels.append(level)
        return cls(features, levels, MemorySettings(budget_mb=budget))

    @property
    def _size(self) -> int:
        """Vectors of each scale: a third of the coreset's share in float32; the rest is the buffer."""
        numbers = sum(level.projection.shape[1] for level in self._levels)
        return max(16, int(_CORESET * self._settings.budget_mb * 1e6 / 3 / 4 / numbers))

    @property
    def _side(self) -> int:
        return _side(self._settings)

    @torch.no_grad()
    def _see(self, picture: Picture, rng: np.random.Generator) -> None:
        """Take over what a picture shows and the memory does not cover yet."""
        size = self._size
        parts = chain.from_iterable(_cut(one, self._side) for one in windows(picture, rng, self._side))
        for seen, inner, share in parts:
            for level, vectors in zip(self._levels, self._features.levels(seen), strict=True):
                flat = _within(vectors, inner)
                most = min(_SAMPLE, 4 * size) // share
                if len(flat) > most:
                    flat = flat[torch.from_numpy(rng.choice(len(flat), most, replace=False))]
                for part in torch.split(level.project(flat), size):
                    new = part if not len(level.bank) else part[_nearest(part, level.bank) > level.reach]
                    level.take(new, size)

    def _reduce(self) -> None:
        for level in self._levels:
            level.reduce(self._size)
            level.bank = level.room = level.bank.clone()  # the room for more is given back


def _side(settings: MemorySettings) -> int:
    """Pixels a side of the largest square that the network looks at at once within the budget."""
    side = math.sqrt((1 - _CORESET) * settings.budget_mb * 1e6 / _A_PIXEL)
    return int(side) // STEP * STEP


def _levels(features: Features, pictures: Iterable[Picture], side: int) -> list[_Level]:
    """The projections, from a few pictures; nothing is remembered yet."""
    count = [0] * LEVELS
    total: list[Any] = [0.0] * LEVELS
    square: list[Any] = [0.0] * LEVELS
    for picture in pictures:
        for seen, inner, share in _cut(picture, side):
            for k, vectors in enumerate(features.levels(seen)):
                flat = _within(vectors, inner)
                flat = flat[:: max(1, len(flat) * share // 20_000)].double()
                count[k] += len(flat)
                total[k] = total[k] + flat.sum(0)
                square[k] = square[k] + flat.T @ flat
        del picture  # before the next one is read
    levels = []
    for n, s, ss in zip(count, total, square, strict=True):
        middle = s / n
        values, directions = torch.linalg.eigh(ss / n - torch.outer(middle, middle))
        values = values.clamp(min=float(values[-1]) * 1e-6 + 1e-12)
        projection = (directions * values.pow(-_POWER)).float() / math.sqrt(len(middle))
        levels.append(_Level(middle.float(), projection, torch.empty(0, len(middle), device=middle.device)))
    return levels


def _pieces(shape: Sequence[int], side: int, around: int = 0) -> list[tuple[slice, slice]]:
    """The pieces that a picture is looked at in: a network's own numbers are many times its pixels.

    Args:
        side: pixels of a square that holds as much as is looked at at once; around: those that each piece is
            shown with beyond its borders.
    """
    height, width = shape[:2]
    if height * width <= side**2:
        return [(slice(0, height), slice(0, width))]
    rows, high = [slice(0, height)], height
    if height > side:
        rows, high = even_cuts(height, side - 2 * around), side
    room = side**2 // high
    columns = [slice(0, width)] if width <= room else even_cuts(width, room - 2 * around)
    return list(product(rows, columns))


def _cut(picture: Picture, side: int) -> Iterator[tuple[Picture, _Inner, int]]:
    """The pieces of a picture, with the cloth around them as far as there is.

    Yields:
        what the network looks at, where in it the piece lies, as shares of its height and width, and how many
        pieces share what a picture of :data:`_SHOWN` pixels may show.
    """
    around = _around(side)
    pieces = _pieces(picture.shape, side, around)
    share = max(1, round(len(pieces) / max(1.0, picture.shape[0] * picture.shape[1] / _SHOWN)))
    for piece in pieces:
        seen = tuple(slice(max(0, own.start - around), own.stop + around) for own in piece)
        shown = picture[seen]
        inner = tuple(
            ((own.start - wide.start) / length, (own.stop - wide.start) / length)
            for own, wide, length in zip(piece, seen, shown.shape[:2], strict=True)
        )
        yield shown, inner, share


def _around(side: int) -> int:
    return min(_CONTEXT, int(_AROUND * side))


def _within(vectors: Float[Tensor, "c h w"], inner: _Inner) -> Float[Tensor, "n c"]:
    """The features of a piece, without those of the cloth around it."""
    rows, columns = (
        slice(math.ceil(start * cells), max(math.ceil(start * cells) + 1, math.floor(stop * cells)))
        for (start, stop), cells in zip(inner, vectors.shape[1:], strict=True)
    )
    return vectors[:, rows, columns].flatten(1).T


def _squares(vectors: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Their squared lengths, without a copy of all."""
    parts = [part.square().sum(1) for part in torch.split(vectors, _ROWS)]
    return torch.cat(parts) if parts else vectors.new_zeros(0)


def _nearest(vectors: Float[Tensor, "n c"], bank: Float[Tensor, "m c"]) -> Float[Tensor, " n"]:
    """Euclidean distance of each vector to the nearest of a bank."""
    length = _squares(bank)
    parts = [
        (torch.addmm(length, part, bank.T, alpha=-2).amin(1) + part.square().sum(1)).clamp(min=0).sqrt()
        for part in torch.split(vectors, _ROWS)
    ]
    return torch.cat(parts) if parts else vectors.new_zeros(0)


def _reduced(vectors: Float[Tensor, "n c"], size: int) -> Float[Tensor, "m c"]:
    return vectors if len(vectors) <= size else vectors[_k_centre(vectors, size)[0]]


def _k_centre(vectors: Float[Tensor, "n c"], size: int) -> tuple[Int[Tensor, " m"], float]:
    """Those ``size`` vectors from which no other is far, each the farthest from all before; and how far."""
    length = _squares(vectors)
    chosen, farthest = [], 0
    away = torch.full_like(length, math.inf)
    for _ in range(size):
        chosen.append(farthest)
        one = torch.addmv(length, vectors, vectors[farthest], alpha=-2) + length[farthest]
        away = torch.minimum(away, one.clamp(min=0))
        away[farthest] = 0
        farthest = int(away.argmax())
    return torch.tensor(sorted(chosen)), math.sqrt(float(away.max()))


def _cells(where: Mask, shape: Sequence[int]) -> Tensor:
    """The cells of a scale that a place touches; at least the nearest one."""
    height, width = where.shape
    ys, xs = np.nonzero(where)
    rows = np.minimum(ys * shape[0] // height, shape[0] - 1)
    columns = np.minimum(xs * shape[1] // width, shape[1] - 1)
    return torch.from_numpy(np.unique(rows * shape[1] + columns))
