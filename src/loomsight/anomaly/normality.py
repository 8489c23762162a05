"""How strange is each place of a picture? One score from one method or several, and from teaching.

1. The light is evened (fabric/light.py).
2. Each method says how strange a place is, as a logarithm: a distance, an error, a surprise.
3. From that is taken what good cloth shows where it is as bright around, and it is measured by the tail of
   good cloth (anomaly/expectation.py). Where a method says several things (prediction: the place, its row and
   its column), each has its own.
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
from itertools import chain, islice
from typing import Any, Self, TypeVar

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.anomaly.bars import NONE, Bars
from loomsight.anomaly.expectation import Expectation, around, opinion, window
from loomsight.anomaly.fanogan import FAnoGan
from loomsight.anomaly.ganomaly import Ganomaly
from loomsight.anomaly.marks import Marks
from loomsight.anomaly.memory import Memory
from loomsight.anomaly.method import Method, View, answers, mosaic_of
from loomsight.anomaly.prediction import Prediction
from loomsight.anomaly.student import Student
from loomsight.errors import DatasetError
from loomsight.fabric.light import Light
from loomsight.fabric.regions import span
from loomsight.fabric.tiles import Tile
from loomsight.fabric.types import Box, Mask, Picture, ScoreMap

_WHOLE = 0.5  # of what a picture is stranger as a whole that is taken off
_SHOWN = 8_000_000  # pixels of those learned from, and of those held back, that expectations come from
_LIGHT = 16  # pictures that the light is read from
_BARS = 200  # pictures that bars are read from

T = TypeVar("T")


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
        fresh_bright, *strange = np.concatenate(unseen or places, axis=1)
        expected = _by_method(
            made,
            (
                Expectation.of(bright, own, (fresh_bright, new))
                for own, new in zip(said, strange, strict=True)
            ),
        )
        beyond = [
            opinion(method, own, fresh_bright, new)
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
        view = View.whole(self._light.even(image))
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
        mosaic = mosaic_of(shape)
        numbers = mosaic.covering(boxes)
        known = mosaic.known(numbers)
        if not numbers:  # the boxes lie nowhere
            return np.zeros(shape, np.float32), None, known
        box = window([mosaic.tiles[number] for number in numbers], image)
        view = View(self._light.even(image, box), shape, box, numbers)
        strange, taught = self._said(view)
        excess = self._excess(strange) if known.all() else 0.0
        score, calmed = self._scored(strange, taught, excess, self._bars_in(image, box))
        return view.placed(score), None if calmed is None else view.placed(calmed), known

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
        return [self._scored(*self._said(View.whole(part))) for part in parts]

    def _bars_in(self, image: Picture, box: Box) -> Float[NDArray[np.float32], "h w"] | None:
        """The logit of a bar at each pixel of a part of the picture; None where there is no bar at all."""
        bars = self.bars(image)
        if bars is None or bars.max() <= NONE:
            return None
        left, top, right, bottom = box
        large = cv2.resize(bars, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return np.asarray(large[top:bottom, left:right], np.float32)

    def _said(
        self, view: View
    ) -> tuple[Float[NDArray[np.float32], "h w"], Float[NDArray[np.float32], "h w"] | None]:
        """How strange each place is, and what was taught of it, in tails."""
        surroundings = around(view.even)
        strange = np.zeros(surroundings.shape, np.float32)
        taught: Float[NDArray[np.float32], "h w"] | None = None
        for method, expected in zip(self._methods, self._expected, strict=True):
            strange += opinion(method, expected, surroundings, view.said_by(method)) / len(self._methods)
            if isinstance(method, Memory) and method.taught:
                taught = view.tiled(method.recognised_of) / np.float32(expected[0].tail)
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
        strange, _ = self._said(View.whole(even))
        strange -= np.float32(_WHOLE * self._excess(strange))
        return strange

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that it knows, as plain arrays."""
        light = np.array([*self._light.middle, self._light.spread])
        arrays: dict[str, NDArray[Any]] = {"light": light, "typical": np.array([self._typical])}
        for method, expected in zip(self._methods, self._expected, strict=True):
            own = dict(method.to_arrays())
            for number, one in enumerate(expected):
                own |= {f"expected.{number}.{what}": part for what, part in one.to_arrays().items()}
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
                    expected.append(
                        [
                            Expectation.from_arrays(own, f"expected.{number}")
                            for number in range(answers(methods[-1]))
                        ]
                    )
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
    maps = [around(even)]
    for method in methods:
        maps += View.whole(even).said_by(method)
    return np.stack([one.ravel()[::3] for one in maps])


def _by_method(methods: Sequence[Method], one_by_one: Iterable[T]) -> list[list[T]]:
    """What belongs to each method, of as many as they say things together."""
    rest = iter(one_by_one)
    return [list(islice(rest, answers(method))) for method in methods]
