"""What good cloth is expected to show at most, by how bright it is around a place.

A selvedge is rougher than the cloth beside it, and its own good pieces show by how much. From what a method
says is taken what good cloth shows in the same *context*, the brightness of the surroundings; what remains is
above zero on the rarest hundredth of good cloth. It is measured by the *tail* of good cloth, from its rarest
hundredth to its rarest ten-thousandth, so that one unit says the same of every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.anomaly.method import BORDER, Method, Several
from loomsight.fabric.images import to_grey
from loomsight.fabric.tiles import Tile
from loomsight.fabric.types import Box, Picture

RARE = 0.01
"""The share of good cloth that is above what is expected."""
_RAREST = 1e-4  # the share of good cloth at which its tail is measured
_LEAST_TAIL = 0.02  # of a logarithm
_AROUND = 10.0  # pixels of the surroundings, a Gaussian's deviation
_FEW = 200  # places of good cloth: with fewer a context has no expectation of its own
_BELOW = 0.2  # by so much at most a calm context lowers what is expected


def around(even: Picture) -> Float[NDArray[np.float32], "h w"]:
    """The brightness of each place's surroundings."""
    return np.asarray(cv2.GaussianBlur(to_grey(even).astype(np.float32), (0, 0), _AROUND), np.float32)


def window(tiles: Sequence[Tile], image: Picture) -> Box:
    """The part of a picture that tiles lie in, and what else the brightness around their inner part needs."""
    reach = int(4 * _AROUND) - BORDER  # the Gaussian's; a tile's border has no say
    return (
        max(0, min(tile.x0 for tile in tiles) - reach),
        max(0, min(tile.y0 for tile in tiles) - reach),
        min(image.shape[1], max(tile.x1 for tile in tiles) + reach),
        min(image.shape[0], max(tile.y1 for tile in tiles) + reach),
    )


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
        self, surroundings: Float[NDArray[np.float32], "*shape"], said: Float[NDArray[np.float32], "*shape"]
    ) -> Float[NDArray[np.float32], "*shape"]:
        """By how much a method says more than expected, in tails."""
        return (said - self.values[np.digitize(surroundings, self.edges)]) / np.float32(self.tail)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        return {"edges": self.edges, "values": self.values, "tail": np.array([self.tail], np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Self:
        """The same again, from arrays whose names begin with ``name``.

        Raises:
            KeyError, ValueError: these are not its arrays.
        """
        edges, values, (tail,) = (arrays[f"{name}.{what}"] for what in ("edges", "values", "tail"))
        return cls(edges, values, float(tail))


def opinion(
    method: Method,
    expected: Sequence[Expectation],
    surroundings: Float[NDArray[np.float32], "*shape"],
    said: Sequence[Float[NDArray[np.float32], "*shape"]],
) -> Float[NDArray[np.float32], "*shape"]:
    """By how much a method says more than expected, all that it says taken together."""
    beyond = [each.beyond(surroundings, own) for each, own in zip(expected, said, strict=True)]
    return method.joined(beyond) if isinstance(method, Several) else beyond[0]
