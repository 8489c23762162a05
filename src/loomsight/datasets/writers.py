"""Data sets out: the layouts that :mod:`loomsight.datasets.formats` reads.

Every fabric becomes a folder of its own, so reading the written folder gives the same fabrics. A
picture with a source is named the way Roboflow names copies, ``<source>_png.rf.<n>.png``, so that the
pictures of one source are still known as such; AITEX names their strip. What a layout cannot hold is
said at its writer.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from loomsight.datasets.folders import NOTES
from loomsight.datasets.items import AITEX_CODES
from loomsight.datasets.outlines import boxes_to_mask, encode_runs, masks_to_boxes
from loomsight.errors import DatasetError, UsageError
from loomsight.fabric.images import write_png
from loomsight.fabric.types import DEFECT_TYPES, UNKNOWN, LabelledPicture, Mask
from loomsight.files import new_folder, write_json, write_text


def write_dataset(pictures: Iterable[LabelledPicture], out: Path, layout: str = "plain") -> int:
    """Write ``pictures`` as a data set; ``out`` appears when all of it is written, or not at all.

    A picture is good when its mask is all false or its boxes are none; one with neither mask nor
    boxes is good unless it has types. One picture is in memory at a time.

    Args:
        pictures: the pictures, read once.
        out: the folder to make.
        layout: a name of :data:`WRITERS`.

    Returns:
        How many pictures were written.

    Raises:
        UsageError: no such layout, or ``out`` exists and is not empty.
        DatasetError: there is no picture, or a fabric's name leads out of the folder.
        StorageError: the disk is full or cannot be written.
    """
    if layout not in WRITERS:
        raise UsageError(f"no layout is called {layout!r}", do=f"use {', '.join(WRITERS)}")
    with new_folder(out) as work:
        writer = WRITERS[layout](work)
        count = 0
        for picture in pictures:
            writer.add(picture)
            count += 1
        if not count:
            raise DatasetError("nothing to write", where=out, why="there is no picture")
        writer.finish()
    return count


class _Writer(ABC):
    """One layout being written below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._slugs: dict[str, str] = {}
        self._written = 0

    @abstractmethod
    def add(self, picture: LabelledPicture) -> None:
        """Write one picture."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is known only at the end."""

    def folder(self, picture: LabelledPicture) -> Path:
        """The fabric's folder."""
        name = picture.fabric or "fabric"
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\\" in part or part.startswith(".") for part in parts):
            raise DatasetError("a fabric's name is no folder", where=repr(name))
        return self.root.joinpath(*parts)

    def stem(self, picture: LabelledPicture) -> str:
        """A new file stem that keeps the source."""
        self._written += 1
        if not picture.source:
            return f"{self._written:06d}"
        slug = self._slugs.get(picture.source)
        if slug is None:
            # Names that clean up alike must stay two sources, also where case does not count.
            clean = re.sub(r"[^0-9A-Za-z-]+", "-", picture.source).strip("-")[:80] or "source"
            taken = {name.lower() for name in self._slugs.values()}
            slug, number = clean, 2
            while slug.lower() in taken:
                slug, number = f"{clean}-{number}", number + 1
            self._slugs[picture.source] = slug
        return f"{slug}_png.rf.{self._written:06d}"


class PlainWriter(_Writer):
    """``good/``, ``defect/``, ``mask/``, and types and boxes in one JSON beside the fabrics."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._notes: dict[str, Any] = {}

    def add(self, picture: LabelledPicture) -> None:
        good = is_good(picture)
        folder, stem = self.folder(picture), self.stem(picture)
        path = folder / ("good" if good else "defect") / f"{stem}.png"
        write_png(path, picture.image)
        if good:
            return
        if picture.mask is not None:
            _write_mask(folder / "mask" / f"{stem}.png", picture.mask)
        boxes = boxes_of(picture)
        note: dict[str, Any] = {"types": list(picture.types)}
        if picture.boxes is not None:
            note["types"] = list(types_of(picture, len(boxes)))
            areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[:, None]
            note["boxes_xyxy_area"] = np.hstack([boxes, areas]).astype(float).tolist()
        if picture.source:
            note["source"] = picture.source
        self._notes[path.relative_to(self.root).as_posix()] = note

    def finish(self) -> None:
        if self._notes:
            write_json(self.root / NOTES, self._notes)


class MvtecWriter(_Writer):
    """MVTec: good cloth in ``train/good``, the others in ``test/<type>`` with a mask.

    It holds masks only, so a box becomes a filled mask; a picture of several types goes to
    ``test/combined``, as MVTec has it, and its types are lost.
    """

    def add(self, picture: LabelledPicture) -> None:
        folder, stem = self.folder(picture), self.stem(picture)
        if is_good(picture):
            write_png(folder / "train" / "good" / f"{stem}.png", picture.image)
            return
        (folder / "train" / "good").mkdir(parents=True, exist_ok=True)
        kind = _one_type(picture, mixed="combined").replace(" ", "_")
        write_png(folder / "test" / kind / f"{stem}.png", picture.image)
        mask = mask_of(picture)
        if mask is not None:
            _write_mask(folder / "ground_truth" / kind / f"{stem}_mask.png", mask)

    def finish(self) -> None:
        """All of it is written already."""


class AitexWriter(_Writer):
    """AITEX: ``NNNN_DDD_FF.png`` in ``Defect_images`` and ``NODefect_images``, masks in ``Mask_images``.

    A fabric is a number of two digits: ``…_fNN`` keeps its own, others get the next free one. The type
    is the strip's and is one of AITEX's twelve; any other is code 999. Boxes become filled masks.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._fabrics: dict[str, str] = {}
        self._strips: dict[tuple[str, str], str] = {}

    def add(self, picture: LabelledPicture) -> None:
        good = is_good(picture)
        fabric = self._fabric(picture.fabric)
        self._written += 1
        source = picture.source or f"/{self._written}"
        names = {name: code for code, name in AITEX_CODES.items()}
        code = 0 if good else names.get(_one_type(picture, mixed=UNKNOWN), 999)
        if len(self._strips) >= 9999 and (fabric, source) not in self._strips:
            raise DatasetError("too many strips for AITEX file names", why="they count to 9999")
        strip = self._strips.setdefault((fabric, source), f"{len(self._strips) + 1:04d}_{code:03d}_{fabric}")
        stem = f"{strip}_{self._written:06d}"
        place = self.root / "NODefect_images" / fabric if good else self.root / "Defect_images"
        write_png(place / f"{stem}.png", picture.image)
        mask = None if good else mask_of(picture)
        if mask is not None:
            _write_mask(self.root / "Mask_images" / f"{stem}_mask.png", mask)

    def finish(self) -> None:
        """All of it is written already."""

    def _fabric(self, name: str) -> str:
        if name not in self._fabrics:
            own = re.fullmatch(r"(?:.*[/_])?f(\d\d)", name)
            taken = set(self._fabrics.values())
            free = (f"{number:02d}" for number in range(100) if f"{number:02d}" not in taken)
            number = own[1] if own is not None and own[1] not in taken else next(free, None)
            if number is None:
                raise DatasetError("too many fabrics for AITEX file names", why="they count to 99")
            self._fabrics[name] = number
        return self._fabrics[name]


class CocoWriter(_Writer):
    """COCO: ``images/`` and ``annotations/instances.json`` for each fabric.

    A mask is written as plain run lengths, exactly, cut along the boxes; a box alone has no shape.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._files: dict[Path, dict[str, list[dict[str, Any]]]] = {}

    def add(self, picture: LabelledPicture) -> None:
        folder, name = self.folder(picture), f"{self.stem(picture)}.png"
        write_png(folder / "images" / name, picture.image)
        values = self._files.setdefault(folder, {"images": [], "annotations": []})
        height, width = picture.image.shape[:2]
        image = len(values["images"]) + 1
        values["images"].append({"id": image, "file_name": name, "width": width, "height": height})
        boxes = boxes_of(picture)
        for box, kind, part in zip(
            boxes, types_of(picture, len(boxes)), _parts(picture.mask, boxes), strict=True
        ):
            x0, y0, x1, y1 = (float(value) for value in box)
            entry: dict[str, Any] = {
                "id": len(values["annotations"]) + 1,
                "image_id": image,
                "category_id": DEFECT_TYPES.index(kind) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0) if part is None else int(part.sum()),
                "iscrowd": 0,
            }
            if part is not None:
                entry["segmentation"] = {"size": [height, width], "counts": encode_runs(part)}
            values["annotations"].append(entry)

    def finish(self) -> None:
        names = [{"id": number, "name": name} for number, name in enumerate(DEFECT_TYPES, 1)]
        for folder, values in self._files.items():
            write_json(folder / "annotations" / "instances.json", {**values, "categories": names})


class YoloWriter(_Writer):
    """YOLO: ``images/``, ``labels/`` with relative boxes, ``data.yaml``.

    It holds no masks: they become boxes.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._folders: dict[Path, None] = {}

    def add(self, picture: LabelledPicture) -> None:
        folder, stem = self.folder(picture), self.stem(picture)
        self._folders[folder] = None
        write_png(folder / "images" / f"{stem}.png", picture.image)
        height, width = picture.image.shape[:2]
        boxes = boxes_of(picture)
        lines = [
            f"{DEFECT_TYPES.index(kind)} {(x0 + x1) / 2 / width:.9g} {(y0 + y1) / 2 / height:.9g}"
            f" {(x1 - x0) / width:.9g} {(y1 - y0) / height:.9g}\n"
            for (x0, y0, x1, y1), kind in zip(boxes.astype(float), types_of(picture, len(boxes)), strict=True)
        ]
        write_text(folder / "labels" / f"{stem}.txt", "".join(lines))

    def finish(self) -> None:
        names = "".join(f"  {number}: {name}\n" for number, name in enumerate(DEFECT_TYPES))
        for folder in self._folders:
            write_text(
                folder / "data.yaml",
                f"path: .\ntrain: images\nval: images\nnc: {len(DEFECT_TYPES)}\nnames:\n{names}",
            )


class VocWriter(_Writer):
    """Pascal VOC: ``JPEGImages/`` (as PNG) and ``Annotations/``. It holds no masks: they become boxes.

    Corners count from 1 and both belong to the box.
    """

    def add(self, picture: LabelledPicture) -> None:
        folder, stem = self.folder(picture), self.stem(picture)
        write_png(folder / "JPEGImages" / f"{stem}.png", picture.image)
        height, width = picture.image.shape[:2]
        depth = 1 if picture.image.ndim == 2 else 3
        boxes = boxes_of(picture)
        objects = "".join(
            f"  <object>\n    <name>{escape(kind)}</name>\n    <bndbox>"
            f"<xmin>{x0 + 1:.9g}</xmin><ymin>{y0 + 1:.9g}</ymin><xmax>{x1:.9g}</xmax><ymax>{y1:.9g}</ymax>"
            "</bndbox>\n  </object>\n"
            for (x0, y0, x1, y1), kind in zip(boxes.astype(float), types_of(picture, len(boxes)), strict=True)
        )
        write_text(
            folder / "Annotations" / f"{stem}.xml",
            f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{stem}.png</filename>\n"
            f"  <size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>\n"
            f"{objects}</annotation>\n",
        )

    def finish(self) -> None:
        """All of it is written already."""


WRITERS: dict[str, type[_Writer]] = {
    "plain": PlainWriter,
    "mvtec": MvtecWriter,
    "aitex": AitexWriter,
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
}
"""The layouts by name."""


def is_good(picture: LabelledPicture) -> bool:
    """Whether a picture's labels say that the cloth is good."""
    if picture.mask is not None and picture.mask.any():
        return False
    if picture.boxes is not None:
        return len(picture.boxes) == 0
    return picture.mask is not None or not picture.types


def boxes_of(picture: LabelledPicture) -> np.ndarray:
    """The boxes, or those of the mask: float32 (n, 4)."""
    if picture.boxes is not None:
        return picture.boxes
    if picture.mask is not None:
        return masks_to_boxes(picture.mask)
    return np.zeros((0, 4), np.float32)


def mask_of(picture: LabelledPicture) -> Mask | None:
    """The mask, or the filled boxes, or None when there is neither."""
    if picture.mask is not None or picture.boxes is None:
        return picture.mask
    return boxes_to_mask(picture.boxes, (picture.image.shape[0], picture.image.shape[1]))


def types_of(picture: LabelledPicture, count: int) -> tuple[str, ...]:
    """A name for each of ``count`` defects: the picture's own, its only one, or ``unknown``."""
    if len(picture.types) == count:
        return picture.types
    only = set(picture.types)
    return (only.pop() if len(only) == 1 else UNKNOWN,) * count


def _write_mask(path: Path, mask: Mask) -> None:
    write_png(path, mask.astype(np.uint8) * 255)


def _one_type(picture: LabelledPicture, *, mixed: str) -> str:
    kinds = set(picture.types)
    return mixed if len(kinds) > 1 else kinds.pop() if kinds else UNKNOWN


def _parts(mask: Mask | None, boxes: np.ndarray) -> list[Mask | None]:
    """The mask dealt to the boxes, each pixel once; no parts when the boxes do not cover it."""
    if mask is None:
        return [None] * len(boxes)
    rest = mask.copy()
    parts: list[Mask | None] = []
    for box in boxes:
        part = rest & boxes_to_mask([tuple(box)], (mask.shape[0], mask.shape[1]))
        rest &= ~part
        parts.append(part)
    return parts
