"""Data sets in: one call reads a folder, or a tree of many fabrics in different layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Never

from loomsight.datasets.annotations import Tree
from loomsight.datasets.boxed import read_coco, read_voc, read_yolo
from loomsight.datasets.folders import read_aitex, read_mvtec, read_pictures, read_plain
from loomsight.datasets.items import Item
from loomsight.errors import DatasetError, LoomsightError, UsageError

Reader = Callable[[Path, Tree], list[Item] | None]

READERS: dict[str, Reader] = {
    "mvtec": read_mvtec,
    "plain": read_plain,
    "yolo": read_yolo,
    "voc": read_voc,
    "coco": read_coco,
    "aitex": read_aitex,
}
"""The layouts by name, in the order in which a folder is tried."""
_MASKS = ("mask", "masks", "ground_truth")
"""Folders whose pictures are no cloth, and say of others that they are not all good."""


def read_dataset(
    root: Path, layout: str = "auto", *, on_error: Callable[[LoomsightError], None] | None = None
) -> list[Item]:
    """Read the labels of every picture below ``root``; no pixel is read yet.

    Each folder that has a known layout is a fabric, named by its path below ``root``. A folder of
    loose pictures is a fabric too, of good cloth. Below a folder that was read nothing else is looked for.

    Args:
        root: the folder of a fabric, or of many.
        layout: only this one of :data:`READERS`, or ``auto`` for any, mixed.
        on_error: is told what cannot be used, and the rest is read; without it the first one raises.

    Returns:
        The items, ordered by fabric folder and then good before defective.

    Raises:
        UsageError: there is no such folder or no such layout.
        DatasetError: an annotation is malformed or leads out of ``root``, or nothing usable is found.
        ImageError: a picture's size is needed and its header is damaged.
    """
    if layout != "auto" and layout not in READERS:
        raise UsageError(f"no layout is called {layout!r}", do=f"use auto or {', '.join(READERS)}")
    if not root.is_dir():
        why = "it is a file" if root.exists() else "there is no such folder"
        raise UsageError("cannot read the data set", where=root, why=why)
    readers = list(READERS.values()) if layout == "auto" else [READERS[layout]]
    tree = Tree(root, on_error or _fail)
    try:
        items = _walk(root, tree, readers, set(), loose=layout in ("auto", "plain"))
    except OSError as error:
        raise DatasetError(
            "cannot read the data set", where=error.filename or root, why=(error.strerror or "").lower()
        ) from error
    if not items and on_error is None:
        kind = "" if layout == "auto" else f" in the layout {layout!r}"
        do = "give a folder of pictures, or of fabrics with good/, defect/ and mask/"
        raise DatasetError("no usable picture", where=root, why=f"nothing was found{kind}", do=do)
    return items


def _walk(folder: Path, tree: Tree, readers: list[Reader], seen: set[Path], *, loose: bool) -> list[Item]:
    whole = folder.resolve()
    if whole in seen:  # a link that leads back up
        return []
    seen.add(whole)
    for reader in readers:
        items = reader(folder, tree)
        if items is not None:
            return items
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] != "."]
    masks = [child for child in children if child.name.lower() in _MASKS]
    if masks and loose:
        error = DatasetError(
            "masks in no layout that is known",
            where=masks[0],
            why="which pictures are theirs is not known",
            do="put them beside good/ and defect/ as mask/",
        )
        tree.report(error)
        loose = False  # a picture beside them may be good or not
    items = []
    for child in children:
        if child not in masks:
            items += _walk(child, tree, readers, seen, loose=loose)
    # A picture beside fabrics (a chart, a logo) is none of them.
    return items if items or not loose else read_pictures(folder, tree)


def _fail(error: LoomsightError) -> Never:
    raise error
