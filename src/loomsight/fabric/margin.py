"""The edges of a web that are no matter: what lies there is neither learned nor reported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from loomsight.errors import UsageError
from loomsight.fabric.types import Box, Mask, Picture, ScoreMap

Pixels = TypeVar("Pixels", Picture, ScoreMap, Mask)
Along = Literal["x", "y"]
"""The axis of a picture that runs along the roll."""


@dataclass(frozen=True, slots=True)
class Margin:
    """So much at either selvedge.

    Attributes:
        width: millimetres, or pixels where the scale is unknown, 0 or more.
        mm_per_px: the scale, or None.
        along: the axis of the pictures that runs along the roll.
    """

    width: float = 0.0
    mm_per_px: float | None = None
    along: Along = "y"

    @property
    def pixels(self) -> float:
        """The same in pixels."""
        return self.width / (self.mm_per_px or 1.0)

    def __str__(self) -> str:
        return f"{self.width:g} {'px' if self.mm_per_px is None else 'mm'}"

    def across(self, image: Picture) -> int:
        """The width of the web in a picture, pixels."""
        height, width = image.shape[:2]
        return int(width if self.along == "y" else height)

    def check(self, name: str, across: int) -> None:
        """Whether something is left of a picture that is so wide.

        Raises:
            UsageError: nothing is.
        """
        if 2 * math.ceil(self.pixels) >= across:
            raise UsageError(
                f"a margin of {self} leaves nothing of the cloth",
                where=name,
                why=f"the picture is {across} px wide",
                do="give a smaller --margin",
            )

    def hides(self, box: Box | NDArray[np.float32], across: int) -> bool:
        """Whether a box, xyxy, lies within a margin of a web so wide, pixels."""
        low, high = (box[0], box[2]) if self.along == "y" else (box[1], box[3])
        return bool(high <= self.pixels or low >= across - self.pixels)

    def between(self, image: Pixels) -> Pixels:
        """The part of a picture, or of its score map, between the margins."""
        edge = math.ceil(self.pixels)
        across = image.shape[1 if self.along == "y" else 0]
        part = slice(edge, across - edge)
        return image[:, part] if self.along == "y" else image[part]
