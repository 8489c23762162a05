"""What tells how strange each place is, one method beside others, and how a picture is shown to it.

A method answers with a logarithm for each place, or with several. It sees a picture in tiles, whose answers
are laid together; of a picture that is looked at in part it sees the tiles that the whole picture would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.anomaly.features import STEP
from loomsight.fabric.tiles import Mosaic, Tile, cut, tile_side
from loomsight.fabric.types import Box, Picture

TILE, BORDER, OVERLAP = (512, 512), 32, 16  # pixels: see Mosaic; larger ones leave the cache

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


def answers(method: Method) -> int:
    """How many things a method says of each place."""
    return method.said if isinstance(method, Several) else 1


@dataclass(frozen=True, slots=True)
class View:
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

    def said_by(self, method: Method) -> list[Float[NDArray[np.float32], "h w"]]:
        """What a method says of it, each thing by itself; 0 where no tile is looked at."""
        each = method.strangeness_of if isinstance(method, Ahead) else partial(map, method.strangeness)
        said = self.tiled(each, answers(method))
        return [said] if said.ndim == 2 else list(np.moveaxis(said, -1, 0))

    def tiled(self, each: Callable[[Sequence[Picture]], Iterable[Said]], count: int = 1) -> Said:
        """What is said of each of its tiles, laid together; ``count`` things of each place."""
        mosaic = mosaic_of(self.shape, count)
        numbers = range(len(mosaic.tiles)) if self.numbers is None else self.numbers
        left, top, right, bottom = self.box
        tiles = [
            cut(self.even, Tile(y0 - top, x0 - left, y1 - top, x1 - left))
            for y0, x0, y1, x1 in (mosaic.tiles[number] for number in numbers)
        ]
        for number, said in zip(numbers, each(tiles), strict=True):
            mosaic.put(number, said)
        return mosaic.map[top:bottom, left:right]

    def placed(self, part: Float[NDArray[np.float32], "h w"]) -> Float[NDArray[np.float32], "i j"]:
        """The map of the whole picture that is 0 but for what is looked at."""
        left, top, right, bottom = self.box
        whole = np.zeros(self.shape, np.float32)
        whole[top:bottom, left:right] = part
        return whole


def mosaic_of(shape: tuple[int, int], count: int = 1) -> Mosaic:
    """The tiles of a picture of a height and width, and the map that they are laid into."""
    shared = 2 * BORDER + OVERLAP
    least = -(-(shared + 1) // STEP) * STEP
    height, width = (
        max(tile_side(side, most, step=STEP, shared=shared), least)
        for side, most in zip(shape, TILE, strict=True)
    )
    whole = shape if count == 1 else (*shape, count)
    return Mosaic(whole, tile=(height, width), overlap=OVERLAP, border=BORDER)
