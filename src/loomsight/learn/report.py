"""The report of a learning: what was learned, from what, how sure it is, and what a person should look at.

One page that is mailed or printed. Its pictures are few and small, so that it stays under 3 MB however
much cloth was learned from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image as PillowImage

from loomsight import __version__, page
from loomsight.evaluation.confusion import Confusion
from loomsight.evaluation.regions import RegionCounts
from loomsight.fabric.heat import heat_map
from loomsight.fabric.images import encode_png, to_rgb
from loomsight.fabric.types import Picture, ScoreMap
from loomsight.learn.trial import Trial, made_tiles, marked

if TYPE_CHECKING:
    from loomsight.learn.job import Learned, LearnSettings
    from loomsight.synthesis.recipe import Recipe

_SAMPLES = 12  # made defects that are shown as they are
_SHOWN = 6  # of those found, and of those missed
_SUSPECTS = 8  # places of good cloth
_CLOTH = 8  # pictures of good cloth
_SIDE = 320  # pixels of a picture on the page
_LOOK = 112  # pixels of cloth around a suspicious place
_TOLD = 12  # skipped pictures that are named
_MADE, _FOUND = (226, 32, 60), (0, 140, 255)  # outlines: what was made, what was found

_ARMS = {
    "paste": "defect of a known fabric, set into this cloth",
    "poisson": "defect of a known fabric, blended into this cloth",
    "perlin": "foreign texture in cloud-shaped spots",
    "drawn": "defect drawn into this cloth by the loom",
    "stage1": "generated defect, set into this cloth",
    "stage1+2": "generated defect, fused into this cloth",
    "refined": "drawn defect, fused into this cloth",
    "diffusion": "defect painted into this cloth by diffusion",
    "real": "labelled defect of a known fabric",
}


def learning_report(learned: Learned) -> str:
    """The page as one HTML file, self-contained; the same learning gives the same page.

    Args:
        learned: all that learning found out.
    """
    sheet = page.Page(
        f"{learned.name}: how it was learned",
        subtitle=f"from {_count(len(learned.names), 'good picture')} and {learned.known}, "
        f"by loomsight {__version__}",
    )
    sheet.figures(_figures(learned))
    _findings(sheet, learned)
    sheet.heading("The good cloth")
    sheet.paragraph(
        "The fabric as it was given. If this is not the fabric, or a defect is in it, learn again without "
        "that picture."
    )
    sheet.grid(_cloth(learned.good.learn), width=200)
    _made(sheet, learned)
    _trial(sheet, learned)
    _types(sheet, learned)
    _suspects(sheet, learned)
    sheet.heading("The training")
    _curve(sheet, learned)
    sheet.heading("How it was made")
    sheet.table(("", ""), _circumstances(learned))
    if learned.skipped:
        more = len(learned.skipped) - _TOLD
        caption = f"and {_count(more, 'picture')} more" if more > 0 else ""
        rows = [(text,) for text in learned.skipped[:_TOLD]]
        sheet.table(("Pictures that were left out",), rows, caption=caption)
    return sheet.html()


def _figures(learned: Learned) -> list[tuple[str, str | int | float] | tuple[str, str | int | float, str]]:
    point, history = learned.point, learned.history
    cloth = (*learned.good.learn, *(learned.good.judge if learned.good.disjoint else ()))
    area = sum(image.shape[0] * image.shape[1] for image in cloth) / 1e6
    return [
        ("Good pictures", len(learned.names), f"{area:,.1f} Mpx of cloth"),
        ("Training steps", history.steps, f"in {history.seconds / 60:.1f} min"),
        ("From the first picture to this page", f"{learned.seconds / 60:.1f} min"),
        ("False alarms promised", f"{point.promised:g}", f"per {point.unit}, at most"),
        ("Threshold", f"{point.threshold:.3f}", "a score of 0 to 1"),
    ]


def _findings(sheet: page.Page, learned: Learned) -> None:
    """What must not be missed, before anything else."""
    for doubt in learned.doubts:
        names = f" ({', '.join(doubt.pictures[:6])}{', …' if len(doubt.pictures) > 6 else ''})"
        told = not doubt.pictures or doubt.pictures[0] in doubt.text
        sheet.note(
            f"{doubt.text[:1].upper()}{doubt.text[1:]}{'' if told else names}".rstrip(".") + ".",
            kind="warning",
        )
    if learned.skipped:
        count = _count(len(learned.skipped), "picture")
        sheet.note(f"{count} could not be read and were left out; they are named at the end.", kind="warning")
    if not learned.doubts and not learned.skipped:
        sheet.note(
            "The good pictures are of one fabric, sharp and well exposed, and there are enough of them.",
            kind="good",
        )
    if "not installed" in learned.encoder:
        sheet.note(f"The texture was read by a substitute: {learned.encoder}.")
    nearest = learned.nearest
    if nearest is not None:
        sure = f"confidence {nearest.confidence:.0%}"
        sheet.note(
            f"This cloth looks like the known fabric {nearest.fabric} ({sure})."
            if nearest.known
            else f"This is a new fabric: the nearest known one is {nearest.fabric}, which is another "
            f"({sure} that they are the same)."
        )


def _cloth(pictures: Sequence[Picture]) -> list[page.Image]:
    chosen = np.unique(np.linspace(0, len(pictures) - 1, _CLOTH).astype(int))
    return [page.Image(_jpeg(_middle(pictures[i])), alt="good cloth") for i in chosen]


def _made(sheet: page.Page, learned: Learned) -> None:
    sheet.heading("What it was taught to find")
    if learned.settings.recipe.source_only:
        text = "Nothing was made for this cloth: the network learned from labelled pictures of known fabrics."
    else:
        text = "This fabric's own defects are not known yet, so defects were made in its good cloth."
    zoom = _zoom(learned.settings.recipe.tile)
    sheet.paragraph(
        f"{text} Left as the network sees it, right with a line around the defect, or its box if no more is "
        f"known; magnified {zoom} times."
    )
    rng = np.random.default_rng([learned.settings.seed, 2])
    _gate(sheet, learned)
    tiles = made_tiles(learned.maker, learned.settings.recipe, rng, _SAMPLES)
    sheet.grid(
        (
            page.Image(
                _jpeg(_beside(_magnified(tile.image), _outlined(tile.image, marked(tile), _MADE))),
                caption=_ARMS.get(tile.origin, tile.origin),
            )
            for tile in tiles
        ),
        width=400,
    )


def _gate(sheet: page.Page, learned: Learned) -> None:
    """How many generated samples the quality gate let pass, and why not the others."""
    rows = [
        (
            _ARMS.get(arm, arm),
            bank.made,
            len(bank.samples),
            ", ".join(f"{reason} {count}" for reason, count in bank.reasons.most_common()) or "none",
        )
        for arm, bank in learned.banks.items()
    ]
    if rows:
        sheet.table(("Generated", "Made", "Used", "Rejected"), rows, caption="The quality gate.")


def _trial(sheet: page.Page, learned: Learned) -> None:
    point, tried = learned.point, learned.tried
    sheet.heading("What it finds")
    total = sum((one.counts for one in tried), RegionCounts())
    finds = f"it finds {total.found} of {total.defects} defects at this threshold"
    sheet.paragraph(
        f"On windows of the labelled pictures that it learned from, {finds}: they show that the network has "
        "learned, and do not replace a trial on this fabric's own."
        if learned.settings.recipe.source_only
        else f"On fresh tiles, made in the same way and never seen, {finds}. These are made defects, some of "
        "them very faint: they show that the network has learned, and do not replace a trial on real ones."
    )
    rows: list[Sequence[page.Cell]] = []
    for origin in dict.fromkeys(one.tile.origin for one in tried):
        part = sum((one.counts for one in tried if one.tile.origin == origin), RegionCounts())
        rows.append((_ARMS.get(origin, origin), part.defects, part.found, f"{part.recall or 0:.0%}"))
    sheet.table(("Kind", "Made", "Found", "Share"), rows)
    windows = [_peaks(score, learned.settings.recipe.tile) for score in learned.good_maps]
    sheet.histogram(
        {"good cloth": np.concatenate(windows), "made defects": [one.peak for one in tried]},
        x_label="highest score",
        y_label="how many",
        threshold=point.threshold,
        log=True,
        caption="The highest score in each window of held-back good cloth, and on each made defect. What "
        "lies to the right of the line is reported; the less the two overlap, the surer the inspection.",
    )
    found = [one for one in tried if one.complete][:_SHOWN]
    missed = [one for one in tried if not one.complete][:_SHOWN]
    for title, examples in (("Found", found), ("Missed, in whole or in part", missed)):
        if examples:
            sheet.heading(title, level=3)
            sheet.paragraph(
                "Left in red what was made, in the middle in blue what is reported, right how suspicious "
                "each place is: the brighter, the more."
            )
            sheet.grid((_example(one, point.threshold) for one in examples), width=600)


def _example(one: Trial, threshold: float) -> page.Image:
    made = _outlined(one.tile.image, marked(one.tile), _MADE)
    found = _outlined(one.tile.image, one.score >= threshold, _FOUND)
    words = f"{one.counts.found} of {one.counts.defects} found"
    kind = _ARMS.get(one.tile.origin, one.tile.origin)
    warm = _magnified(heat_map(one.tile.image, one.score, threshold))
    caption = f"{words} · highest score {one.peak:.2f} · {kind}"
    return page.Image(_jpeg(_beside(_beside(made, found), warm)), caption=caption)


def _suspects(sheet: page.Page, learned: Learned) -> None:
    places = sorted(
        (
            (score, index, y, x)
            for index, map_ in enumerate(learned.good_maps)
            for score, y, x in _highest(map_, _SUSPECTS)
        ),
        reverse=True,
    )[:_SUSPECTS]
    sheet.heading("The most suspicious places of the good cloth")
    sheet.paragraph(
        "Where the held-back good cloth scored highest: left the cloth, right how suspicious each place is. "
        "The threshold was set so that such places are rarely reported. Is one of them a real defect? Then "
        "learn again without that picture: the threshold falls."
    )
    threshold, cloth = learned.point.threshold, learned.good.judge
    sheet.grid(
        (
            page.Image(
                _jpeg(
                    _beside(
                        _around(cloth[index], y, x),
                        _around(heat_map(cloth[index], learned.good_maps[index], threshold), y, x),
                    )
                ),
                caption=f"score {score:.3f}, {'reported' if score >= threshold else 'not reported'}",
            )
            for score, index, y, x in places
        ),
        width=400,
    )


def _curve(sheet: page.Page, learned: Learned) -> None:
    rows = learned.history.losses
    sheet.line_chart(
        {"loss": ([row["step"] for row in rows], [row["loss"] for row in rows])},
        x_label="training step",
        y_label="loss",
        caption="The error on the tiles it learns from. If it still falls at its end, more minutes help.",
    )


def _circumstances(learned: Learned) -> list[tuple[str, str]]:
    settings, point, recipe = learned.settings, learned.point, learned.settings.recipe
    kept = "cloth not learned from" if learned.good.disjoint else "the cloth that was learned from"
    reason = {"seconds": "the time was used up", "steps": "the number of steps was reached"}
    return [
        ("Known cloth", learned.known),
        ("Nearest known fabric", _nearest(learned)),
        ("Training tiles", _tiles(recipe)),
        ("Training ended because", reason.get(str(learned.history.stopped_because), "")),
        ("Network", f"DeepLabV3, {settings.segmenter.form} form"),
        (
            "Threshold",
            f"{point.threshold:.6f}, set on {point.megapixels_seen:,.2f} Mpx of {kept}: "
            f"{_count(point.alarms_seen, 'alarm')} there, {point.alarms_allowed:,.2g} allowed",
        ),
        *_chance(learned),
        *_strangeness(learned),
        *_detector(learned),
        (
            "Smallest region",
            f"{point.min_area} px; parts are one up to {point.merge_gap} px apart, and where pixels above "
            f"{point.faint:.6f} join them",
        ),
        ("Scale", f"{settings.mm_per_px:g} mm per pixel" if settings.mm_per_px else "unknown: in pixels"),
        *_margin(settings),
        ("Texture code", learned.encoder),
        ("Seed", str(settings.seed)),
    ]


def _tiles(recipe: Recipe) -> str:
    what = f"{recipe.tile} × {recipe.tile} px, {recipe.batch} a step; recipe {recipe.name}"
    if recipe.source_only:
        return what
    shares = f"{recipe.made:.0%} with made defects, {recipe.good:.0%} good cloth, the others known cloth"
    return f"{what}, {shares}, or made defects where that has none"


def _chance(learned: Learned) -> list[tuple[str, str]]:
    """Between which rates chance alone leaves the true one; and what the cloth held back set besides.

    Nothing where the threshold rests on cloth that was learned from, or a detector has its say.
    """
    if learned.detector is not None or not learned.good.disjoint:
        return []
    point = learned.point
    low, high = point.certain()
    between = f"between {low:.2g} and {high:.2g}" if low else f"at most {high:.2g}"
    besides = "which pixels join pieces to one region"
    if learned.normality is not None:
        besides = f"what is expected of good cloth, how both maps are united, and {besides}"
    return [
        (
            "What chance alone leaves open",
            f"{between} false alarms per {point.unit}, with 95 % confidence, on cloth like the one held "
            f"back. Not counted: the same cloth set {besides}; the true rate may lie beyond",
        )
    ]


def _margin(settings: LearnSettings) -> list[tuple[str, str]]:
    if not settings.margin:
        return []
    return [
        ("Left out", f"{settings.edges} at either selvedge: not learned, and not reported by an inspection")
    ]


def _strangeness(learned: Learned) -> list[tuple[str, str]]:
    if learned.normality is None:
        return [("What no label covers", "is not looked for")]
    union = learned.normality.card.union
    return [
        (
            "What no label covers",
            f"by {', '.join(learned.normality.normality.methods)} of the good cloth; threshold "
            f"{union.strangeness:.4f}, the network's {union.segmenter:.6f}, both together as above",
        )
    ]


def _detector(learned: Learned) -> list[tuple[str, str]]:
    if learned.detector is None:
        return []
    card, point = learned.detector.card, learned.detector.point
    what = f"RT-DETR, {card.form}, {learned.detector.history.steps:,} steps"
    types = ", ".join(card.types)
    return [
        ("Detector", what),
        ("Its tiles", _tiles(learned.detector.recipe)),
        ("Types it tells apart", types),
        ("Detector's threshold", f"{point.threshold:.4f}; both together: margin {card.fusion.margin:.2f}"),
    ]


def _types(sheet: page.Page, learned: Learned) -> None:
    """Which practised defect is called what."""
    confusion = Confusion.of(pair for one in learned.tried for pair in one.pairs)
    if confusion.right is None:
        return
    sheet.heading("What it calls them")
    sheet.paragraph(
        f"Of the same made defects, {confusion.right:.0%} are called what they are. A row is a true type: "
        "blue what was called right, red what was called another, grey what was not named, or missed."
    )
    sheet.picture(page.Image(encode_png(confusion.draw()), alt="Which type of defect was called what"))


def _nearest(learned: Learned) -> str:
    nearest = learned.nearest
    if nearest is None:
        return "not asked: there are no known fabrics with three pictures or more"
    same = "the same" if nearest.known else "another fabric"
    return f"{nearest.fabric}, confidence {nearest.confidence:.2f}: {same}"


def _peaks(score: ScoreMap, side: int) -> Float[NDArray[np.float32], " n"]:
    """The highest score of each ``side`` × ``side`` window."""
    rows = range(0, max(1, score.shape[0] - side // 2), side)
    columns = range(0, max(1, score.shape[1] - side // 2), side)
    return np.array([score[y : y + side, x : x + side].max() for y in rows for x in columns], np.float32)


def _highest(score: ScoreMap, count: int) -> list[tuple[float, int, int]]:
    """The highest places of a map, (score, y, x), no two of them in one picture of the report."""
    left, found = score.copy(), []
    for _ in range(count):
        y, x = (int(value) for value in np.unravel_index(int(left.argmax()), left.shape))
        if left[y, x] < 0:
            break
        found.append((float(left[y, x]), y, x))
        left[max(0, y - _LOOK // 2) : y + _LOOK // 2, max(0, x - _LOOK // 2) : x + _LOOK // 2] = -1
    return found


def _zoom(side: int) -> int:
    return max(1, round(_SIDE / side))


def _magnified(image: Picture) -> Picture:
    zoom = _zoom(image.shape[0])
    large = cv2.resize(to_rgb(image), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.uint8)


def _outlined(image: Picture, mask: Bool[NDArray[np.bool_], "h w"], colour: tuple[int, int, int]) -> Picture:
    """The picture magnified, with a line just outside the mask, so that it hides nothing."""
    view, zoom = _magnified(image), _zoom(image.shape[0])
    large = np.repeat(np.repeat(mask.astype(np.uint8), zoom, 0), zoom, 1)
    grown = cv2.dilate(large, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    lines, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, lines, -1, colour, 2, cv2.LINE_AA)
    return view


def _beside(left: Picture, right: Picture) -> Picture:
    return np.hstack([left, np.full((left.shape[0], 6, 3), 255, np.uint8), right])


def _middle(image: Picture) -> Picture:
    """The middle of a picture at its own size, as large as the page shows."""
    side = min(_SIDE, *image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return to_rgb(image[top : top + side, left : left + side])


def _around(image: Picture, y: int, x: int) -> Picture:
    """A square of good cloth around a place, magnified."""
    side = min(_LOOK, *image.shape[:2])
    top = int(np.clip(y - side // 2, 0, image.shape[0] - side))
    left = int(np.clip(x - side // 2, 0, image.shape[1] - side))
    return _magnified(image[top : top + side, left : left + side])


def _jpeg(image: Picture) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
