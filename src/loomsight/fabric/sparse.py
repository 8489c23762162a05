"""A score map of which only some windows are known; elsewhere the cloth is surely good, and its score 0.

On a good roll that is almost everything. A map of every pixel would cost more to fill and to search than the
networks that answered for the windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import Region, ScoreMap


@dataclass(frozen=True, slots=True)
class SparseMap:
    """The scores of a picture, where they are known.

    Attributes:
        shape: height and width of the picture, pixels.
        windows: of each its upper left corner (y, x) and its scores, float32 HW in [0, 1]. What is known
            twice is the same; regions do not reach from one window into another.
    """

    shape: tuple[int, int]
    windows: Sequence[tuple[int, int, ScoreMap]]

    @classmethod
    def whole(cls, score: ScoreMap) -> SparseMap:
        """Of a score map that is known everywhere."""
        return cls((score.shape[0], score.shape[1]), [(0, 0, score)])

    @property
    def complete(self) -> bool:
        """Whether it is known everywhere."""
        return len(self.windows) == 1 and self.windows[0][2].shape == self.shape

    @property
    def highest(self) -> float:
        """The highest score; 0 where nothing is known."""
        return max((float(score.max()) for _, _, score in self.windows), default=0.0)

    def dense(self) -> ScoreMap:
        """The map of every pixel."""
        return self.part(0, 0, *self.shape)

    def part(self, top: int, left: int, bottom: int, right: int) -> Float[NDArray[np.float32], "h w"]:
        """The scores of a rectangle of the picture."""
        if self.complete:
            return self.windows[0][2][top:bottom, left:right]
        scores = np.zeros((bottom - top, right - left), np.float32)
        for y, x, score in self.windows:
            y0, x0 = max(top, y), max(left, x)
            y1, x1 = min(bottom, y + score.shape[0]), min(right, x + score.shape[1])
            if y0 < y1 and x0 < x1:
                inside = scores[y0 - top : y1 - top, x0 - left : x1 - left]
                np.maximum(inside, score[y0 - y : y1 - y, x0 - x : x1 - x], out=inside)
        return scores

    def regions(self, threshold: float, *, min_area: int = 1, merge_gap: int = 0) -> list[Region]:
        """The regions of the picture, in reading order: see :func:`find_regions`."""
        found = []
        for y, x, score in self.windows:
            for region in find_regions(score, threshold, min_area=min_area, merge_gap=merge_gap):
                x0, y0, x1, y1 = region.box
                found.append(replace(region, box=(x0 + x, y0 + y, x1 + x, y1 + y)))
        return found if len(self.windows) < 2 else sorted(found, key=lambda one: (one.box[1], one.box[0]))
