"""One picture of a data set and what its labels say, before any pixel is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loomsight.datasets.outlines import Box, Outline, masks_to_boxes, union
from loomsight.errors import DatasetError
from loomsight.fabric.images import read_image, read_mask
from loomsight.fabric.types import DEFECT_TYPES, UNKNOWN, LabelledPicture, Mask

ALIASES: dict[str, str] = {
    "barre": "barré",
    "cut selvage": "selvedge cut",
    "cut selvedge": "selvedge cut",
    "color": "colour spot",
    "color spot": "colour spot",
    "colour": "colour spot",
    "cut": "tear",
    "foreign object": "contamination",
    "fuzzyball": "fuzzy ball",
    "knots": "knot",
    "metal contamination": "contamination",
    "neps": "nep",
    "object": "contamination",
    "objects": "contamination",
    "oil": "oil stain",
    "oil spot": "oil stain",
    "selvage cut": "selvedge cut",
    "snag": "snarl",
    "spot": "stain",
    "thread": "contamination",  # MVTec's carpet: a loose thread that lies on the cloth
    "thread error": "broken yarn",
    "warpball": "warp ball",
    "wrinkle": "crease",
}
"""What data sets call a defect, to the name of :data:`loomsight.fabric.types.DEFECT_TYPES`."""

AITEX_CODES: dict[int, str] = {
    2: "broken end", 6: "broken yarn", 10: "broken pick", 16: "weft curling", 19: "fuzzy ball",
    22: "selvedge cut", 23: "crease", 25: "warp ball", 27: "knot", 29: "contamination", 30: "nep",
    36: "weft crack",
}  # fmt: skip
"""The defect codes in AITEX file names (Silvestre-Blanes et al., A Public Fabric Database for Defect
Detection Methods and Results, 2019)."""

_AITEX = re.compile(r"(?P<strip>\d{4}_(?P<code>\d{2,3})_(?P<fabric>\d{2}))(?:[_-](?!mask).*)?")
_COPY = re.compile(r"(?P<stem>.+)_[A-Za-z]+\.rf\.[0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class AitexName:
    """What an AITEX file name says: ``strip`` NNNN_DDD_FF, defect ``code`` (0: good), ``fabric`` FF."""

    strip: str
    code: int
    fabric: str

    @property
    def type(self) -> str:
        """The defect's name in the vocabulary."""
        return AITEX_CODES.get(self.code, UNKNOWN)


def aitex_name(stem: str) -> AitexName | None:
    """Read an AITEX stem ``NNNN_DDD_FF``, with or without a window after it; None when it is none."""
    found = _AITEX.fullmatch(stem)
    return None if found is None else AitexName(found["strip"], int(found["code"]), found["fabric"])


def defect_type(name: str) -> str:
    """The vocabulary's name for what a data set calls a defect; ``unknown`` when there is none."""
    plain = " ".join(re.sub(r"[_\-\s]+", " ", name).split()).lower()
    plain = ALIASES.get(plain, plain)
    return plain if plain in DEFECT_TYPES else UNKNOWN


def source_of(path: Path, root: Path) -> str:
    """What a picture was cut from, as far as its name tells.

    AITEX windows share their strip ``NNNN_DDD_FF``; the copies that Roboflow makes (rotated, flipped,
    brightened) share the stem before ``_jpg.rf.…``; any other picture is its own source.
    """
    name = aitex_name(path.stem)
    if name is not None:
        return name.strip
    copy = _COPY.fullmatch(path.stem)
    if copy is not None:
        return copy["stem"]
    return path.relative_to(root).with_suffix("").as_posix()


@dataclass(frozen=True, slots=True)
class Item:
    """A picture on disk and its labels.

    Attributes:
        path: the picture's file.
        fabric: the fabric's name: its folder, relative to the data set's root.
        source: what it was cut from. Two items of one source never stand on two sides of a split.
        good: the cloth has no defect.
        mask: the picture of its pixel mask, or None; more_masks: further ones, whose union counts.
        boxes: xyxy in pixels as the annotation has them, or None when there are none to know.
        types: a name for each box, or one for the picture; names of ``DEFECT_TYPES``.
        outlines: the shape of each box's defect where the annotation holds it (COCO).
    """

    path: Path
    fabric: str
    source: str
    good: bool
    mask: Path | None = None
    boxes: tuple[Box, ...] | None = None
    types: tuple[str, ...] = ()
    more_masks: tuple[Path, ...] = ()
    outlines: tuple[Outline, ...] = ()

    def load(self) -> LabelledPicture:
        """Read the picture and its mask.

        Good cloth gets an all-false mask; a defect that is only boxed gets none. Boxes are clipped to
        the picture. A single type stands for every box or connected part.

        Raises:
            ImageError: the picture or its mask cannot be read, or their sizes differ.
            DatasetError: an outline does not fit the picture.
        """
        image = read_image(self.path)
        shape = (image.shape[0], image.shape[1])
        mask = self.load_mask(shape)
        types = self.types
        boxes = None
        if self.boxes is not None:
            boxes, types = self._clipped(shape)
        elif mask is not None and len(types) == 1:
            types = types * len(masks_to_boxes(mask))
        return LabelledPicture(image, mask, boxes, types, self.fabric, self.source)

    def load_mask(self, shape: tuple[int, int]) -> Mask | None:
        """The mask of a picture of ``shape`` (height, width); None when its pixels are not labelled."""
        if self.good:
            return np.zeros(shape, np.bool_)
        if self.mask is not None:
            return union((read_mask(path, shape) for path in (self.mask, *self.more_masks)), shape)
        if self.outlines and len(self.outlines) == len(self.boxes or ()):
            try:
                return union((outline.mask(shape) for outline in self.outlines), shape)
            except ValueError as error:
                raise DatasetError("the outline does not fit", where=self.path, why=str(error)) from error
        return None

    def _clipped(self, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
        height, width = shape
        boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        boxes = boxes.clip(0, np.asarray([width, height, width, height], np.float32))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        types = self.types * len(boxes) if len(self.types) == 1 else self.types
        if len(types) == len(boxes):
            types = tuple(name for name, keep in zip(types, kept, strict=True) if keep)
        return boxes[kept], types
