"""Annotation files read with care: they come from strangers.

YAML without tags or aliases, XML without a document type, JSON of bounded depth, and paths that stay
below the data set's folder. Every refusal names the file and the line.
"""

from __future__ import annotations

import json
import math
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from PIL import Image, UnidentifiedImageError

from loomsight.errors import DatasetError, ImageError, LoomsightError
from loomsight.fabric.images import FORMATS, SUFFIXES

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SIDES = ("train", "valid", "val", "test")
"""Folders that part a data set."""
_SMALL = 4_000_000  # bytes: no data.yaml or VOC file comes near
_DEPTH = 50


def malformed(path: Path, why: str, at: int | str | None = None) -> Never:
    """Refuse an annotation file, with the line or the entry that is wrong."""
    where = str(path) if at is None else f"{path}:{at}"
    raise DatasetError("malformed annotation", where=where, why=why, do="mend or remove it")


@dataclass(slots=True)
class Tree:
    """What the readers share while they walk a data set.

    Attributes:
        root: the folder that was asked for; nothing outside it is read as a picture.
        report: told of each annotation or picture that cannot be used; it raises, or it returns and
            the reader goes on without that one.
    """

    root: Path
    report: Callable[[LoomsightError], None]
    notes: dict[Path, dict[Path, Any]] = field(default_factory=dict)
    _listed: dict[Path, list[Path]] = field(default_factory=dict)

    def pictures(self, folder: Path) -> list[Path]:
        """The picture files directly in ``folder``, sorted; none when it is no folder."""
        if folder not in self._listed:
            names = sorted(folder.iterdir()) if folder.is_dir() else []
            self._listed[folder] = [
                path
                for path in names
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
            ]
        return self._listed[folder]

    def fabric(self, folder: Path) -> str:
        """The name of the fabric in ``folder``: its path below the root, or the root's own name.

        ``train/``, ``valid/`` and ``test/`` part a data set; they are no fabrics.
        """
        while folder != self.root and folder.name.lower() in SIDES:
            folder = folder.parent
        if folder != self.root:
            return folder.relative_to(self.root).as_posix()
        whole = self.root.resolve()
        generic = {"good", "images", *SIDES}
        return (whole.parent.name if whole.name.lower() in generic else whole.name) or "fabric"

    def beside(self, folder: Path, *names: str) -> Path | None:
        """The nearest file of one of these names in ``folder`` or the three folders above it."""
        for place in [folder, *folder.resolve().parents[:3]]:
            for name in names:
                if (place / name).is_file():
                    return place / name
        return None


def inside(base: Path, name: object, annotation: Path, at: int | str | None = None) -> Path:
    """The path of a file that an annotation names, below ``base``.

    Raises:
        DatasetError: the name is no text, is absolute, or climbs out with ``..``.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        malformed(annotation, "a file name is missing", at)
    parts = re.split(r"[\\/]+", name.strip())
    if parts[0] in ("", "~") or ".." in parts or re.fullmatch(r"[A-Za-z]:.*", parts[0]):
        malformed(annotation, f"the path {name!r} leads out of the data set", at)
    return base.joinpath(*parts)


def number(value: object, annotation: Path, at: int | str | None = None) -> float:
    """A finite number out of an annotation, given as a number or as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        malformed(annotation, f"{value!r} is not a number", at)
    try:
        result = float(value)
    except (ValueError, OverflowError):
        malformed(annotation, f"{str(value)[:40]!r} is not a number", at)
    if not math.isfinite(result):
        malformed(annotation, f"{str(value)[:40]!r} is not a finite number", at)
    return result


def read_text(path: Path, limit: int | None = None) -> str:
    """The text of an annotation file in UTF-8, refused beyond ``limit`` bytes."""
    try:
        if limit is not None and path.stat().st_size > limit:
            malformed(path, f"it is larger than {limit // 1_000_000} MB")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        why = (error.strerror or "").lower()
        raise DatasetError("cannot read the annotation", where=path, why=why) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        malformed(path, "it is not UTF-8 text", line)


def read_json(path: Path) -> Any:
    """Parse JSON; an error names line and column."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        malformed(path, error.msg.lower(), f"{error.lineno}:{error.colno}")
    except (RecursionError, ValueError) as error:
        malformed(path, "it is nested too deeply" if isinstance(error, RecursionError) else str(error))


def read_yaml(path: Path) -> Any:
    """Parse plain YAML: tags that make objects, aliases and deep nesting are refused."""
    import yaml

    text = read_text(path, _SMALL)
    depth = 0
    try:
        # Aliases are how a few lines of YAML grow without bound, and no label file needs one.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = 0 if event.start_mark is None else event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                malformed(path, "YAML aliases are refused", line)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                malformed(path, "it is nested too deeply", line)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        malformed(path, str(error.problem), None if mark is None else mark.line + 1)
    except (yaml.YAMLError, ValueError) as error:
        malformed(path, str(error))


def read_xml(path: Path) -> Element:
    """Parse XML without a document type, so that no entity can expand or reach another file."""
    from xml.etree.ElementTree import TreeBuilder
    from xml.parsers import expat

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEPTH:
            malformed(path, "it is nested too deeply", parser.CurrentLineNumber)
        # Where it stands is kept, so that a wrong value can be told with its line.
        builder.start(name, {**attributes, "line": str(parser.CurrentLineNumber)})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        malformed(path, "an XML document type is refused", parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(read_text(path, _SMALL).encode(), True)
    except expat.ExpatError as error:
        malformed(path, expat.ErrorString(error.code), f"{error.lineno}:{error.offset + 1}")
    return builder.close()


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it will be read, from its header alone.

    Raises:
        ImageError: the file is no picture or its header is damaged.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as header:
            width, height = header.size
            turned = header.getexif().get(0x0112, 1) >= 5  # EXIF orientation: 5 to 8 lie on their side
    except UnidentifiedImageError as error:
        raise ImageError("cannot read the picture", where=path, why="it is no picture") from error
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError("cannot read the picture", where=path, why=str(error) or "it is damaged") from error
    return (width, height) if turned else (height, width)
