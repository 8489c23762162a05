"""Cut a picture of any size into tiles at its native resolution, and blend their score maps back.

A defect is often three pixels wide, so nothing is shrunk. Where tiles overlap, each counts by a window
that falls smoothly to almost nothing at its edge, where a network has seen the least context; at the
picture's own border nothing else is there, so the window stays flat. The weights sum to one at every
pixel: tiles of an image stitch back to that image, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.types import Box, Mask, ScoreMap


class Tile(NamedTuple):
    """A rectangle in pixels of the picture, far edge excluded; it may reach beyond the picture."""

    y0: int
    x0: int
    y1: int
    x1: int


def plan_tiles(height: int, width: int, *, tile: int | tuple[int, int], overlap: int) -> list[Tile]:
    """Tiles of one size that cover a picture, in reading order.

    They begin every ``tile - overlap`` pixels; the last of a row or column is moved back to end with the
    picture. Along a side that is shorter than a tile there is one tile, reaching beyond the picture.

    Args:
        height, width: the picture, in pixels.
        tile: the tile's height and width, or one number for both.
        overlap: pixels that neighbours share at least, fewer than a tile's side.

    Raises:
        ValueError: a size is not positive, or the overlap does not fit the tile.
    """
    tile_height, tile_width = (tile, tile) if isinstance(tile, int) else tile
    if min(height, width, tile_height, tile_width) < 1 or not 0 <= overlap < min(tile_height, tile_width):
        raise ValueError(
            f"cannot tile {height} × {width} pixels with tiles of {tile_height} × {tile_width} "
            f"overlapping by {overlap}"
        )
    return [
        Tile(y, x, y + tile_height, x + tile_width)
        for y in _starts(height, tile_height, overlap)
        for x in _starts(width, tile_width, overlap)
    ]


def cut(image: NDArray[Any], tile: Tile) -> NDArray[Any]:
    """The pixels of a tile, HW or HWC; beyond the picture it is mirrored (the edge pixel once).

    Inside the picture this is a view, not a copy.
    """
    height, width = image.shape[:2]
    if tile.y0 >= 0 and tile.x0 >= 0 and tile.y1 <= height and tile.x1 <= width:
        return image[tile.y0 : tile.y1, tile.x0 : tile.x1]
    return image[np.ix_(_mirrored(tile.y0, tile.y1, height), _mirrored(tile.x0, tile.x1, width))]


class Canvas:
    """A picture's array that tiles are blended into, as they come; it holds one float32 array of its size.

    Args:
        shape: height and width of the picture, and channels if the values have them.
        tiles: the whole plan, as :func:`plan_tiles` makes it.

    Raises:
        ValueError: the tiles are not a full grid.
    """

    def __init__(self, shape: tuple[int, ...], tiles: Sequence[Tile]) -> None:
        height, width = shape[:2]
        self._rows = _weights(sorted({(tile.y0, tile.y1) for tile in tiles}), height)
        self._columns = _weights(sorted({(tile.x0, tile.x1) for tile in tiles}), width)
        if len(tiles) != len(self._rows) * len(self._columns):
            grid = f"{len(self._rows)} rows and {len(self._columns)} columns"
            raise ValueError(f"{len(tiles)} tiles are no grid of {grid}")
        self.array = np.zeros(shape, np.float32)

    def weight(self, tile: Tile) -> Float[NDArray[np.float32], "h w"]:
        """By how much each pixel of a tile counts, within the picture; all tiles sum to one."""
        return np.outer(self._rows[tile.y0, tile.y1], self._columns[tile.x0, tile.x1])

    def add(self, tile: Tile, value: NDArray[Any]) -> None:
        """Blend a tile's values in: HW or HWC, whole numbers or floats; what lies beyond the picture is not.

        Raises:
            ValueError: the values have not the tile's shape.
        """
        shape = self.array.shape
        wanted = (tile.y1 - tile.y0, tile.x1 - tile.x0, *shape[2:])
        if value.shape != wanted:
            raise ValueError(f"the values of {tile} must have shape {wanted}, got {value.shape}")
        top, left = max(tile.y0, 0), max(tile.x0, 0)
        bottom, right = min(tile.y1, shape[0]), min(tile.x1, shape[1])
        inside = value[top - tile.y0 : bottom - tile.y0, left - tile.x0 : right - tile.x0]
        if inside.shape == shape:  # one tile is the picture
            self.array[:] = inside
            return
        more = (1,) * (len(shape) - 2)
        down = self._rows[tile.y0, tile.y1].reshape(-1, 1, *more)
        across = self._columns[tile.x0, tile.x1].reshape(1, -1, *more)
        self.array[top:bottom, left:right] += inside * (down * across)


class Mosaic:
    """The plan of a picture that is scored tile by tile, and its score map as the tiles' scores come.

    Where tiles meet, each one's outer ``border`` pixels are context only and their scores are dropped; the
    rest overlap by ``overlap`` pixels and are blended. So a score that depends on at most ``border`` pixels
    around it is exactly what scoring the picture in one piece would give; one that looks farther changes
    smoothly from tile to tile. Nothing is put around the picture itself: a mirrored twill has a kink at
    the mirror, which a network takes for a defect.

    Args:
        shape: of the picture, in pixels, and channels if there are several scores of each place.
        tile: what the network sees: height and width, or one number for both. Along a side where the
            picture is shorter it is mirrored, so a tile no larger than the picture is better.
        overlap: pixels that neighbours share at least, after the borders are dropped.
        border: pixels of context at each side where a tile has a neighbour.

    Attributes:
        tiles: what to score, in order.

    Raises:
        ValueError: border and overlap leave nothing of a tile.
    """

    def __init__(
        self, shape: tuple[int, ...], *, tile: int | tuple[int, int], overlap: int, border: int
    ) -> None:
        tile_height, tile_width = (tile, tile) if isinstance(tile, int) else tile
        if border < 0 or 2 * border + overlap >= min(tile_height, tile_width):
            raise ValueError(
                f"tiles of {tile_height} × {tile_width} have no room for a border of {border} at each side "
                f"and an overlap of {overlap}"
            )
        height, width = shape[:2]
        self.tiles = plan_tiles(height, width, tile=tile, overlap=overlap + 2 * border)
        self._cores = [
            Tile(
                y0 + border * (y0 > 0),
                x0 + border * (x0 > 0),
                y1 - border * (y1 < height),
                x1 - border * (x1 < width),
            )
            for y0, x0, y1, x1 in self.tiles
        ]
        self._canvas, self._done = Canvas(shape, self._cores), 0

    def add(self, scores: NDArray[np.float32]) -> bool:
        """Take the scores of the next tile, float32 HW; whether it was the last.

        Raises:
            ValueError: they have the wrong shape.
        """
        self.put(self._done, scores)
        self._done += 1
        return self._done == len(self.tiles)

    def put(self, number: int, scores: NDArray[np.float32]) -> None:
        """Take the scores of a tile.

        Raises:
            ValueError: they have the wrong shape.
        """
        tile, core = self.tiles[number], self._cores[number]
        wanted = (tile.y1 - tile.y0, tile.x1 - tile.x0, *self._canvas.array.shape[2:])
        if scores.shape != wanted:
            raise ValueError(f"scores must be {wanted}, got {scores.shape}")
        part = scores[core.y0 - tile.y0 : core.y1 - tile.y0, core.x0 - tile.x0 : core.x1 - tile.x0]
        self._canvas.add(core, part)

    def covering(self, boxes: Iterable[Box]) -> list[int]:
        """The tiles that have a say in some boxes."""
        needed = set()
        for left, top, right, bottom in boxes:
            for number, core in enumerate(self._cores):
                if core.x0 < right and left < core.x1 and core.y0 < bottom and top < core.y1:
                    needed.add(number)
        return sorted(needed)

    def known(self, put: Iterable[int]) -> Mask:
        """Where the map is whole although only these tiles were put."""
        whole = np.zeros(self.map.shape, np.bool_)
        cores = [self._cores[number] for number in put]
        if not cores:
            return whole
        top, left = (max(0, min(core[side] for core in cores)) for side in (0, 1))
        bottom, right = (max(core[side] for core in cores) for side in (2, 3))
        part = whole[top:bottom, left:right]  # of a roll mostly a small part
        total = np.zeros(part.shape, np.float32)
        for core in cores:
            into = slice(max(core.y0, 0) - top, core.y1 - top), slice(max(core.x0, 0) - left, core.x1 - left)
            total[into] += self._canvas.weight(core)
        part[:] = total > 1 - 1e-5
        return whole

    def partial(self, put: Iterable[int]) -> tuple[ScoreMap, Mask]:
        """The map when only these tiles were put, 0 where it is not whole; and where it is."""
        numbers = list(put)
        known = self.known(numbers)
        for number in numbers:
            core = self._cores[number]
            inside = slice(max(core.y0, 0), core.y1), slice(max(core.x0, 0), core.x1)
            self.map[inside] *= known[inside]  # all else is 0 already, and of a roll that is most
        return self.map, known

    @property
    def map(self) -> ScoreMap:
        """float32 HW; whole when the last tile has been added."""
        return self._canvas.array


def even_cuts(length: int, most: int) -> list[slice]:
    """A side in pieces of at most ``most`` pixels, as even as may be, that share none."""
    edges = np.linspace(0, length, -(-length // most) + 1).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def tile_side(length: int, largest: int, *, step: int, shared: int) -> int:
    """The side of the tiles that one side of a picture is cut into: a multiple of ``step``.

    As few tiles as ``largest`` allows, and no larger than they must be. A length that is no multiple itself
    is cut into two tiles at least, so that none reaches beyond the picture; only a length that is too short
    for that is mirrored.

    Args:
        length: of the picture's side; largest: of a tile's, a multiple of ``step``; shared: pixels that
            neighbours share at least.
    """
    if length <= largest and length % step == 0:
        return length
    count = max(2, -(-(length - shared) // (largest - shared)))
    side = -(-(length + (count - 1) * shared) // count)
    side = -(-side // step) * step
    return side if side <= length else -(-length // step) * step


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _mirrored(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Indices into a line that is mirrored at both ends, as often as needed: … 2 1 0 1 2 … n−1 n−2 …"""
    if length == 1:
        return np.zeros(stop - start, np.intp)
    place = np.arange(start, stop) % (2 * (length - 1))
    return np.minimum(place, 2 * (length - 1) - place)


def _weights(
    spans: Sequence[tuple[int, int]], length: int
) -> dict[tuple[int, int], Float[NDArray[np.float32], " n"]]:
    """For each span along one side, the weight of each of its pixels inside the picture; they sum to one.

    A grid's weight at a pixel is the product of its row's and its column's, so each side is normalised on
    its own and no second canvas is needed.
    """
    total = np.zeros(length)
    windows = {}
    for start, stop in spans:
        place = (np.arange(max(start, 0), min(stop, length)) - start + 0.5) / (stop - start)
        if start <= 0:
            place = np.maximum(place, 0.5)
        if stop >= length:
            place = np.minimum(place, 0.5) if start > 0 else np.full_like(place, 0.5)
        windows[start, stop] = np.sin(np.pi * place) ** 2
        total[max(start, 0) : stop] += windows[start, stop]
    if not total.all():
        raise ValueError("the tiles do not cover the picture")
    return {
        (start, stop): (window / total[max(start, 0) : stop]).astype(np.float32)
        for (start, stop), window in windows.items()
    }
