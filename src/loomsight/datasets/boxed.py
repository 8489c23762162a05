"""Layouts whose labels are annotation files: COCO, YOLO, Pascal VOC.

A reader looks at one folder: it returns the items when the folder has its layout, else None. A file
that is malformed is told to ``tree.report``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomsight.datasets.annotations import (
    SIDES,
    Tree,
    inside,
    malformed,
    number,
    picture_size,
    read_json,
    read_text,
    read_xml,
    read_yaml,
)
from loomsight.datasets.items import Item, defect_type, source_of
from loomsight.datasets.outlines import Box, Outline, expand_runs
from loomsight.errors import DatasetError, LoomsightError
from loomsight.fabric.images import SUFFIXES
from loomsight.fabric.types import UNKNOWN

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_yolo(folder: Path, tree: Tree) -> list[Item] | None:
    """``images/`` and ``labels/`` (also below ``train/``, ``valid/``, ``test/``) with a ``data.yaml``.

    A line is ``class cx cy w h`` relative to the picture, or ``class x y x y …`` for a polygon. A
    picture with an empty label file, or none, is good; where no picture has one, all are left out, for the
    labels are elsewhere. Only the names come out of ``data.yaml``: the paths in it are wrong in many
    exports, and the folders tell themselves.
    """
    places = [
        place
        for place in (folder, *(folder / side for side in SIDES))
        if (place / "images").is_dir() and (place / "labels").is_dir()
    ]
    if not places:
        return None
    fabric = tree.fabric(folder)
    try:
        names = _yolo_names(folder, tree)
    except LoomsightError as error:
        tree.report(error)
        names = {}
    items, labelled = [], False
    for place in places:
        for path in sorted((place / "images").rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            labels = (place / "labels" / path.relative_to(place / "images")).with_suffix(".txt")
            labelled = labelled or labels.is_file()
            try:
                boxes, types, outlines = _yolo_labels(labels, path, names)
            except LoomsightError as error:
                tree.report(error)
                continue
            source = source_of(path, tree.root)
            items.append(Item(path, fabric, source, not boxes, boxes=boxes, types=types, outlines=outlines))
    if items and not labelled:
        tree.report(
            DatasetError(
                "no label files",
                where=places[0] / "labels",
                why=f"none of the {len(items)} pictures has one of its name",
                do="put them there, empty ones for good cloth",
            )
        )
        return []
    return items


def _yolo_names(folder: Path, tree: Tree) -> dict[int, str] | None:
    """Class names by number; None when there is no file of names."""
    path = tree.beside(folder, "data.yaml", "data.yml")
    if path is None:
        return None
    values = read_yaml(path)
    names = values.get("names") if isinstance(values, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        malformed(path, "'names' is not a list of class names")
    return {key: str(name) for key, name in names.items()}


def _yolo_labels(
    labels: Path, picture: Path, names: dict[int, str] | None
) -> tuple[tuple[Box, ...], tuple[str, ...], tuple[Outline, ...]]:
    boxes: list[Box] = []
    types: list[str] = []
    outlines: list[Outline] = []
    text = read_text(labels) if labels.is_file() else ""
    rows = [(at, line.split()) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    height, width = picture_size(picture) if rows else (0, 0)
    for at, words in rows:
        if not re.fullmatch(r"\d{1,6}", words[0]):
            malformed(labels, f"{words[0][:40]!r} is not a class number", at)
        if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
            malformed(labels, f"{len(words)} values; a box has 5, a polygon an odd number from 7 on", at)
        values = [number(word, labels, at) for word in words[1:]]
        if len(words) == 5:
            x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=True))
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        else:
            xs, ys = [value * width for value in values[::2]], [value * height for value in values[1::2]]
            boxes.append((min(xs), min(ys), max(xs), max(ys)))
            outlines.append(Outline(rings=(tuple(v for pair in zip(xs, ys, strict=True) for v in pair),)))
        if names and int(words[0]) not in names:
            malformed(labels, f"class {words[0]} is not among the {len(names)} names of data.yaml", at)
        types.append(defect_type(names[int(words[0])]) if names else UNKNOWN)
    return tuple(boxes), tuple(types), tuple(outlines) if len(outlines) == len(boxes) else ()


def read_coco(folder: Path, tree: Tree) -> list[Item] | None:
    """COCO JSON beside the pictures or in ``annotations/``; an image without annotations is good.

    An image with an annotation that cannot be read is left out: it would be learned as good cloth. Polygons
    and run lengths, plain or compressed, become the mask.
    """
    found = [
        (path, values)
        for place in (folder, folder / "annotations")
        if place.is_dir()
        for path in sorted(place.glob("*.json"))
        if (values := _coco_values(path, tree)) is not None
    ]
    if not found:
        return None
    return [item for path, values in found for item in _coco_items(path, values, folder, tree)]


def _coco_values(path: Path, tree: Tree) -> dict[str, Any] | None:
    """The parsed file when it is COCO, None when it is some other JSON."""
    named = bool(re.search(r"coco|instances|annotations", path.name, re.IGNORECASE))
    try:
        text = read_text(path)
        if not named and not ('"images"' in text and '"annotations"' in text):
            return None
        values = read_json(path)
        if isinstance(values, dict) and not {"images", "annotations"} & values.keys():
            return None
        for key in ("images", "annotations"):
            if not isinstance(values, dict) or not isinstance(values.get(key), list):
                malformed(path, f"it has no list of {key!r}")
    except LoomsightError as error:
        tree.report(error)
        return {} if named else None
    return dict(values)


def _coco_items(path: Path, values: dict[str, Any], folder: Path, tree: Tree) -> Iterator[Item]:
    names = {}
    for at, entry in enumerate(values.get("categories", [])):
        if not isinstance(entry, dict) or "id" not in entry:
            tree.report(DatasetError("malformed annotation", where=f"{path}:categories[{at}]"))
            continue
        names[str(entry["id"])] = str(entry.get("name", ""))
    labels: dict[str, list[tuple[Box, str, Outline | None]]] = {}
    spoiled: set[str] = set()  # pictures with a defect that cannot be read
    for at, entry in enumerate(values.get("annotations", [])):
        try:
            image, label = _coco_label(entry, names, path, f"annotations[{at}]")
        except LoomsightError as error:
            tree.report(error)
            if not isinstance(entry, dict) or "image_id" not in entry:
                return  # any of its pictures may have that defect
            spoiled.add(str(entry["image_id"]))
            continue
        labels.setdefault(image, []).append(label)
    fabric = tree.fabric(folder)
    known = set()
    for at, entry in enumerate(values.get("images", [])):
        where = f"images[{at}]"
        try:
            if not isinstance(entry, dict) or "id" not in entry:
                malformed(path, "an image without an id", where)
            known.add(str(entry["id"]))
            if str(entry["id"]) in spoiled:
                continue
            picture = _find(_places(path, folder), entry.get("file_name"), path, where)
        except LoomsightError as error:
            tree.report(error)
            continue
        mine = labels.get(str(entry["id"]), [])
        outlines = tuple(outline for _, _, outline in mine if outline is not None)
        yield Item(
            picture,
            fabric,
            source_of(picture, tree.root),
            good=not mine,
            boxes=tuple(box for box, _, _ in mine),
            types=tuple(name for _, name, _ in mine),
            outlines=outlines if len(outlines) == len(mine) else (),
        )
    for image in labels.keys() - known:
        why = f"annotations of the image id {image}, which is not listed"
        tree.report(DatasetError("malformed annotation", where=path, why=why))


def _coco_label(
    entry: Any, names: dict[str, str], path: Path, at: str
) -> tuple[str, tuple[Box, str, Outline | None]]:
    if not isinstance(entry, dict) or "image_id" not in entry:
        malformed(path, "an annotation without an image_id", at)
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        malformed(path, "'bbox' is not [x, y, width, height]", at)
    x, y, width, height = (number(value, path, at) for value in bbox)
    name = names.get(str(entry.get("category_id")))
    if name is None:
        malformed(path, f"category {entry.get('category_id')} is not listed", at)
    outline = _coco_outline(entry.get("segmentation"), path, at)
    return str(entry["image_id"]), ((x, y, x + width, y + height), defect_type(name), outline)


def _coco_outline(value: Any, path: Path, at: str) -> Outline | None:
    if not value:
        return None
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) for side in size):
            malformed(path, "run lengths without a size", at)
        try:
            counts = expand_runs(counts) if isinstance(counts, str) else counts
        except ValueError as error:
            malformed(path, str(error), at)
        if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
            malformed(path, "run lengths are not numbers", at)
        if sum(counts) != size[0] * size[1]:
            malformed(path, "the run lengths do not add up to the picture", at)
        return Outline(counts=tuple(counts), size=(size[0], size[1]))
    if not isinstance(value, list) or not all(
        isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in value
    ):
        malformed(path, "a polygon is not a list of x, y, x, y, …", at)
    return Outline(rings=tuple(tuple(number(v, path, at) for v in ring) for ring in value))


def _places(path: Path, folder: Path) -> list[Path]:
    """Where COCO files keep their pictures, the likeliest first; all below the data set's folder."""
    part = re.sub(r"^.*?_", "", path.stem)  # instances_train2017 → train2017
    return [path.parent, folder, *(folder / name for name in ("images", part, f"images/{part}"))]


def _find(places: list[Path], name: Any, path: Path, at: str | int | None) -> Path:
    for place in places:
        candidate = inside(place, name, path, at)
        if candidate.is_file():
            return candidate
    raise DatasetError("an annotated picture is missing", where=f"{path}:{at}", why=str(name))


def read_voc(folder: Path, tree: Tree) -> list[Item] | None:
    """Pascal VOC XML in ``Annotations/`` with ``JPEGImages/`` or ``images/``, or beside the pictures.

    Corners count from 1 and both belong to the box (the VOC development kit's convention). A file
    without objects, or a picture without a file, is good; one with a file that cannot be read is left out.
    """
    place = folder / "Annotations"
    files = sorted((place if place.is_dir() else folder).glob("*.xml"))
    if not place.is_dir():  # a camera's settings are XML too
        files = [path for path in files if _is_voc(path, tree)]
    if not files:
        return None
    homes = [folder / "JPEGImages", folder / "images", folder]
    fabric = tree.fabric(folder)
    items = []
    described = {path.stem for path in files}
    for path in files:
        try:
            root = read_xml(path)
            if root.tag != "annotation":
                malformed(path, f"its root is <{root.tag}>, not <annotation>", 1)
            listed = root.find("filename")
            at = None if listed is None else listed.get("line")
            picture = _find(homes, None if listed is None else listed.text, path, at)
            described.add(picture.stem)
            objects = [_voc_object(entry, path) for entry in root.iterfind("object")]
        except LoomsightError as error:
            tree.report(error)
            continue
        boxes, types = tuple(box for box, _ in objects), tuple(name for _, name in objects)
        source = source_of(picture, tree.root)
        items.append(Item(picture, fabric, source, not objects, boxes=boxes, types=types))
    for home in homes:
        items += [
            Item(path, fabric, source_of(path, tree.root), good=True, boxes=())
            for path in tree.pictures(home)
            if path.stem not in described and place.is_dir()
        ]
    return items


def _is_voc(path: Path, tree: Tree) -> bool:
    try:
        return "<annotation" in read_text(path)
    except LoomsightError:
        return any(picture.stem == path.stem for picture in tree.pictures(path.parent))


def _voc_object(entry: Element, path: Path) -> tuple[Box, str]:
    line = entry.get("line")
    box = entry.find("bndbox")
    if box is None:
        malformed(path, "an object without a <bndbox>", line)
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        corner = box.find(key)
        if corner is None:
            malformed(path, f"a box without <{key}>", box.get("line"))
        corners.append(number(corner.text or "", path, corner.get("line")))
    return (corners[0] - 1, corners[1] - 1, corners[2], corners[3]), defect_type(entry.findtext("name") or "")
