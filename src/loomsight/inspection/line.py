"""The line: every picture of a source is scored, its regions get places, and the results are written.

Pictures follow one another along the roll without gap or overlap. With ``along="y"`` the rows of a
picture run across the roll, as a line-scan camera over the web gives them: its height is length of
roll, x = 0 is the left selvedge. With ``along="x"`` its width is length, and y = 0 the left selvedge.
A picture that cannot be read still takes its length of roll, that of the one before it.

Memory does not grow with the number of pictures: rows go to disk as they come, and the report keeps a
bounded number of crops.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loomsight import __version__
from loomsight.card import Runtime
from loomsight.detection.fusion import fuse
from loomsight.errors import ImageError, LoomsightError, ProfileError, UsageError
from loomsight.evaluation.operating_point import AlarmRate
from loomsight.fabric.images import encode_png, write_png
from loomsight.fabric.look import Look
from loomsight.fabric.margin import Along, Margin
from loomsight.fabric.types import Picture, Region
from loomsight.files import new_folder, write_bytes
from loomsight.inspection.drift import DriftCheck
from loomsight.inspection.familiar import ClothCheck
from loomsight.inspection.looking import Looking, Namer, Scorer, Seen, checked, said_of_gate
from loomsight.inspection.record import Found, Gap, Numbering, Record, is_inspection
from loomsight.inspection.report import Gallery, write_report
from loomsight.inspection.rollmap import Mark, RollMap
from loomsight.inspection.sources import Frame, Prefetched, Source, Unread, open_source
from loomsight.profile import Profile
from loomsight.progress import Progress

if TYPE_CHECKING:
    from loomsight.runtime.gate import GateCount

_GAPS_TOLD = 50
_OTHER_FILES = (
    "These pictures {} compressed so that fine detail is changed (JPEG or WebP), those that the "
    "fabric was learned from {}. To the networks that is other cloth: learn from pictures as the line takes "
    "them."
)


@dataclass(slots=True)
class Ledger:
    """received = inspected + skipped + failed: every picture is accounted for.

    Attributes:
        skipped: could not be read; failed: could be read, but not inspected.
    """

    received: int = 0
    inspected: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(slots=True)
class Inspection:
    """The outcome of an inspection; the rows are in its folder.

    Attributes:
        out: the folder; source: what was inspected; when: local time, ISO 8601; along: "x" or "y".
        ledger: what became of the pictures.
        length_px: of the roll, what was not inspected included; width_px: of the widest picture.
        inspected_px: length inspected; megapixels: area inspected.
        mm_per_px: the scale, or None.
        regions: how many were found; defects: how many they are when those that go on in the next picture
            count once; defective: in how many pictures; left_out: further ones, within the margins; highest:
            the highest score of all the cloth, the margins too.
        rate: the profile's promise of false alarms.
        engine: what ran the networks; gate: what the gate before them did, if there was one.
        notes: what the reader should know; warnings: what the reader must know.
    """

    out: Path
    source: str
    profile: str
    when: str
    along: Along
    mm_per_px: float | None
    rate: AlarmRate
    ledger: Ledger = field(default_factory=Ledger)
    length_px: int = 0
    width_px: int = 0
    inspected_px: int = 0
    megapixels: float = 0.0
    regions: int = 0
    defects: int = 0
    defective: int = 0
    left_out: int = 0
    highest: float = 0.0
    seconds: float = 0.0
    engine: str = ""
    gate: GateCount | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def length_m(self) -> float | None:
        """Metres of roll, what was not inspected included; None without a scale."""
        return None if self.mm_per_px is None else self.length_px * self.mm_per_px / 1000

    @property
    def inspected_m(self) -> float | None:
        """Metres of roll that were inspected; None without a scale."""
        return None if self.mm_per_px is None else self.inspected_px * self.mm_per_px / 1000

    @property
    def per_100_m(self) -> float | None:
        """Defects per 100 inspected metres; None without a scale."""
        return 100 * self.defects / self.inspected_m if self.inspected_m else None

    @property
    def per_megapixel(self) -> float:
        """Defects per million inspected pixels."""
        return self.defects / self.megapixels if self.megapixels else 0.0

    @property
    def expected_false(self) -> float:
        """False alarms that the profile's promise allows on cloth of this size."""
        return self.rate.allowed(self.megapixels)

    @property
    def extent(self) -> str:
        """What was inspected, in the unit that is known."""
        return f"{self.inspected_m:,.2f} m" if self.inspected_m is not None else f"{self.megapixels:,.2f} Mpx"

    @property
    def speed(self) -> str:
        """How much was inspected in a second, for people: one decimal, and below 1 two digits."""
        value = self.megapixels / max(self.seconds, 1e-9)
        return f"{value:,.1f} Mpx/s" if value >= 1 else f"{value:.2g} Mpx/s"

    def summary(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return {
            "out": str(self.out), "source": self.source, "profile": self.profile, "when": self.when,
            "along": self.along, "mm_per_px": self.mm_per_px, "ledger": asdict(self.ledger),
            "length_px": self.length_px, "width_px": self.width_px, "length_m": _rounded(self.length_m),
            "inspected_m": _rounded(self.inspected_m), "megapixels": round(self.megapixels, 6),
            "region_count": self.regions, "defect_count": self.defects,
            "pictures_with_regions": self.defective,
            "highest_score": round(self.highest, 5),
            "per_100_m": _rounded(self.per_100_m), "per_megapixel": round(self.per_megapixel, 4),
            "false_alarms_to_expect": _rounded(self.expected_false), "seconds": round(self.seconds, 3),
            "engine": self.engine, "gate": None if self.gate is None else asdict(self.gate),
            "warnings": self.warnings, "notes": self.notes,
        }  # fmt: skip


def inspect(
    source: Source | Path | str,
    profile: Profile,
    out: Path,
    *,
    engine: Scorer | None = None,
    runtime: Runtime | None = None,
    gate: bool = True,
    maps: bool = False,
    along: Along | None = None,
    margin: float | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Inspect a source and write ``regions.json``, ``regions.csv``, ``rollmap.png`` and ``report.html``.

    Args:
        source: a folder, a glob, a picture, a strip or a video.
        profile: of the fabric.
        out: the folder to write, whole or not at all; an earlier inspection there is replaced, anything
            else is refused.
        engine: scores the pictures; by default the profile's own.
        runtime: what runs that; the fastest that the profile was exported for if None.
        gate: let the profile's gate, if it has one, pass what is surely good; not in torch, nor where every
            score map is wanted.
        maps: write every score map too, as ``maps/STEM.png``, 16 bits, score × 65535.
        along: the axis of the pictures that runs along the roll; as the fabric was learned if None.
        margin: millimetres at either selvedge, pixels without a scale, in which nothing is reported; as much
            as was left out when the fabric was learned if None.
        strict: a picture that cannot be read ends the inspection; otherwise it is skipped and counted.

    Raises:
        UsageError: there is nothing to inspect, or ``out`` is in use.
        ImageError: a picture cannot be read and ``strict`` is set, or not one could be read.
        ProfileError: the profile was damaged since it was opened.
        StorageError: the disk is full or the folder cannot be written.
    """
    progress = progress or Progress()
    frames = source if isinstance(source, Source) else open_source(source)
    check_out(out, frames, profile)
    with new_folder(out, replace=out.is_dir() and is_inspection(out)) as work:
        walk = _Walk(
            frames,
            profile,
            Looking(profile, engine, runtime or profile.fastest, gated=gate and not maps),
            out=out,
            maps=work if maps else None,
            margin=Margin(
                profile.margin.width if margin is None else margin,
                profile.scale,
                along or profile.margin.along,
            ),
        )
        with Record(work, profile.scale) as record:
            walk.run(record, strict=strict, progress=progress)
            _write_results(walk, record, work)
    return walk.result


def check_out(out: Path, source: Source, profile: Profile) -> None:
    """Whether an inspection may be written there.

    Raises:
        UsageError: the folder holds the source, the profile, or anything that is no earlier inspection.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("cannot make a folder", where=out, why="a file of that name exists")
    for what, path in (("pictures", source.root), ("profile", profile.folder)):
        if path.resolve().is_relative_to(out.resolve()) and out.is_dir():
            raise UsageError(
                "not written", where=out, why=f"the {what} are in it", do="choose another with --out"
            )
    if out.is_dir() and any(out.iterdir()) and not is_inspection(out):
        raise UsageError(
            "the folder exists", where=out, why="it is no earlier inspection", do="choose another with --out"
        )


class _Walk:
    """Goes through the frames once and keeps what has to be known at the end."""

    def __init__(
        self,
        frames: Source,
        profile: Profile,
        looking: Looking,
        *,
        out: Path,
        maps: Path | None,
        margin: Margin,
    ) -> None:
        point = profile.card.operating_point
        self.frames, self.profile, self.gallery = frames, profile, Gallery()
        self.gaps: list[Gap] = []  # the first few, for the report
        self.result = Inspection(
            out=out, source=frames.title, profile=profile.name, along=margin.along, mm_per_px=profile.scale,
            when=datetime.now().astimezone().isoformat(timespec="seconds"),
            rate=point.rate, notes=list(frames.notes),
        )  # fmt: skip
        learned = profile.card.training.get("lossy")
        if None not in (learned, frames.lossy) and learned != frames.lossy:
            verbs = ("are", "were not") if frames.lossy else ("are not", "were")
            self.result.notes.append(_OTHER_FILES.format(*verbs))
        self._looking, self._maps, self._point = looking, maps, point
        self._detector, self._camera = looking.detector, profile.camera()
        self.result.engine = getattr(looking.engine, "runtime", "")
        self._margin = margin
        self._cloth, self._drift = ClothCheck(profile, frames.total), DriftCheck(profile, frames.total)
        self._numbering = Numbering(margin.along, point.merge_gap)
        self._waiting: list[Unread] = []  # unread pictures before the first that tells a length
        self._last: int | None = None  # length of the picture before, pixels
        self._first_error: ImageError | None = None

    def run(self, record: Record, *, strict: bool, progress: Progress) -> None:
        ledger, began = self.result.ledger, time.monotonic()
        with Prefetched(self.frames) as frames:
            for frame, look in self._looking.looks(frames):
                if isinstance(frame, Frame):
                    self._frame(frame, look, record)
                elif strict:
                    raise frame.error
                else:
                    self._unread(frame, record)
                    progress.say(f"skipped: {frame.error}")
                # Without a known total the bar never looks finished.
                progress.step("inspect", ledger.received, self.frames.total or ledger.received + 1)
        self.result.seconds = time.monotonic() - began
        if not ledger.inspected:
            self._nothing()
        strange = self._cloth.warning()
        if strange:
            self.result.warnings.append(strange)
        self.result.warnings += self._drift.warnings()
        if self._looking.gate is not None:
            self.result.gate = self._looking.gate.count
            self.result.notes.append(said_of_gate(self.result.gate))
        if self._looking.idle:
            self.result.notes.append(
                f"The profile's gate is not used: {self._looking.idle}. "
                "All of the cloth was looked at in full."
            )
        if self._cloth.note:
            self.result.notes.append(self._cloth.note)
        if self.result.along == "x" and self.result.rate.unit == "100 m":
            self.result.notes += self._other_width()
        if self._margin.width:
            self.result.notes.append(
                f"Nothing is reported within {self._margin} of either selvedge; "
                f"regions left out there: {self.result.left_out:,}."
            )
        missing = ledger.skipped + ledger.failed
        if missing:
            self.result.warnings.append(
                f"Not inspected: {missing:,} of {ledger.received:,} pictures; {ledger.skipped:,} could not "
                f"be read, {ledger.failed:,} could be read but not inspected."
            )

    def _other_width(self) -> list[str]:
        """That the promise per 100 m was made for a web of another width, where it was learned along y."""
        scale, rate = self.result.mm_per_px or 1.0, self.result.rate
        inspected = self.result.width_px - 2 * self._margin.pixels
        promised, seen = rate.megapixels * 10 * scale**2, inspected * scale
        if 0.8 < promised / max(seen, 1e-9) < 1.25:
            return []
        return [
            f"{rate} were promised for a web {promised:,.0f} mm wide; these pictures show {seen:,.0f} mm. If "
            f"that is the whole web, learn with --web-width {seen:.0f}."
        ]

    def _frame(self, frame: Frame, look: Seen, record: Record) -> None:
        result, image = self.result, frame.image
        height, width = image.shape[:2]
        length, across = (height, width) if result.along == "y" else (width, height)
        if not result.ledger.received:  # of the first it is a wrong argument, of a later one a wrong picture
            self._margin.check(frame.name, across)
        self._last = length
        for unread in self._waiting:
            self._skip(unread, record)
        self._waiting.clear()
        result.ledger.received += 1
        result.width_px = max(result.width_px, across)
        start = result.length_px
        result.length_px += length
        try:
            self._margin.check(frame.name, across)
            score = checked(look, image)
            everywhere = self._regions(image, score)
            regions = [one for one in everywhere if not self._margin.hides(one.box, across)]
            result.left_out += len(everywhere) - len(regions)
        except ProfileError:  # no fault of this picture
            raise
        except LoomsightError as error:
            result.ledger.failed += 1
            self._numbering.interrupted()
            self._gap(record, Gap(frame.name, frame.index, 1, start, result.length_px, "failed", str(error)))
            return
        founds = []
        for region, number in zip(regions, self._numbering.of(regions, length), strict=True):
            x, y = (region.box[0] + region.box[2]) / 2, (region.box[1] + region.box[3]) / 2
            along, side = (y, x) if result.along == "y" else (x, y)
            founds.append(
                Found(frame.name, frame.index, region, start + along, side, result.mm_per_px, number)
            )
        for found in founds:
            record.add(found)
        self.gallery.offer(founds, image, score, self._point)
        seen = image if self._camera is None else self._camera.correct(image)
        self._cloth.look(frame.index, self._margin.between(image))
        self._drift.look(frame.index, frame.name, self._margin.between(seen), self._between(score))
        if self._maps is not None:
            # Rounded to the nearest: a score of exactly n/65535 comes back as it was.
            write_png(
                self._maps / "maps" / f"{frame.stem}.png",
                np.rint(score.dense() * np.float64(65535)).astype(np.uint16),
            )
        result.ledger.inspected += 1
        result.inspected_px += length
        result.megapixels += length * (across - 2 * self._margin.pixels) / 1e6
        result.regions += len(founds)
        result.defects = self._numbering.count
        result.defective += bool(founds)
        result.highest = max([result.highest, score.highest, *(region.score for region in regions)])

    def _regions(self, image: Picture, score: Look) -> list[Region]:
        point, card = self._point, self.profile.card.detector
        if self._detector is not None and card is not None:
            regions = fuse(score.dense(), self._detector.detect(image), card.fusion)
        else:
            regions = score.regions(point.threshold, point.grouping)
        engine = self._looking.engine
        return engine.name(image, regions) if regions and isinstance(engine, Namer) else regions

    def _between(self, score: Look) -> Look:
        """What was seen between the margins."""
        if score.score is None or not self._margin.width:
            return score
        part = self._margin.between(score.score)
        return Look((part.shape[0], part.shape[1]), part, score.complete)

    def _unread(self, unread: Unread, record: Record) -> None:
        self._first_error = self._first_error or unread.error
        if self._last is None:
            self._waiting.append(unread)
        else:
            self._skip(unread, record)

    def _skip(self, unread: Unread, record: Record) -> None:
        result = self.result
        self._numbering.interrupted()
        result.ledger.received += unread.count
        result.ledger.skipped += unread.count
        start = result.length_px
        result.length_px += (self._last or 0) * unread.count
        self._gap(
            record,
            Gap(
                unread.name, unread.index, unread.count, start, result.length_px, "skipped", str(unread.error)
            ),
        )

    def _gap(self, record: Record, gap: Gap) -> None:
        record.add_gap(gap)
        if len(self.gaps) < _GAPS_TOLD:
            self.gaps.append(gap)

    def _nothing(self) -> None:
        """Raise: not one picture was inspected."""
        unread = sum(unread.count for unread in self._waiting)
        if self._first_error is not None and unread <= 1 and not self.gaps:
            raise self._first_error
        why = (
            str(self._first_error)
            if self._first_error is not None
            else self.gaps[0].reason
            if self.gaps
            else ""
        )
        raise ImageError(
            "not one picture could be inspected",
            where=self.frames.root,
            why=f"the first reason of many is: {why}" if self.result.ledger.received > 1 else why,
        )


def _write_results(walk: _Walk, record: Record, work: Path) -> None:
    result, profile = walk.result, walk.profile
    crops = walk.gallery.crops()
    numbers = {(crop.found.index, crop.found.region.box): number for number, crop in enumerate(crops, 1)}
    metric = result.length_m is not None
    scale = result.mm_per_px or 1.0
    per_along = scale / 1000 if metric else 1.0
    count = f"{result.regions:,} region{'s' * (result.regions != 1)}"
    rollmap = RollMap(
        title=f"Roll map · {profile.name}",
        subtitle=f"{count} in {result.extent} · {result.ledger.inspected:,} of {result.ledger.received:,} "
        f"pictures inspected · {result.when[:10]}",
        length=result.length_px * per_along,
        width=result.width_px * scale,
        unit="m" if metric else "px",
        width_unit="mm" if metric else "px",
        threshold=profile.threshold,
    )
    marks = (
        Mark(
            found.along * per_along,
            found.across * scale,
            found.region.length * scale,
            found.region.score,
            numbers.get((found.index, found.region.box)),
            _extent(found.region, result.along, per_along, scale),
        )
        for found in record.regions()
    )
    gaps = ((gap.start * per_along, gap.stop * per_along) for gap in record.gaps())
    png = encode_png(rollmap.draw(marks, gaps))
    write_bytes(work / "rollmap.png", png)
    record.write_json(
        {
            "schema_version": 1,
            "program": f"loomsight {__version__}",
            "threshold": profile.threshold,
            **{key: value for key, value in result.summary().items() if key != "out"},
        }
    )
    write_report(result, profile, png, crops, walk.gaps).write(work / "report.html")


def _extent(region: Region, along: Along, per_along: float, scale: float) -> tuple[float, float]:
    """How far it reaches along the roll and across it, in the roll map's units."""
    x0, y0, x1, y1 = region.box
    length, width = (y1 - y0, x1 - x0) if along == "y" else (x1 - x0, y1 - y0)
    return length * per_along, width * scale


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
