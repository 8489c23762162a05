"""Layouts whose labels are folders, masks and file names: plain, MVTec, AITEX.

A reader looks at one folder: it returns the items when the folder has its layout, else None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loomsight.datasets.annotations import Tree, inside, malformed, number, read_json
from loomsight.datasets.items import Item, aitex_name, defect_type, source_of
from loomsight.datasets.outlines import Box
from loomsight.errors import DatasetError, LoomsightError
from loomsight.fabric.types import UNKNOWN

NOTES = "boxes_from_masks.json"
"""Beside plain folders: for each defective picture its type (or types), boxes and source."""

COLLECTION = "various"
"""The type in :data:`NOTES` of a picture out of a folder in which each picture is another fabric."""


@dataclass(frozen=True, slots=True)
class Note:
    """What :data:`NOTES` says of one picture."""

    types: tuple[str, ...]
    boxes: tuple[Box, ...] | None
    source: str | None
    own_fabric: bool


def read_plain(folder: Path, tree: Tree) -> list[Item] | None:
    """``good/``, ``defect/`` and ``mask/`` with the picture's stem; each of them may be absent."""
    if not (folder / "good").is_dir() and not (folder / "defect").is_dir():
        return None
    fabric = tree.fabric(folder)
    items = [
        Item(path, fabric, source_of(path, tree.root), good=True) for path in tree.pictures(folder / "good")
    ]
    notes = read_notes(folder, tree)
    masks = masks_by_stem(tree.pictures(folder / "mask"))
    for path in tree.pictures(folder / "defect"):
        found = masks.get(path.stem, [])
        note = notes.get(path.resolve())
        name = aitex_name(path.stem)
        types: tuple[str, ...] = (name.type,) if name is not None else ()
        if note is not None and note.types:
            types = note.types
        items.append(
            Item(
                path,
                f"{fabric}/{path.stem}" if note is not None and note.own_fabric else fabric,
                (note.source if note is not None else None) or source_of(path, tree.root),
                good=False,
                mask=found[0] if found else None,
                boxes=None if note is None else note.boxes,
                types=types,
                more_masks=tuple(found[1:]),
            )
        )
    return items


def read_mvtec(folder: Path, tree: Tree) -> list[Item] | None:
    """``train/good``, ``test/<type>``, ``ground_truth/<type>/<stem>_mask.png`` (Bergmann et al., 2019).

    Without ``train`` too, which may lie elsewhere.
    """
    tested = (folder / "test").is_dir() and (folder / "ground_truth").is_dir()
    if not (folder / "train" / "good").is_dir() and not tested:
        return None
    fabric = tree.fabric(folder)
    items = [
        Item(path, fabric, source_of(path, tree.root), good=True)
        for part in ("train", "test")
        for path in tree.pictures(folder / part / "good")
    ]
    test = folder / "test"
    kinds = sorted(path for path in test.iterdir() if path.is_dir()) if test.is_dir() else []
    for kind in kinds:
        if kind.name == "good":
            continue
        masks = masks_by_stem(tree.pictures(folder / "ground_truth" / kind.name))
        for path in tree.pictures(kind):
            found = masks.get(path.stem, [])
            items.append(
                Item(
                    path,
                    fabric,
                    source_of(path, tree.root),
                    good=False,
                    mask=found[0] if found else None,
                    types=(defect_type(kind.name),),
                    more_masks=tuple(found[1:]),
                )
            )
    return items


def read_aitex(folder: Path, tree: Tree) -> list[Item] | None:
    """AITEX file names ``NNNN_DDD_FF``: in the official folders, or loose in one folder.

    Official: ``Defect_images``, ``NODefect_images/<cloth>/``, ``Mask_images/NNNN_DDD_FF_mask.png``.
    Each FF is a fabric. Loose pictures are good when their DDD is 000.
    """
    defects, goods = folder / "Defect_images", folder / "NODefect_images"
    if defects.is_dir() or goods.is_dir():
        cloths = [goods, *sorted(path for path in goods.iterdir() if path.is_dir())] if goods.is_dir() else []
        pictures = [(path, True) for cloth in cloths for path in tree.pictures(cloth)]
        pictures += [(path, False) for path in tree.pictures(defects)]
        masks = masks_by_stem(tree.pictures(folder / "Mask_images"))
    else:
        loose = [path for path in tree.pictures(folder) if not _MASK.search(path.stem)]
        if not loose or any(aitex_name(path.stem) is None for path in loose):
            return None
        pictures = [(path, int(path.stem.split("_")[1]) == 0) for path in loose]
        masks = masks_by_stem([path for path in tree.pictures(folder) if _MASK.search(path.stem)])
    items = []
    for path, good in pictures:
        name = aitex_name(path.stem)
        if name is None:
            tree.report(_unnamed(path))
            continue
        fabric = f"f{name.fabric}" if folder == tree.root else f"{tree.fabric(folder)}/f{name.fabric}"
        found = [] if good else masks.get(path.stem, [])
        items.append(
            Item(
                path,
                fabric,
                name.strip,
                good,
                mask=found[0] if found else None,
                types=() if good else (name.type,),
                more_masks=tuple(found[1:]),
            )
        )
    return items


def read_pictures(folder: Path, tree: Tree) -> list[Item]:
    """Loose pictures: good cloth of one fabric."""
    fabric = tree.fabric(folder)
    return [Item(path, fabric, source_of(path, tree.root), good=True) for path in tree.pictures(folder)]


_MASK = re.compile(r"_mask\d*$")


def _unnamed(path: Path) -> LoomsightError:
    return DatasetError("not an AITEX file name", where=path, do="name it NNNN_DDD_FF")


def masks_by_stem(paths: list[Path]) -> dict[str, list[Path]]:
    """Mask files by their picture's stem; ``_mask``, ``_mask1``, ``_mask2`` after it are theirs."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(_MASK.sub("", path.stem), []).append(path)
    return found


def read_notes(folder: Path, tree: Tree) -> dict[Path, Note]:
    """The notes about the pictures below ``folder`` by resolved path, empty without a notes file."""
    path = tree.beside(folder, NOTES)
    if path is None:
        return {}
    if path in tree.notes:
        return tree.notes[path]
    notes: dict[Path, Note] = {}
    tree.notes[path] = notes
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            malformed(path, "it is not an object of pictures")
        for key, value in values.items():
            notes[inside(path.parent, key, path, key).resolve()] = _note(value, path, key)
    except LoomsightError as error:
        tree.report(error)
    return notes


def _note(value: Any, path: Path, key: str) -> Note:
    if not isinstance(value, dict):
        malformed(path, "an entry is not an object", key)
    raw = value.get("types", value.get("type", []))
    names = [raw] if isinstance(raw, str) else raw
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        malformed(path, "'type' is not a name", key)
    source = value.get("source")
    if source is not None and not isinstance(source, str):
        malformed(path, "'source' is not a name", key)
    rows = value.get("boxes_xyxy_area")
    boxes = None if rows is None else _boxes(rows, path, key)
    types = tuple(defect_type(name) for name in names)
    if boxes is not None and len(types) == 1:
        types = types * len(boxes)
    if types and boxes is not None and len(types) != len(boxes):
        malformed(path, f"{len(types)} types for {len(boxes)} boxes", key)
    return Note(types or (UNKNOWN,), boxes, source, own_fabric=names == [COLLECTION])


def _boxes(rows: Any, path: Path, key: str) -> tuple[Box, ...]:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) in (4, 5) for row in rows):
        malformed(path, "'boxes_xyxy_area' is not a list of [x0, y0, x1, y1, area]", key)
    return tuple(
        (
            number(row[0], path, key),
            number(row[1], path, key),
            number(row[2], path, key),
            number(row[3], path, key),
        )
        for row in rows
    )
