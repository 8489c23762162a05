"""Settings of all tests: a busy machine is no reason to fail, and CI tries the same cases every time."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:  # what a test does not need is not loaded for it
    from collections.abc import Iterable, Iterator, Sequence

    from loomsight.fabric.tiles import Tile
    from loomsight.fabric.types import Box, Mask, Picture, ScoreMap

# What is measured of a machine that runs tests says nothing of it, and is not to be remembered.
_cache = tempfile.TemporaryDirectory(prefix="loomsight-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _cache.name

settings.register_profile("loomsight", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loomsight")

LONGEST = ("detector_stability", "export", "learn", "loom", "throughput", "base", "anomaly", "rtdetr")
"""Files that take minutes. They come first: one that started last would keep the other worker waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all else in its order (the sort is stable)."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


class Blind:
    """A segmenter that finds nothing."""

    runtime = "test"

    def score(self, image: Picture) -> ScoreMap:
        return np.full(image.shape[:2], 0.01, np.float32)

    def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]:
        return map(self.score, images)

    def score_where(self, image: Picture, boxes: Sequence[Box]) -> tuple[ScoreMap, Mask]:
        return self.score(image), np.ones(image.shape[:2], np.bool_)

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
        return (
            [np.full((tile.y1 - tile.y0, tile.x1 - tile.x0), 0.01, np.float32) for tile in tiles]
            for _, tiles in jobs
        )

    def corrected(self, image: Picture) -> Picture:
        return image


@pytest.fixture
def blind() -> Blind:
    """A segmenter that finds nothing: what a union finds, its normality found."""
    return Blind()
