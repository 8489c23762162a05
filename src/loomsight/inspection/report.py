"""The report of an inspection: what was found where, with a picture behind every point.

Only the surest regions get a picture (:data:`KEEP`), so that a bad roll makes the same report as a good
one; the complete list is ``regions.csv``.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from loomsight import page
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.heat import heat_map
from loomsight.fabric.images import to_rgb
from loomsight.fabric.look import Look
from loomsight.fabric.regions import label_regions
from loomsight.fabric.types import UNKNOWN, Box, Mask, Picture
from loomsight.inspection.record import Found, Gap

if TYPE_CHECKING:
    from loomsight.card import DetectorCard
    from loomsight.inspection.line import Inspection
from loomsight.profile import Profile

KEEP = 48
"""Pictures in a report."""
PER_PICTURE = 4
"""Of these at most so many from one picture of the roll, or one bad metre would fill the report."""
_GAPS = 50
_CROP = (480, 360)  # width, height in the report
_BETWEEN = 6  # pixels between a picture and its map
_LEAST = 140  # source pixels across the smallest window: a nep still shows the weave around it
_OUTLINE, _OTHERS = (226, 32, 60), (240, 160, 40)


@dataclass(frozen=True, slots=True)
class Crop:
    """A found region and its picture, JPEG bytes."""

    found: Found
    jpeg: bytes


@dataclass(slots=True)
class Gallery:
    """The surest regions of an inspection with their pictures; at most ``keep`` are held."""

    keep: int = KEEP
    _heap: list[tuple[float, int, Crop]] = field(default_factory=list)
    _seen: int = 0

    def offer(self, founds: Sequence[Found], image: Picture, look: Look, point: OperatingPoint) -> None:
        """Offer all regions of one picture; a crop is cut only of those that are kept."""
        best = sorted(founds, key=lambda found: (-found.region.score, -found.region.area))[:PER_PICTURE]
        for found in best:
            full = len(self._heap) >= self.keep
            if full and found.region.score <= self._heap[0][0]:
                return
            self._seen += 1
            crop = Crop(found, cut_crop(image, look, found.region.box, point))
            entry = (found.region.score, -self._seen, crop)  # among equals the earlier one stays
            if full:
                heapq.heapreplace(self._heap, entry)
            else:
                heapq.heappush(self._heap, entry)

    def crops(self) -> list[Crop]:
        """The surest first."""
        return [crop for _, _, crop in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def cut_crop(image: Picture, look: Look, box: Box, point: OperatingPoint) -> bytes:
    """A region in its surroundings, outlined, and beside it its score map: JPEG bytes, 966 × 360.

    Args:
        image: uint8 HW or HWC RGB; look: its score map.
        box: the region, xyxy.
        point: at its threshold runs the outline; other regions in the window get a thin one.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    ratio = _CROP[0] / _CROP[1]
    wide = max(_LEAST, 1.3 * (x1 - x0), 1.3 * (y1 - y0) * ratio)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    most = max(_LEAST, 1.5 * ratio * min(height, width))
    if wide > most:  # a thread along a whole strip would be a hairline: show where it is surest
        peak = np.unravel_index(int(look.part(y0, x0, y1, x1).argmax()), (y1 - y0, x1 - x0))
        wide, x, y = most, x0 + float(peak[1]), y0 + float(peak[0])
    left, right = _window(x, wide, width)
    top, bottom = _window(y, wide / ratio, height)
    zoom = min(_CROP[0] / (right - left), _CROP[1] / (bottom - top))
    size = (max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom)))
    part = to_rgb(image[top:bottom, left:right])
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    view = np.asarray(cv2.resize(part, size, interpolation=way), np.uint8)

    score = look.part(top, left, bottom, right)
    mask: NDArray[np.uint8] = (score >= point.threshold).astype(np.uint8)
    own = _own(look, box, point)[top:bottom, left:right].astype(np.uint8)
    _outline(view, mask & ~own, size, _OTHERS, 1)
    _outline(view, own, size, _OUTLINE, 2)
    warm = heat_map(part, score, point.threshold)

    sheet = np.full((_CROP[1], 2 * _CROP[0] + _BETWEEN, 3), 238, np.uint8)
    dy, dx = (_CROP[1] - size[1]) // 2, (_CROP[0] - size[0]) // 2
    for number, shown in enumerate((view, cv2.resize(warm, size, interpolation=way))):
        start = dx + number * (_CROP[0] + _BETWEEN)
        sheet[dy : dy + size[1], start : start + size[0]] = shown
    buffer = io.BytesIO()
    PillowImage.fromarray(sheet).save(buffer, "JPEG", quality=86)
    return buffer.getvalue()


def _own(look: Look, box: Box, point: OperatingPoint) -> Mask:
    """The pixels of a region: other regions may lie in its box, between its pieces."""
    from scipy import ndimage

    _, labels = label_regions(look.dense(), point.threshold, point.grouping)
    inside = np.s_[box[1] : box[3], box[0] : box[2]]
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        if place == inside:
            return np.asarray(labels == number, np.bool_)
    # A detector's box: what the score map shows in it, or if that is nothing all of it.
    own = np.zeros(labels.shape, np.bool_)
    own[inside] = labels[inside] > 0 if labels[inside].any() else True
    return own


def write_report(
    inspection: Inspection, profile: Profile, rollmap: bytes, crops: Sequence[Crop], gaps: Sequence[Gap]
) -> page.Page:
    """The page of an inspection; ``rollmap`` is its PNG, ``crops`` surest first, ``gaps`` the first."""
    sheet = page.Page(
        f"Inspection of {profile.name}",
        subtitle=f"{inspection.source} · {inspection.when[:16].replace('T', ' ')}",
    )
    sheet.figures(_figures(inspection))
    for warning in inspection.warnings:
        sheet.note(warning, kind="warning")
    for note in inspection.notes:
        sheet.note(note)
    if not inspection.regions:
        between = " between the margins" if inspection.left_out else ""
        sheet.note(f"No region of the inspected cloth{between} scored above the threshold.", kind="good")
    sheet.heading("Roll map")
    alt = f"Roll map: {inspection.regions} regions in {inspection.extent}"
    sheet.picture(page.Image(rollmap, alt=alt, caption=_how_to_read(inspection)))
    if crops:
        sheet.heading("What was found")
        which = f"The {len(crops)} surest" if inspection.regions > len(crops) else "The surest first"
        limit = f", at most {PER_PICTURE} of one picture" if inspection.regions > len(crops) else ""
        sheet.paragraph(
            f"{which}{limit}; all {inspection.regions:,} are in regions.csv. "
            "A red line runs around the region, a yellow one around others. Right of it is how suspicious "
            "each place is: the brighter, the more."
        )
        sheet.grid(
            [page.Image(crop.jpeg, caption=_caption(n, crop.found)) for n, crop in enumerate(crops, 1)],
            width=420,
        )
        sheet.table(*_table(inspection, crops), caption="Places of the regions above")
    if gaps:
        sheet.heading("What was not inspected")
        ledger = inspection.ledger
        sheet.paragraph(
            f"{ledger.skipped + ledger.failed} of {ledger.received} pictures were not inspected; on the roll "
            "map they are hatched, as long as the picture before them."
        )
        rows = [(gap.picture, gap.count, gap.kind, gap.reason) for gap in gaps[:_GAPS]]
        sheet.table(("Picture", "Pictures", "", "Why"), rows)
    sheet.heading("How it was inspected")
    sheet.table(("", ""), _circumstances(inspection, profile))
    return sheet


def promise(profile: Profile) -> str:
    """The operating point in words."""
    point = profile.card.operating_point
    return f"at most {point.promised:g} false alarms per {point.unit} of good cloth"


def place_words(found: Found) -> str:
    """A place in the units that are known: "12.34 m, 512 mm" or "10,240 px, 512 px"."""
    if found.place is not None:
        return f"{found.place.metres:,.2f} m, {found.place.millimetres:,.0f} mm"
    return f"{found.along:,.0f} px, {found.across:,.0f} px"


def _figures(inspection: Inspection) -> list[tuple[str, str] | tuple[str, str, str]]:
    ledger = inspection.ledger
    missing = ledger.skipped + ledger.failed
    figures: list[tuple[str, str] | tuple[str, str, str]] = [
        (
            "Pictures inspected",
            f"{ledger.inspected:,}",
            f"{missing:,} not inspected" if missing else "all of them",
        ),
        ("Length" if inspection.length_m is not None else "Area", inspection.extent),
        _found(inspection),
    ]
    if (
        inspection.per_100_m is not None
        and inspection.inspected_m is not None
        and inspection.inspected_m < 10
    ):
        figures.append(("Per metre", f"{inspection.per_100_m / 100:,.1f}"))  # too little for a rate of 100 m
    elif inspection.per_100_m is not None:
        figures.append(("Per 100 m", f"{inspection.per_100_m:,.1f}"))
    else:
        figures.append(("Per megapixel", f"{inspection.per_megapixel:,.2f}"))
    figures.append(("False alarms to expect", _about(inspection.expected_false), "by the profile's promise"))
    return figures


def _found(inspection: Inspection) -> tuple[str, str, str]:
    pictures = f"in {inspection.defective:,} pictures"
    if inspection.defects == inspection.regions:
        return "Regions found", f"{inspection.regions:,}", pictures
    # those that go on from picture to picture count once
    return "Defects found", f"{inspection.defects:,}", f"{inspection.regions:,} regions {pictures}"


def _about(value: float) -> str:
    return "under 1" if value < 1 else f"about {value:,.0f}"


def _how_to_read(inspection: Inspection) -> str:
    return (
        "The length of the roll runs from left to right, its left selvedge is on top. Each disc is a region: "
        "larger when it is longer, darker when it is surer; a bar is a stripe as long as it lies there. "
        "Numbers are those of the pictures below. "
        + ("" if inspection.length_m is not None else "The scale is unknown, so places are in pixels. ")
        + "The band is not drawn to scale."
    )


def _caption(number: int, found: Found) -> str:
    type_ = "" if found.region.type == UNKNOWN else f" · {found.region.type}"
    scale = found.mm_per_px
    length = f"{found.region.length:,.0f} px" if scale is None else f"{found.region.length * scale:,.1f} mm"
    score = f"score {found.region.score:.2f}{type_}"
    return f"{number} · {place_words(found)} · {length} long · {score} · {found.picture}"


def _table(inspection: Inspection, crops: Sequence[Crop]) -> tuple[Sequence[str], list[list[page.Cell]]]:
    metric = inspection.length_m is not None
    head = (
        ["No.", "Along, m", "Across, mm", "Length, mm"]
        if metric
        else ["No.", "Along, px", "Across, px", "Length, px"]
    )
    typed = any(crop.found.region.type != UNKNOWN for crop in crops)
    rows: list[list[page.Cell]] = []
    for number, crop in enumerate(crops, 1):
        row = crop.found.row()
        keys = ("along_m", "across_mm", "length_mm") if metric else ("along_px", "across_px", "length_px")
        places: list[page.Cell] = [row[key] for key in keys]
        type_ = [row["type"]] if typed else []
        rows.append([number, *places, row["area_px"], round(row["score"], 3), *type_, row["picture"]])
    return [*head, "Area, px", "Score", *(["Type"] if typed else []), "Picture"], rows


def _circumstances(inspection: Inspection, profile: Profile) -> list[tuple[str, str]]:
    point, card = profile.card.operating_point, profile.card
    scale = (
        f"{profile.scale:g} mm per pixel" if profile.scale is not None else "unknown: places are in pixels"
    )
    return [
        ("Profile", f"{profile.name}, learned {card.created}, {card.network.name}"),
        (
            "Threshold",
            f"{profile.threshold:.4f}: {promise(profile)}, set on {point.megapixels_seen:,.1f} Mpx of it",
        ),
        *([("Detector", _detector(card.detector))] if card.detector is not None else []),
        ("Scale", scale),
        ("Length of the roll", f"along the pictures' {inspection.along} axis, one picture after another"),
        ("Speed", f"{inspection.speed}, {inspection.seconds:,.0f} s"),
    ]


def _detector(card: DetectorCard) -> str:
    named = [name for name in card.types if name != UNKNOWN]
    return f"RT-DETR, {card.form}, beside the network: boxes, and {len(named)} types of defects"


def _window(centre: float, side: float, limit: int) -> tuple[int, int]:
    """``side`` pixels around ``centre``, moved to lie within 0 and ``limit``."""
    side = min(side, limit)
    start = min(max(centre - side / 2, 0), limit - side)
    return int(start), min(limit, max(int(start) + 1, round(start + side)))


def _outline(
    view: Picture, mask: NDArray[np.uint8], size: tuple[int, int], colour: tuple[int, int, int], width: int
) -> None:
    """Draw a line around a mask, a few pixels outside it, so that it does not hide what it shows."""
    large = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    grown = cv2.dilate(large, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17)))
    lines, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, lines, -1, colour, width, cv2.LINE_AA)
