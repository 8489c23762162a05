"""What an inspection finds, written while it finds it, so that memory does not grow with the roll.

``regions.csv`` has a line for each region, ``regions.json`` the same with the ledger and the figures.
Until the end the rows lie in a spool file of JSON lines beside them, from which the roll map and
``regions.json`` are made in one pass.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from loomsight.fabric.margin import Along
from loomsight.fabric.types import UNKNOWN, Place, Region
from loomsight.files import RESULTS, RESULTS_BEGIN, written_by_us

COLUMNS = (
    "picture", "index", "score", "type", "along_m", "across_mm", "length_mm",
    "along_px", "across_px", "x0", "y0", "x1", "y1", "area_px", "length_px", "defect",
)  # fmt: skip
"""Of ``regions.csv``, in order. Metres and millimetres are empty when the scale is unknown."""


@dataclass(frozen=True, slots=True)
class Found:
    """A region and its place on the roll.

    Attributes:
        picture: name of the picture; index: its number in the source, from 0.
        region: in pixels of its picture.
        along: pixels from the roll's start to the region's centre; across: from the left selvedge.
        mm_per_px: the scale, or None.
        defect: its number on the roll, from 1; regions of one number go on from picture to picture.
    """

    picture: str
    index: int
    region: Region
    along: float
    across: float
    mm_per_px: float | None = None
    defect: int = 0

    @property
    def place(self) -> Place | None:
        """Metres from the roll's start, millimetres from the left selvedge; None without a scale."""
        if self.mm_per_px is None:
            return None
        return Place(self.along * self.mm_per_px / 1000, self.across * self.mm_per_px)

    def row(self) -> dict[str, Any]:
        """Its line of ``regions.csv`` and entry of ``regions.json``."""
        region, place = self.region, self.place
        x0, y0, x1, y1 = region.box
        values = (
            self.picture, self.index, round(region.score, 5), region.type,
            None if place is None else round(place.metres, 4),
            None if place is None else round(place.millimetres, 2),
            None if self.mm_per_px is None else round(region.length * self.mm_per_px, 2),
            round(self.along, 1), round(self.across, 1), x0, y0, x1, y1, region.area, round(region.length, 1),
            self.defect,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))

    @classmethod
    def from_row(cls, row: Mapping[str, Any], mm_per_px: float | None) -> Self:
        """The inverse of :meth:`row`, up to its rounding."""
        box = (int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"]))
        region = Region(box, row["area_px"], row["length_px"], row["score"], row.get("type", UNKNOWN))
        along, across = row["along_px"], row["across_px"]
        return cls(row["picture"], row["index"], region, along, across, mm_per_px, row["defect"])


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of the roll that was not inspected.

    Attributes:
        picture: name of the picture, or of the first of ``count`` frames.
        start, stop: pixels from the roll's start; the length of a picture that could not be read is
            taken to be that of the one before it.
        kind: "skipped" (could not be read) or "failed" (could be read, but not inspected).
        reason: in one line.
    """

    picture: str
    index: int
    count: int
    start: int
    stop: int
    kind: Literal["skipped", "failed"]
    reason: str


class Numbering:
    """Numbers the defects of a roll: a region that goes on in the next picture is one defect with it.

    Args:
        along: the axis of the pictures that runs along the roll.
        gap: pixels that may lie between two regions of a defect.
    """

    def __init__(self, along: Along, gap: int) -> None:
        self.count = 0
        self._rows, self._gap = along == "y", gap
        self._open: list[tuple[int, int, int, int]] = []  # at the end of the picture before

    def of(self, regions: Sequence[Region], length: int) -> list[int]:
        """The numbers of the regions of the next picture, which is so many pixels of roll long."""
        numbers, ends = [], []
        for region in regions:
            x0, y0, x1, y1 = region.box
            begin, end, low, high = (y0, y1, x0, x1) if self._rows else (x0, x1, y0, y1)
            before = (
                number
                for left, right, rest, number in self._open
                if begin + rest <= self._gap and low <= right + self._gap and left <= high + self._gap
            )
            number = next(before, None)
            if number is None:
                self.count += 1
                number = self.count
            numbers.append(number)
            if length - end <= self._gap:
                ends.append((low, high, length - end, number))
        self._open = ends
        return numbers

    def interrupted(self) -> None:
        """The next picture does not follow the one before."""
        self._open = []


class Record:
    """Writes the rows of one inspection into ``folder``; a context manager that closes its files."""

    def __init__(self, folder: Path, mm_per_px: float | None) -> None:
        self._folder, self._scale = folder, mm_per_px
        self._spool_path = folder / ".rows.jsonl"

    def __enter__(self) -> Self:
        self._table = (self._folder / "regions.csv").open(
            "w", encoding="utf-8-sig", newline="", errors="backslashreplace"
        )
        self._spool = self._spool_path.open("w", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.DictWriter(self._table, COLUMNS)
        self._csv.writeheader()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._table.close()
        finally:
            self._spool.close()
            self._spool_path.unlink(missing_ok=True)

    def add(self, found: Found) -> None:
        row = found.row()
        self._csv.writerow(row)
        self._spool.write(json.dumps(row, ensure_ascii=False) + "\n")

    def add_gap(self, gap: Gap) -> None:
        row = {
            "gap": gap.kind, "picture": gap.picture, "index": gap.index, "count": gap.count,
            "start_px": gap.start, "stop_px": gap.stop, "reason": gap.reason,
        }  # fmt: skip
        self._spool.write(json.dumps(row, ensure_ascii=False) + "\n")

    def regions(self) -> Iterator[Found]:
        """All regions so far, in the order of the roll, read back one by one."""
        return (Found.from_row(row, self._scale) for row in self._rows() if "gap" not in row)

    def gaps(self) -> Iterator[Gap]:
        """All stretches that were not inspected."""
        for row in self._rows():
            if "gap" in row:
                yield Gap(
                    row["picture"],
                    row["index"],
                    row["count"],
                    row["start_px"],
                    row["stop_px"],
                    row["gap"],
                    row["reason"],
                )

    def write_json(self, head: Mapping[str, Any]) -> None:
        """Write ``regions.json``: ``head``, then ``not_inspected`` and ``regions``, row by row.

        A key of the head must not be one of these: JSON has each name once (RFC 8259).
        """
        with (self._folder / RESULTS).open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(RESULTS_BEGIN)
            for key, value in head.items():
                file.write(
                    f",\n  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
                )
            for key, gaps in (("not_inspected", True), ("regions", False)):
                file.write(f",\n  {json.dumps(key)}: [")
                separator = "\n    "
                for row in self._rows():
                    if ("gap" in row) == gaps:
                        file.write(separator + json.dumps(row, ensure_ascii=False, allow_nan=False))
                        separator = ",\n    "
                file.write("]")
            file.write("\n}\n")

    def _rows(self) -> Iterator[dict[str, Any]]:
        self._spool.flush()
        with self._spool_path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def is_inspection(folder: Path) -> bool:
    """Whether a folder is an earlier inspection and nothing else, so that a new one may take its place."""
    ours = {RESULTS, "regions.csv", "rollmap.png", "report.html", "maps"}
    names = {path.name for path in folder.iterdir()}
    maps = (folder / "maps").iterdir() if "maps" in names else ()
    return (
        RESULTS in names
        and names <= ours
        and written_by_us(folder)
        and all(path.suffix == ".png" and path.is_file() for path in maps)
    )
