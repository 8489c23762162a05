"""How large a tile should be, measured on this machine at first use and remembered.

A large tile wastes little on its borders, a small one stays in the processor's cache: which matters more is
different for each processor, by a factor of two. What one engine measured here holds for all without a gate,
so that they see the same tiles and give the same scores; but an exported one, which has most to win or lose,
measures again where torch did. It is kept in the user's cache folder, ``loomsight/tiles.json``; to measure
again, remove it.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loomsight.errors import StorageError
from loomsight.fabric.tiles import plan_tiles, tile_side
from loomsight.files import read_json, write_json
from loomsight.machine import cores, processor

if TYPE_CHECKING:
    from loomsight.runtime.compiled import Compiled

CANDIDATES = ((256, 512), (512, 512), (512, 1024), (1024, 1024), (512, 2048))
"""Height and width in pixels."""
_STRIP = (1024, 2048)  # pixels of what is measured on
_ROUNDS = 3  # after the first, which compiles; the best counts
_SLOWEST = "torch"  # what it measured holds until another runs


def best_tile(compiled: Compiled, *, shared: int) -> tuple[int, int]:
    """The height and the width of a tile, at most, with which a network is fastest here.

    Args:
        compiled: the network that is measured where nothing is remembered, in a few seconds.
        shared: pixels that neighbouring tiles share.
    """
    key = f"{cores()} × {processor()}"
    known = _remembered().get(key)
    if known is not None and (known.by != _SLOWEST or compiled.runtime == _SLOWEST):
        return known.tile
    # One tile after the other: a runtime that compiles for each size keeps fewer than these.
    best = min(CANDIDATES, key=lambda tile: _seconds(compiled, tile, shared))
    with suppress(StorageError):  # it is measured again next time
        every = {**_remembered(), key: _Measured(best, compiled.runtime)}
        write_json(_file(), {name: one._asdict() for name, one in every.items()})
    return best


class _Measured(NamedTuple):
    """The fastest tile, and what ran it."""

    tile: tuple[int, int]
    by: str


def _seconds(compiled: Compiled, largest: tuple[int, int], shared: int) -> float:
    """How long a strip takes in tiles no larger than that."""
    sides = [
        tile_side(length, most, step=compiled.step, shared=shared)
        for length, most in zip(_STRIP, largest, strict=True)
    ]
    tiles = len(plan_tiles(*_STRIP, tile=(sides[0], sides[1]), overlap=shared))
    pixels = np.random.default_rng(0).integers(0, 256, (1, *sides, 3), np.uint8)
    took = []
    for _ in range(1 + _ROUNDS):
        began = time.perf_counter()
        flying = [compiled.start(pixels) for _ in range(tiles)]
        for pending in flying:
            pending.wait()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def _remembered() -> dict[str, _Measured]:
    """What was measured before; what cannot be read, or is no candidate any more, was not."""
    try:
        every = {
            key: _Measured(tuple(one["tile"]), str(one["by"])) for key, one in read_json(_file()).items()
        }
        return {key: one for key, one in every.items() if one.tile in CANDIDATES}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}


def _file() -> Path:
    if platform.system() == "Windows":
        root = os.environ.get("LOCALAPPDATA")
    else:
        root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "loomsight" / "tiles.json"
