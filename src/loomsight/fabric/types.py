"""The words for cloth and its defects, with their units.

A *picture* is uint8, grey HW or RGB HWC. A *mask* is bool HW, true where the cloth is defective. A
*box* is xyxy in pixels, the far edge excluded. A *place* is metres along the roll from its start and
millimetres across from the left selvedge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
"""uint8, HW grey or HWC RGB."""
Mask: TypeAlias = NDArray[np.bool_]
"""bool, HW, true on a defect."""
ScoreMap: TypeAlias = NDArray[np.float32]
"""float32, HW, in [0, 1]: how likely each pixel is defective."""
Box: TypeAlias = tuple[int, int, int, int]
"""xyxy in pixels of the picture, far edge excluded."""

UNKNOWN = "unknown"
DEFECT_TYPES: tuple[str, ...] = (
    # woven
    "broken end", "missing end", "double end", "broken pick", "missing pick", "double pick", "mispick",
    "float", "slub", "snarl", "reed mark", "weft bar", "starting mark", "weft crack", "weft curling",
    "burl mark", "smash", "oil stain", "colour spot", "stain", "hole", "tear", "knot", "nep", "fuzzy ball",
    "warp ball", "barré", "selvedge cut", "crease", "contamination", "broken yarn",
    # knitted
    "needle line", "dropped stitch", "ladder", "barriness", "sinker mark", "spandex miss",
    UNKNOWN,
)  # fmt: skip
"""The trade's names, one vocabulary for the loom, the data sets, the networks and the reports."""


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture with what is known of it.

    Attributes:
        image: uint8, HW or HWC RGB.
        mask: bool HW, or None when the pixels are not labelled. All false: good cloth.
        boxes: float32 (n, 4) xyxy pixels, or None when there are no boxes.
        types: a name for each box, or for each connected part of the mask; may be empty.
        fabric: the name of the fabric; source: what the picture was cut from (leak-free splits).
    """

    image: Picture
    mask: Mask | None = None
    boxes: NDArray[np.float32] | None = None
    types: tuple[str, ...] = ()
    fabric: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim not in (2, 3):
            raise ValueError(f"image must be uint8 HW or HWC, got {self.image.dtype} {self.image.shape}")
        if self.mask is not None and self.mask.shape != self.image.shape[:2]:
            raise ValueError(f"mask must be {self.image.shape[:2]} like its image, got {self.mask.shape}")
        if self.boxes is not None and (self.boxes.ndim != 2 or self.boxes.shape[1] != 4):
            raise ValueError(f"boxes must be (n, 4) xyxy, got {self.boxes.shape}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the roll: metres from its start, millimetres from the left selvedge."""

    metres: float
    millimetres: float


@dataclass(frozen=True, slots=True)
class Region:
    """One connected defective region of a score map.

    Attributes:
        box: xyxy in pixels of the picture, far edge excluded.
        area: pixels.
        length: pixels, the longer side of the smallest rotated rectangle around it.
        score: its highest score, in [0, 1].
        type: a name of :data:`DEFECT_TYPES`.
        parts: boxes that together hold it, where it was seen piece by piece; the box of a line on the slant
            holds much else.
    """

    box: tuple[int, int, int, int]
    area: int
    length: float
    score: float
    type: str = UNKNOWN
    parts: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingTile:
    """What a recipe makes, and a segmenter or a detector learns from.

    Attributes:
        image: uint8 HWC RGB.
        target: float32 HW in [0, 1], 1 on a defect.
        weight: float32 HW ≥ 0, 0 where the label is unknown (inside a box without a mask).
        origin: where its defect comes from, for reports ("paste", "drawn", "real", "good", …).
        instances: int16 HW, or HWL where boxes overlap; 0 on good cloth, k on the defect whose type is
            ``types[k - 1]``, also where it is only boxed; None: there is none.
        types: names of :data:`DEFECT_TYPES`.
    """

    image: Picture
    target: NDArray[np.float32]
    weight: NDArray[np.float32]
    origin: str = field(default="good")
    instances: NDArray[np.int16] | None = None
    types: tuple[str, ...] = ()
