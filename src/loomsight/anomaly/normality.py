"""How strange is each place of a picture? One score from one method or several, and from teaching.

1. The light is evened (fabric/light.py).
2. Each method says how strange a place is, as a logarithm: a distance, an error, a surprise.
3. From that is taken what good cloth shows in the same *context*, the brightness of the surroundings: a
   selvedge is rougher than the cloth beside it, and its own good pieces show by how much. What remains is
   above zero on the rarest hundredth of good cloth. It is measured by the *tail* of good cloth, from its
   rarest hundredth to its rarest ten-thousandth, so that one unit says the same of every method. Where a
   method says several things (prediction: the place, its row and its column), each has its own.
4. The methods are averaged. A picture that is stranger than good cloth *as a whole*, by its median, is so
   because of a new lot of yarn or of the lens, and all of it counts less by half as much; or the whole
   picture would be one alarm, in which its defects drown. Cloth that is another altogether is noticed by its
   texture code (inspection/familiar.py).
5. Bars, which no place shows by itself, have their say where it is the greater one (anomaly/bars.py).
6. What was taught is added, and taken off where a mark comes that was (anomaly/marks.py). The score is the
   logistic of that: one half where good cloth's rarest hundredth begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.anomaly.bars import NONE, Bars
from loomsight.anomaly.fanogan import FAnoGan
from loomsight.anomaly.features import STEP
from loomsight.anomaly.ganomaly import Ganomaly
from loomsight.anomaly.marks import Marks
from loomsight.anomaly.memory import Memory
from loomsight.anomaly.prediction import Prediction
from loomsight.anomaly.student import Student
from loomsight.errors import DatasetError
from loomsight.fabric.images import to_grey
from loomsight.fabric.light import Light
from loomsight.fabric.regions import span
from loomsight.fabric.tiles import Mosaic, Tile, cut, tile_side
from loomsight.fabric.types import Box, Mask, Picture, ScoreMap

TILE, BORDER, OVERLAP = (512, 512), 32, 16  # pixels: see Mosaic; larger ones leave the cache
RARE = 0.01
"""The share of good cloth that is above one half."""
_RAREST = 1e-4  # the share of good cloth at which its tail is measured
_LEAST_TAIL = 0.02  # of a logarithm
_WHOLE = 0.5  # of what a picture is stranger as a whole that is taken off
_AROUND = 10.0  # pixels of the surroundings, a Gaussian's deviation
_FEW = 200  # places of good cloth: with fewer a context has no expectation of its own
_SHOWN = 8_000_000  # pixels of those learned from, and of those held back, that expectations come from
_LIGHT = 16  # pictures that the light is read from
_BARS = 200  # pictures that bars are read from
_BELOW = 0.2  # by so much at most a calm context lowers what is expected


T = TypeVar("T")
Said = Float[NDArray[np.float32], "h w *k"]
"""What a method says of each place: one logarithm, or several."""


class Method(Protocol):
    """One way of telling how strange a place is."""

    @property
    def name(self) -> str: ...

    def strangeness(self, even: Picture) -> Said:
        """A logarithm, of an evenly lit picture or tile, uint8 HWC RGB."""

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""


@runtime_checkable
class Ahead(Protocol):
    """A method that is quicker with several tiles at once."""

    def strangeness_of(self, even: Sequence[Picture]) -> Iterator[Said]:
        """How strange each place is, tile by tile, in order."""


@runtime_checkable
class Several(Protocol):
    """A method that says so many things of each place, which are told apart until each has its own tail."""

    said: int

    def joined(
        self, beyond: Sequence[Float[NDArray[np.float32], "h w"]]
    ) -> Float[NDArray[np.float32], "h w"]:
        """One opinion, in tails, of what is beyond the expectation of each."""


@dataclass(frozen=True, slots=True)
class _View:
    """What of a picture is looked at.

    Attributes:
        even: that part of it, evenly lit; shape: height and width of the whole picture.
        box: xyxy, where the part lies; numbers: the tiles of the picture that are looked at, None for all.
    """

    even: Picture
    shape: tuple[int, int]
    box: Box
    numbers: Sequence[int] | None = None

    @classmethod
    def whole(cls, even: Picture) -> Self:
        """All of a picture."""
        height, width = even.shape[:2]
        return cls(even, (height, width), (0, 0, width, height))


class Expectation:
    """The most that a method says of good cloth, but for its rarest hundredth, by how bright it is around."""

    def __init__(
        self, edges: Float[NDArray[np.float32], " n"], values: Float[NDArray[np.float32], " m"], tail: float
    ) -> None:
        self.edges, self.values, self.tail = edges, values, tail

    @classmethod
    def of(
        cls,
        bright: Float[NDArray[np.float32], " n"],
        said: Float[NDArray[np.float32], " n"],
        fresh: tuple[Float[NDArray[np.float32], " k"], Float[NDArray[np.float32], " k"]],
    ) -> Self:
        """From places of good cloth: how bright it is around, and what the method says.

        Args:
            fresh: the same of places that were not learned from, which the tail is measured on.
        """
        inner = np.quantile(bright, [0.02, 0.2, 0.4, 0.6, 0.8, 0.98])
        # the bright and the dark ends are small parts of the cloth: they are divided evenly
        ends = np.linspace(float(bright.min()), float(bright.max()), 10)[1:-1]
        edges = np.unique(np.concatenate([inner, ends])).astype(np.float32)
        where, overall = np.digitize(bright, edges), float(np.quantile(said, 1 - RARE))
        own = [said[where == context] for context in range(len(edges) + 1)]
        values = np.array([np.quantile(one, 1 - RARE) if len(one) >= _FEW else overall for one in own])
        # what most of the cloth shows: a margin without cloth beside it must not decide for all of it
        order = np.argsort(values)
        area = np.cumsum([len(own[context]) for context in order])
        usual = values[order[np.searchsorted(area, area[-1] / 2)]]
        values = np.maximum(values, usual - _BELOW)
        made = cls(edges, values.astype(np.float32), 1.0)
        begin, end = np.quantile(made.beyond(*fresh), [1 - RARE, 1 - _RAREST])
        return cls(edges, made.values, max(float(end - begin), _LEAST_TAIL))

    def beyond(
        self, around: Float[NDArray[np.float32], "*shape"], said: Float[NDArray[np.float32], "*shape"]
    ) -> Float[NDArray[np.float32], "*shape"]:
        """By how much a method says more than expected, in tails."""
        return (said - self.values[np.digitize(around, self.edges)]) / np.float32(self.tail)


class Normality:
    """What good cloth of one fabric looks like; made by :meth:`fit`, or from :meth:`to_arrays`."""

    def __init__(
        self,
        light: Light,
        methods: Sequence[Method],
        expected: Sequence[Sequence[Expectation]],
        typical: float,
        bars: Bars | None = None,
        *,
        marks: Marks | None = None,
    ) -> None:
        self._light, self._methods, self._expected = light, tuple(methods), tuple(expected)
        self._typical = typical  # the median strangeness of good cloth
        self._bars, self._marks = bars, marks or Marks()

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of its methods."""
        return tuple(method.name for method in (*self._methods, *([self._bars] if self._bars else [])))

    @classmethod
    def fit(
        cls,
        good: Sequence[Picture],
        *,
        held: Sequence[Picture] = (),
        methods: Sequence[Callable[[Sequence[Picture]], Method]] = (Memory.fit, Prediction.fit),
        bars: bool = True,
    ) -> Self:
        """Learn what good cloth looks like.

        Args:
            good: uint8 pictures, HW or HWC RGB.
            held: other good pictures: what is strange in cloth that was not learned is expected too.
            methods: what learns each method from the evenly lit pictures.
            bars: find bars besides.

        Raises:
            DatasetError: there is no picture.
            ValueError: there is no method; bars alone find nothing else.
            WeightsError: a network's weights are missing.
        """
        if not len(good):
            raise DatasetError("no good cloth to learn from")
        if not methods:
            raise ValueError("a normality without a method")
        light = Light.of(good[i] for i in _spread(len(good), _LIGHT))
        even = _Even(light, good)
        made = [learn(even) for learn in methods]
        places = [_places(made, one) for one in even.some()]
        unseen = [_places(made, one) for one in _Even(light, held).some()] if len(held) else []
        bright, *said = np.concatenate(places + unseen, axis=1)
        around, *strange = np.concatenate(unseen or places, axis=1)
        expected = _by_method(
            made, (Expectation.of(bright, own, (around, new)) for own, new in zip(said, strange, strict=True))
        )
        beyond = [
            _opinion(method, own, around, new)
            for method, own, new in zip(made, expected, _by_method(made, strange), strict=True)
        ]
        return cls(
            light,
            made,
            expected,
            float(np.median(np.mean(beyond, axis=0))),
            Bars.fit(chain(_small(light, good), _small(light, held))) if bars else None,
        )

    @property
    def by_name(self) -> dict[str, Method]:
        """Its methods, without bars."""
        return {method.name: method for method in self._methods}

    def even(self, image: Picture) -> Picture:
        """A picture as its methods see it: under even light, uint8 HWC RGB."""
        return self._light.even(image)

    def replace(self, method: Method) -> None:
        """Put another form of a method in its place: the one that runs faster.

        Raises:
            ValueError: it has none of that name.
        """
        if method.name not in self.by_name:
            raise ValueError(f"{' and '.join(self.methods)}: no {method.name} among them")
        self._methods = tuple(method if own.name == method.name else own for own in self._methods)

    def score(self, image: Picture) -> ScoreMap:
        """How strange each place is.

        Args:
            image: uint8, HW or HWC RGB, of any size.

        Returns:
            float32 HW in [0, 1].
        """
        return self.look(image)[0]

    def look(self, image: Picture) -> tuple[ScoreMap, Float[NDArray[np.float32], "h w"] | None]:
        """The score of each place; and by how much it is calmed because it looks like taught good cloth.

        The second is in logits, at most 0, or None where nothing was taught. It is in the score already; a
        union takes it off its own map too.
        """
        view = _View.whole(self._light.even(image))
        strange, taught = self._said(view)
        return self._scored(strange, taught, self._excess(strange), self._bars_in(image, view.box))

    def look_where(
        self, image: Picture, boxes: Sequence[Box]
    ) -> tuple[ScoreMap, Float[NDArray[np.float32], "h w"] | None, Mask]:
        """The same of some boxes of a picture, xyxy pixels, and where it is known: there and around them.

        By how much the picture is stranger as a whole is not seen in parts of it, so nothing is taken off.
        Where the boxes come to all of the picture it is scored as in :meth:`look`.
        """
        shape = image.shape[0], image.shape[1]
        mosaic = _mosaic(shape)
        numbers = mosaic.covering(boxes)
        known = mosaic.known(numbers)
        if not numbers:  # the boxes lie nowhere
            return np.zeros(shape, np.float32), None, known
        box = _window([mosaic.tiles[number] for number in numbers], image)
        strange, taught = self._said(_View(self._light.even(image, box), shape, box, numbers))
        excess = self._excess(strange) if known.all() else 0.0
        score, calmed = self._scored(strange, taught, excess, self._bars_in(image, box))
        return _placed(score, box, shape), None if calmed is None else _placed(calmed, box, shape), known

    @property
    def reach(self) -> int:
        """Pixels around a place within which a mark may end that tells it to be good."""
        return self._marks.reach

    def bars(self, image: Picture) -> Float[NDArray[np.float32], "i j"] | None:
        """The logit of a bar at each place of the picture made smaller; None where it looks for none."""
        return None if self._bars is None else self._bars.strangeness(self._light.even_small(image))

    def look_at(
        self, image: Picture, tiles: Sequence[Tile]
    ) -> list[tuple[ScoreMap, Float[NDArray[np.float32], "h w"] | None]]:
        """Nearly the same of some tiles of a picture, without a look at what is around them, nor for bars."""
        if not tiles:
            return []
        parts = self._light.even_at(image, tiles)
        return [self._scored(*self._said(_View.whole(part))) for part in parts]

    def _bars_in(self, image: Picture, box: Box) -> Float[NDArray[np.float32], "h w"] | None:
        """The logit of a bar at each pixel of a part of the picture; None where there is no bar at all."""
        bars = self.bars(image)
        if bars is None or bars.max() <= NONE:
            return None
        left, top, right, bottom = box
        large = cv2.resize(bars, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return np.asarray(large[top:bottom, left:right], np.float32)

    def _said(
        self, view: _View
    ) -> tuple[Float[NDArray[np.float32], "h w"], Float[NDArray[np.float32], "h w"] | None]:
        """How strange each place is, and what was taught of it, in tails."""
        around = _around(view.even)
        strange = np.zeros(around.shape, np.float32)
        taught: Float[NDArray[np.float32], "h w"] | None = None
        for method, expected in zip(self._methods, self._expected, strict=True):
            said = _apart(_tiled(_each(method), view, _count(method)))
            strange += _opinion(method, expected, around, said) / len(self._methods)
            if isinstance(method, Memory) and method.taught:
                taught = _tiled(method.recognised_of, view) / np.float32(expected[0].tail)
        return strange, taught

    def _excess(self, strange: Float[NDArray[np.float32], "h w"]) -> float:
        """By how much a whole picture is stranger than good cloth."""
        return max(0.0, float(np.median(strange)) - self._typical)

    def _scored(
        self,
        strange: Float[NDArray[np.float32], "h w"],
        taught: Float[NDArray[np.float32], "h w"] | None,
        excess: float = 0.0,
        bars: Float[NDArray[np.float32], "h w"] | None = None,
    ) -> tuple[ScoreMap, Float[NDArray[np.float32], "h w"] | None]:
        from scipy.special import expit

        strange -= np.float32(_WHOLE * excess)
        marked = self._marks.calm(strange)
        if marked is not None:
            taught = marked if taught is None else taught + marked
        if bars is not None:
            np.maximum(strange, bars, out=strange)
        if taught is None:
            return np.asarray(expit(strange), np.float32), None
        return np.asarray(expit(strange + taught), np.float32), np.minimum(taught, 0)

    def teach(self, picture: Picture, where: Mask, *, defect: bool, lesson: int = 0) -> None:
        """Learn from one place: a defect that was missed, or good cloth that raised a false alarm.

        Args:
            picture: the whole picture, as it was inspected.
            where: bool HW, the place.
            defect: whether it is one.
            lesson: its number, above 0, by which :meth:`forget` takes it back; 0 if that never will be.

        Raises:
            ValueError: the place is empty or has another size than the picture, or nothing here remembers.
        """
        if len(self._marks) or not defect:
            strange = self._alone(self._light.even(picture))
            if defect:
                self._marks.contradict(strange, where, lesson=lesson)
            else:
                self._marks.teach(strange, where, lesson=lesson)
        self._memory().teach(self._light.even(picture), where, defect=defect, lesson=lesson)
        if self._bars is not None and not defect:
            small = self._light.even_small(picture)
            there = cv2.resize(where.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA)
            self._bars.teach(small, there > 0, lesson=lesson)  # a memory sees nothing in a band

    def forget(self, lessons: Collection[int], before: Self | None = None) -> None:
        """Take lessons back: it is as if they had never been given.

        Args:
            before: what good cloth looked like before it was added, where :meth:`add` is taken back.

        Raises:
            ValueError: nothing here remembers.
        """
        for part in self._taught:
            part.forget(lessons)
        if before is not None:
            self._memory().restore(before._memory())
            if self._bars is not None and before._bars is not None:
                self._bars.restore(before._bars)

    def settle(self, lessons: Collection[int]) -> None:
        """Keep lessons for good: they can no longer be taken back, and take no more room of their own.

        Raises:
            ValueError: nothing here remembers.
        """
        for part in self._taught:
            part.settle(lessons)

    @property
    def _taught(self) -> list[Memory | Marks | Bars]:
        return [self._memory(), self._marks, *([self._bars] if self._bars is not None else [])]

    @property
    def taught(self) -> bool:
        """Whether anything was taught of places that is still kept."""
        memory = self.by_name.get("memory")
        return isinstance(memory, Memory) and (memory.lessons_kept or len(self._marks) > 0)

    def take_over(self, other: Self) -> None:
        """Take over what another normality was taught of places, but for bars.

        Raises:
            ValueError: one of them remembers nothing.
        """
        self._memory().take_over(other._memory())
        self._marks = other._marks

    def spare(self, good: Sequence[Picture], *, lesson: int = 0) -> None:
        """Keep of the taught defects only what some good cloth does not look like.

        With a lesson, that of the good cloth, until it is taken back.

        Raises:
            ValueError: nothing here remembers.
        """
        self._memory().spare(_Even(self._light, good).some(), lesson=lesson)

    def add(self, good: Sequence[Picture], *, seed: int = 0, lesson: int = 0) -> None:
        """Remember more good cloth; nothing is trained.

        With a lesson, :meth:`forget` takes it back, from what was known before.

        Raises:
            ValueError: nothing here remembers.
        """
        # The memory never learns them: it would know other marks half, which then have another form.
        self._marks.find([self._alone(self._light.even(good[index])) for index in _few(good)], lesson=lesson)
        parts = (self._beside_marks(self._light.even(image)) for image in good)
        self._memory().add((part for part in parts if part.size), seed=seed)
        if self._bars is not None:
            self._bars.add(_small(self._light, good))

    def _beside_marks(self, even: Picture) -> Picture:
        """The largest part of an evenly lit picture beside all marks; all of it where there is none."""
        calmed = self._marks.calm(self._alone(even)) if len(self._marks) else None
        if calmed is None:
            return even
        rows, columns = span(calmed < 0)
        above, below = even[: rows.start], even[rows.stop :]
        left, right = even[:, : columns.start], even[:, columns.stop :]
        return max(above, below, left, right, key=lambda part: part.size)

    def _alone(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """How strange each place of an evenly lit picture is but for bars and what was taught, in tails."""
        strange, _ = self._said(_View.whole(even))
        strange -= np.float32(_WHOLE * self._excess(strange))
        return strange

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that it knows, as plain arrays."""
        light = np.array([*self._light.middle, self._light.spread])
        arrays: dict[str, NDArray[Any]] = {"light": light, "typical": np.array([self._typical])}
        for method, expected in zip(self._methods, self._expected, strict=True):
            own = dict(method.to_arrays())
            for number, one in enumerate(expected):
                own |= {
                    f"expected.{number}.edges": one.edges,
                    f"expected.{number}.values": one.values,
                    f"expected.{number}.tail": np.array([one.tail], np.float32),
                }
            arrays |= {f"{method.name}.{key}": value for key, value in own.items()}
        if self._bars is not None:
            arrays |= {f"bars.{key}": value for key, value in self._bars.to_arrays().items()}
        arrays |= {f"marks.{key}": value for key, value in self._marks.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What was learned, again.

        Raises:
            ValueError: these are not its arrays.
        """
        try:
            red, green, blue, spread = (float(value) for value in arrays["light"])
            (typical,) = (float(value) for value in arrays["typical"])
            methods: list[Method] = []
            expected = []
            bars = _own(arrays, "bars")
            found = Bars.from_arrays(bars) if bars else None
            for name, build in _BUILD.items():
                own = _own(arrays, name)
                if own:
                    methods.append(build(own))
                    expected.append([_expectation(own, number) for number in range(_count(methods[-1]))])
        except KeyError as error:
            raise ValueError(f"a normality has no {error}") from error
        if not methods:
            raise ValueError("a normality without a method")
        marks = Marks.from_arrays(_own(arrays, "marks"))
        return cls(Light((red, green, blue), spread), methods, expected, typical, found, marks=marks)

    def _memory(self) -> Memory:
        for method in self._methods:
            if isinstance(method, Memory):
                return method
        raise ValueError(f"{' and '.join(self.methods)} cannot be taught: it needs a memory")


_BUILD: dict[str, Callable[[Mapping[str, NDArray[Any]]], Method]] = {
    "memory": Memory.from_arrays,
    "prediction": Prediction.from_arrays,
    "fanogan": FAnoGan.from_arrays,
    "ganomaly": Ganomaly.from_arrays,
    "student": Student.from_arrays,
}


def open_method(name: str, arrays: Mapping[str, NDArray[Any]]) -> Method:
    """A method from its arrays.

    Raises:
        KeyError, ValueError: there is no such method, or these are not its arrays.
    """
    return _BUILD[name](arrays)


def _own(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one method, by their own names."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}


def _small(light: Light, pictures: Sequence[Picture]) -> Iterator[Picture]:
    """Some of the pictures, spread evenly, as bars are read from them."""
    return (light.even_small(pictures[index]) for index in _spread(len(pictures), _BARS))


class _Even(Sequence[Picture]):
    """Pictures under even light, one at a time."""

    def __init__(self, light: Light, pictures: Sequence[Picture]) -> None:
        self._light, self._pictures = light, pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: Any) -> Any:
        return self._light.even(self._pictures[index])

    def some(self) -> Iterator[Picture]:
        """As many of them, spread evenly, as have about :data:`_SHOWN` pixels together; at least one."""
        return (self[index] for index in _few(self._pictures))


def _few(pictures: Sequence[Picture]) -> Iterator[int]:
    """Which pictures, spread evenly, have about :data:`_SHOWN` pixels together; at least one."""
    height, width = pictures[0].shape[:2]
    shown, places = 0, _spread(len(pictures), max(1, _SHOWN // (height * width)))
    # In any order, so that they are spread evenly also where the first is smaller than others.
    for index in np.random.default_rng(0).permutation(places):
        yield int(index)
        one = pictures[int(index)]
        shown += one.shape[0] * one.shape[1]
        if shown >= _SHOWN:
            return


def _spread(count: int, most: int) -> list[int]:
    """At most so many places of a sequence, spread evenly."""
    return [int(place) for place in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))]


def _places(methods: Sequence[Method], even: Picture) -> Float[NDArray[np.float32], "m n"]:
    """Of every third place of a picture: how bright it is around, and what each method says, one by one."""
    maps = [_around(even)]
    for method in methods:
        maps += _apart(_tiled(_each(method), _View.whole(even), _count(method)))
    return np.stack([one.ravel()[::3] for one in maps])


def _count(method: Method) -> int:
    """How many things it says of each place."""
    return method.said if isinstance(method, Several) else 1


def _apart(said: Said) -> list[Float[NDArray[np.float32], "h w"]]:
    """The things that a method says, one by one."""
    return [said] if said.ndim == 2 else list(np.moveaxis(said, -1, 0))


def _by_method(methods: Sequence[Method], one_by_one: Iterable[T]) -> list[list[T]]:
    """What belongs to each method, of as many as they say things together."""
    rest = iter(one_by_one)
    return [list(islice(rest, _count(method))) for method in methods]


def _opinion(
    method: Method,
    expected: Sequence[Expectation],
    around: Float[NDArray[np.float32], "*shape"],
    said: Sequence[Float[NDArray[np.float32], "*shape"]],
) -> Float[NDArray[np.float32], "*shape"]:
    """By how much a method says more than expected, all that it says taken together."""
    beyond = [each.beyond(around, own) for each, own in zip(expected, said, strict=True)]
    return method.joined(beyond) if isinstance(method, Several) else beyond[0]


def _expectation(arrays: Mapping[str, NDArray[Any]], number: int) -> Expectation:
    edges, values, (tail,) = (arrays[f"expected.{number}.{what}"] for what in ("edges", "values", "tail"))
    return Expectation(edges, values, float(tail))


def _around(even: Picture) -> Float[NDArray[np.float32], "h w"]:
    """The brightness of each place's surroundings."""
    return np.asarray(cv2.GaussianBlur(to_grey(even).astype(np.float32), (0, 0), _AROUND), np.float32)


def _each(method: Method) -> Callable[[Sequence[Picture]], Iterable[Said]]:
    """What a method says of each of some tiles."""
    return method.strangeness_of if isinstance(method, Ahead) else partial(map, method.strangeness)


def _tiled(each: Callable[[Sequence[Picture]], Iterable[Said]], view: _View, count: int = 1) -> Said:
    """What a method says of a view, tile by tile."""
    mosaic = _mosaic(view.shape, count)
    numbers = range(len(mosaic.tiles)) if view.numbers is None else view.numbers
    left, top, right, bottom = view.box
    tiles = [
        cut(view.even, Tile(y0 - top, x0 - left, y1 - top, x1 - left))
        for y0, x0, y1, x1 in (mosaic.tiles[number] for number in numbers)
    ]
    for number, said in zip(numbers, each(tiles), strict=True):
        mosaic.put(number, said)
    return mosaic.map[top:bottom, left:right]


def _mosaic(shape: tuple[int, int], count: int = 1) -> Mosaic:
    shared = 2 * BORDER + OVERLAP
    least = -(-(shared + 1) // STEP) * STEP
    height, width = (
        max(tile_side(side, most, step=STEP, shared=shared), least)
        for side, most in zip(shape, TILE, strict=True)
    )
    whole = shape if count == 1 else (*shape, count)
    return Mosaic(whole, tile=(height, width), overlap=OVERLAP, border=BORDER)


def _placed(
    part: Float[NDArray[np.float32], "h w"], box: Box, shape: tuple[int, int]
) -> Float[NDArray[np.float32], "i j"]:
    """The map of a whole picture that is 0 but for a part."""
    left, top, right, bottom = box
    whole = np.zeros(shape, np.float32)
    whole[top:bottom, left:right] = part
    return whole


def _window(tiles: Sequence[Tile], image: Picture) -> Box:
    """The part of a picture that tiles lie in, and what else the brightness around their inner part needs."""
    reach = int(4 * _AROUND) - BORDER  # the Gaussian's; a tile's border has no say
    return (
        max(0, min(tile.x0 for tile in tiles) - reach),
        max(0, min(tile.y0 for tile in tiles) - reach),
        min(image.shape[1], max(tile.x1 for tile in tiles) + reach),
        min(image.shape[0], max(tile.y1 for tile in tiles) + reach),
    )
