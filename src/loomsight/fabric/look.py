"""What was seen of a picture: its score map, or that all of it is surely good, or the map of some parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.regions import EVERY_PIXEL, Grouping, find_regions
from loomsight.fabric.types import Region, ScoreMap


@dataclass(frozen=True, slots=True)
class Look:
    """The scores of a picture, where they are known; elsewhere the cloth is surely good, and its score 0.

    Attributes:
        shape: height and width of the picture, pixels.
        score: float32 HW in [0, 1]; None where all of it is surely good, as most of a roll is: a map of zeros
            would cost more to fill and to search than the gate that knew it.
        complete: whether the score is known everywhere.
    """

    shape: tuple[int, int]
    score: ScoreMap | None
    complete: bool

    @classmethod
    def whole(cls, score: ScoreMap) -> Look:
        """Of a score map that is known everywhere."""
        return cls((score.shape[0], score.shape[1]), score, True)

    @property
    def highest(self) -> float:
        """The highest score."""
        return 0.0 if self.score is None else float(self.score.max())

    def dense(self) -> ScoreMap:
        """The map of every pixel."""
        return np.zeros(self.shape, np.float32) if self.score is None else self.score

    def part(self, top: int, left: int, bottom: int, right: int) -> Float[NDArray[np.float32], "h w"]:
        """The scores of a rectangle of the picture."""
        if self.score is None:
            return np.zeros((bottom - top, right - left), np.float32)
        return self.score[top:bottom, left:right]

    def regions(self, threshold: float, grouping: Grouping = EVERY_PIXEL) -> list[Region]:
        """The regions of the picture: see :func:`find_regions`."""
        if self.score is None:
            return []
        return find_regions(self.score, threshold, grouping)
