"""How strange is each place of a picture? One score from one method or several, and from teaching.

1. The light is evened (fabric/light.py).
2. Each method says how strange a place is, as a logarithm: a distance, an error, a surprise.
3. From that is taken what good cloth shows in the same *context*, the brightness of the surroundings: a
   selvedge is rougher than the cloth beside it, and its own good pieces show by how much. What remains is
   above zero on the rarest hundredth of good cloth.
4. The methods are averaged. A picture that is stranger than good cloth *as a whole*, by its median, is so
   because of a new lot of yarn or of the lens, and all of it counts less by as much; or the whole picture
   would be one alarm, in which its defects drown. Cloth that is another altogether is noticed by its texture
   code (inspection/familiar.py).
5. What was taught is added. The score is the logistic of twice that: one half where good cloth's rarest
   hundredth begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.anomaly.memory import Memory, MemorySettings
from loomsight.anomaly.prediction import Prediction
from loomsight.errors import DatasetError
from loomsight.fabric.images import to_grey
from loomsight.fabric.light import Light
from loomsight.fabric.tiles import score_tiles
from loomsight.fabric.types import Mask, Picture, ScoreMap
from loomsight.progress import Progress

MethodName = Literal["memory", "prediction"]
TILE, BORDER, OVERLAP = (512, 2048), 32, 16  # pixels: see score_tiles
RARE = 0.01
"""The share of good cloth that is above one half."""
_AROUND = 10.0  # pixels of the surroundings, a Gaussian's deviation
_FEW = 200  # places of good cloth: with fewer a context has no expectation of its own
_SHOWN = 8_000_000  # pixels of those learned from, and of those held back, that expectations come from
_LIGHT = 16  # pictures that the light is read from
_BELOW = 0.2  # by so much at most a calm context lowers what is expected


class Method(Protocol):
    """One way of telling how strange a place is."""

    @property
    def name(self) -> str: ...

    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """A logarithm, of an evenly lit picture or tile, uint8 HWC RGB."""

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""


class Expectation:
    """The most that a method says of good cloth, but for its rarest hundredth, by how bright it is around."""

    def __init__(
        self, edges: Float[NDArray[np.float32], " n"], values: Float[NDArray[np.float32], " m"]
    ) -> None:
        self.edges, self.values = edges, values

    @classmethod
    def of(cls, bright: Float[NDArray[np.float32], " n"], said: Float[NDArray[np.float32], " n"]) -> Self:
        """From places of good cloth: how bright it is around, and what the method says."""
        inner = np.quantile(bright, [0.02, 0.2, 0.4, 0.6, 0.8, 0.98])
        # the bright and the dark ends are small parts of the cloth: they are divided evenly
        ends = np.linspace(float(bright.min()), float(bright.max()), 10)[1:-1]
        edges = np.unique(np.concatenate([inner, ends])).astype(np.float32)
        overall = float(np.quantile(said, 1 - RARE))
        where, values = np.digitize(bright, edges), []
        for context in range(len(edges) + 1):
            own = said[where == context]
            value = float(np.quantile(own, 1 - RARE)) if len(own) >= _FEW else overall
            values.append(max(value, overall - _BELOW))
        return cls(edges, np.array(values, np.float32))

    def at(self, around: Float[NDArray[np.float32], "h w"]) -> Float[NDArray[np.float32], "h w"]:
        """The expectation at each place."""
        return self.values[np.digitize(around, self.edges)]


class Normality:
    """What good cloth of one fabric looks like; made by :meth:`fit`, or from :meth:`to_arrays`."""

    def __init__(
        self, light: Light, methods: Sequence[Method], expected: Sequence[Expectation], typical: float
    ) -> None:
        self._light, self._methods, self._expected = light, tuple(methods), tuple(expected)
        self._typical = typical  # the median strangeness of good cloth

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of its methods."""
        return tuple(method.name for method in self._methods)

    @classmethod
    def fit(
        cls,
        good: Sequence[Picture],
        *,
        held: Sequence[Picture] = (),
        methods: Sequence[MethodName] = ("memory", "prediction"),
        memory: MemorySettings | None = None,
        seconds: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Learn what good cloth looks like.

        Args:
            good: uint8 pictures, HW or HWC RGB.
            held: other good pictures: what is strange in cloth that was not learned is expected too.
            seconds: about how long it may take; pictures that are left then are not remembered.

        Raises:
            DatasetError: there is no picture.
            WeightsError: a network's weights are missing.
        """
        if not len(good):
            raise DatasetError("no good cloth to learn from")
        light = Light.of(good[i] for i in _spread(len(good), _LIGHT))
        even = _Even(light, good)
        made: list[Method] = []
        for name in methods:
            if name == "memory":
                made.append(Memory.fit(even, memory, seconds=seconds, seed=seed, progress=progress))
            else:
                made.append(Prediction.fit(even, seed=seed))
        places = [_places(made, one) for one in even.some()]
        unseen = [_places(made, one) for one in _Even(light, held).some()] if len(held) else []
        bright, *said = np.concatenate(places + unseen, axis=1)
        expected = [Expectation.of(bright, own) for own in said]
        rest = [
            np.mean([own - e.at(around) for own, e in zip(strange, expected, strict=True)], axis=0)
            for around, *strange in unseen or places
        ]
        return cls(light, made, expected, float(np.median(np.concatenate(rest))))

    def score(self, image: Picture) -> ScoreMap:
        """How strange each place is.

        Args:
            image: uint8, HW or HWC RGB, of any size.

        Returns:
            float32 HW in [0, 1].
        """
        even = self._light.even(image)
        around = _around(even)
        strange = np.zeros(even.shape[:2], np.float32)
        for method, expected in zip(self._methods, self._expected, strict=True):
            strange += (_tiled(method.strangeness, even) - expected.at(around)) / len(self._methods)
        strange -= max(0.0, float(np.median(strange)) - self._typical)
        for method in self._methods:
            if isinstance(method, Memory) and method.taught:
                strange += _tiled(method.recognised, even)
        return np.asarray(1 / (1 + np.exp(-2 * strange)), np.float32)

    def teach(self, picture: Picture, where: Mask, *, defect: bool) -> None:
        """Learn from one place: a defect that was missed, or good cloth that raised a false alarm.

        Args:
            picture: the whole picture, as it was inspected.
            where: bool HW, the place.
            defect: whether it is one.

        Raises:
            ValueError: the place is empty or has another size than the picture, or nothing here remembers.
        """
        self._memory().teach(self._light.even(picture), where, defect=defect)

    def add(self, good: Sequence[Picture], *, seed: int = 0) -> None:
        """Remember more good cloth; nothing is trained.

        Raises:
            ValueError: nothing here remembers.
        """
        self._memory().add(_Even(self._light, good), seed=seed)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that it knows, as plain arrays."""
        light = np.array([*self._light.middle, self._light.spread])
        arrays: dict[str, NDArray[Any]] = {"light": light, "typical": np.array([self._typical])}
        for method, expected in zip(self._methods, self._expected, strict=True):
            own = method.to_arrays() | {"expected.edges": expected.edges, "expected.values": expected.values}
            arrays |= {f"{method.name}.{key}": value for key, value in own.items()}
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
            for name, build in _BUILD.items():
                own = {
                    key.removeprefix(f"{name}."): value
                    for key, value in arrays.items()
                    if key.startswith(f"{name}.")
                }
                if own:
                    methods.append(build(own))
                    expected.append(Expectation(own["expected.edges"], own["expected.values"]))
        except KeyError as error:
            raise ValueError(f"a normality has no {error}") from error
        if not methods:
            raise ValueError("a normality without a method")
        return cls(Light((red, green, blue), spread), methods, expected, typical)

    def _memory(self) -> Memory:
        for method in self._methods:
            if isinstance(method, Memory):
                return method
        raise ValueError(f"{' and '.join(self.methods)} cannot be taught: it needs a memory")


_BUILD: dict[str, Callable[[Mapping[str, NDArray[Any]]], Method]] = {
    "memory": Memory.from_arrays,
    "prediction": Prediction.from_arrays,
}


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
        height, width = self._pictures[0].shape[:2]
        for index in _spread(len(self), max(1, _SHOWN // (height * width))):
            yield self[index]


def _spread(count: int, most: int) -> list[int]:
    """At most so many places of a sequence, spread evenly."""
    return [int(place) for place in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))]


def _places(methods: Sequence[Method], even: Picture) -> Float[NDArray[np.float32], "m n"]:
    """Of every third place of a picture: how bright it is around, and what each method says."""
    maps = [_around(even), *(_tiled(method.strangeness, even) for method in methods)]
    return np.stack([one.ravel()[::3] for one in maps])


def _around(even: Picture) -> Float[NDArray[np.float32], "h w"]:
    """The brightness of each place's surroundings."""
    return np.asarray(cv2.GaussianBlur(to_grey(even).astype(np.float32), (0, 0), _AROUND), np.float32)


def _tiled(
    strangeness: Callable[[Picture], Float[NDArray[np.float32], "h w"]], even: Picture
) -> Float[NDArray[np.float32], "h w"]:
    height, width = (max(side, 2 * BORDER + OVERLAP + 1) for side in even.shape[:2])
    tile = min(height, TILE[0]), min(width, TILE[1])
    one_by_one: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = lambda tiles: np.stack(  # noqa: E731
        [strangeness(part) for part in tiles]
    )
    return score_tiles(even, one_by_one, tile=tile, overlap=OVERLAP, border=BORDER, batch=1)
