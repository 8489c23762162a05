"""``loomsight evaluate``: how good is a profile, or a folder of score maps, against masks and boxes?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomsight.errors import DatasetError, ImageError, UsageError

if TYPE_CHECKING:
    from loomsight.datasets import Item
    from loomsight.evaluation.confusion import Confusion
    from loomsight.fabric.types import Mask, ScoreMap
    from loomsight.profile import Profile
    from loomsight.progress import Progress

FIGURES = (
    ("ap_picture", "AP within a picture, mean"),
    ("ap", "AP over all pixels"),
    ("f1", "best F1 of pixels"),
    ("auroc", "AUROC of pictures"),
    ("aupro", "AUPRO up to 30 % false pixels"),
    ("recall", "defects found"),
    ("false_alarms_per_mpx", "false alarms per Mpx"),
    ("recall_at_1", "defects found at 1 alarm per Mpx"),
    ("recall_at_4", "defects found at 4"),
    ("recall_at_10", "defects found at 10"),
    ("box_ap", "AP of boxes, IoU .50 to .95"),
    ("box_ap50", "AP of boxes, IoU .50"),
    ("box_ap_small", "AP of boxes under 32 × 32 pixels"),
    ("box_ap50_typed", "AP of boxes, IoU .50, by type"),
    ("types_right", "types called right"),
)
"""The keys of ``--json`` and what they are called in print; score maps have no boxes."""


def evaluate(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A data set with masks or boxes: a folder with good/, defect/ and mask/, COCO, YOLO, VOC …",
            show_default=False,
        ),
    ] = None,
    *,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="The fabric's profile; with --maps only its threshold is used.", show_default=False
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="A folder of score maps, as inspect --maps writes them.", show_default=False),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="The masks of these maps, of the same names.", show_default=False)
    ] = None,
    confusion: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture (PNG) of which type of defect was called what.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Score a profile, or score maps, against masks and boxes.

    Give a data set and a profile, or --maps and --masks. Pixels are scored where masks tell of them; boxes
    and types as an inspection reports them, by the detector too if the profile has one. A map without a mask
    is taken for good cloth; a mask without a map is refused. A figure that the pictures do not define is
    left empty.

    Examples:
      loomsight evaluate fabrics/twill --profile twill
      loomsight evaluate labelled-yolo/ --profile twill --confusion types.png
      loomsight evaluate --maps twill-inspection/maps --masks fabrics/twill/mask --json
    """
    from loomsight.fabric.images import write_png
    from loomsight.progress import for_stream

    if (source is None) == (maps is None):
        raise UsageError("nothing to evaluate", why="give a data set, or --maps and --masks", do="see --help")
    if maps is not None and masks is None:
        raise UsageError("score maps cannot be evaluated alone", do="give --masks too")
    if source is not None and (profile is None or masks is not None):
        why = (
            "a data set brings its own masks"
            if masks is not None
            else "a data set needs a profile to score it"
        )
        raise UsageError("wrong arguments", why=why, do="give --profile, or --maps and --masks")
    if confusion is not None:
        _check_picture(confusion, maps)
    opened = None
    if profile is not None:
        from loomsight.profile import Profile

        opened = Profile.open(profile)
    progress = for_stream()
    try:
        if source is not None and opened is not None:
            row, called = _scored(source, opened, progress, drawn=confusion is not None)
            if confusion is not None:
                write_png(confusion, called.draw())
        else:
            row = _figures(_mapped(maps or Path(), masks or Path()), opened, progress)
    finally:
        progress.close()
    if json:
        from json import dumps

        typer.echo(dumps(row, indent=2))
        return
    typer.echo(f"{'pictures':32} {row['pictures']} ({row['defective']} defective)")
    for key, words in FIGURES:
        if key not in row:
            continue
        value = row[key]
        typer.echo(f"{words:32} {'–' if value is None else f'{value:.4f}'}")


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Score maps with their masks, as a stream, and how many."""

    stream: Iterator[tuple[ScoreMap, Mask | None]]
    total: int


def _figures(pairs: _Pairs, profile: Profile | None, progress: Progress) -> dict[str, Any]:
    from loomsight.evaluation.pixels import PixelScores
    from loomsight.evaluation.regions import RegionCounts, count_regions

    point = None if profile is None else profile.card.operating_point
    pixels, regions = PixelScores(), RegionCounts()
    for score, mask in progress.track(pairs.stream, "evaluate", pairs.total):
        pixels.add(score, mask)
        if point is not None:
            regions += count_regions(score, mask, point.threshold, point.grouping)
    return {
        **asdict(pixels.figures()),
        "threshold": None if point is None else point.threshold,
        "recall": regions.recall,
        "false_alarms_per_mpx": regions.false_alarms_per_megapixel,
    }


def _scored(
    source: Path, profile: Profile, progress: Progress, *, drawn: bool
) -> tuple[dict[str, Any], Confusion]:
    """The figures of a profile on the labelled pictures of a data set, and which type was called what."""
    from loomsight.datasets.formats import read_dataset
    from loomsight.fabric.types import UNKNOWN
    from loomsight.inspection.scoring import ProfileScores

    items = read_dataset(source)
    labelled = [item for item in items if item.good or item.mask or item.outlines or item.boxes]
    if not labelled:
        raise DatasetError("no labels", where=source, do="give a data set with masks or boxes")
    if len(labelled) < len(items):
        progress.say(f"left out: {len(items) - len(labelled)} pictures whose defects nothing outlines")
    boxed = sum(not _has_pixels(item) for item in labelled)
    if boxed:
        progress.say(
            f"note: {boxed} pictures have boxes alone, so they have no part in the figures of pixels"
        )
    types = {name for item in labelled for name in item.types} - {UNKNOWN}
    if drawn and not types:
        raise DatasetError("no picture of types", where=source, why="its labels name no type of defect")
    scores = ProfileScores(profile, types)
    for item in progress.track(labelled, "evaluate", len(labelled)):
        scores.add(item.load())
    return scores.figures(), scores.confusion()


def _has_pixels(item: Item) -> bool:
    return item.good or item.mask is not None or bool(item.outlines)


def _check_picture(path: Path, maps: Path | None) -> None:
    if maps is not None:
        raise UsageError(
            "bad --confusion", why="score maps tell no types", do="give a data set and a profile"
        )
    if path.suffix.lower() != ".png":
        raise UsageError("bad --confusion", where=path, why="the picture is a PNG", do="end its name in .png")
    if path.exists() or not path.parent.is_dir():
        why = "it is there already" if path.exists() else f"there is no folder {path.parent}"
        raise UsageError("bad --confusion", where=path, why=why)


def _mapped(maps: Path, masks: Path) -> _Pairs:
    """The score maps of a folder with the masks of the same names."""
    from loomsight.fabric.images import find_images, read_mask

    for what, folder in (("--maps", maps), ("--masks", masks)):
        if not folder.is_dir():
            why = "it is a file" if folder.exists() else "there is no such folder"
            raise UsageError(f"bad {what}", where=folder, why=why)
    of = {path.stem.removesuffix("_mask"): path for path in find_images(masks)}
    paths = [path for path in find_images(maps) if path.suffix.lower() == ".png"]
    lonely = sorted(of.keys() - {path.stem for path in paths})
    if lonely:
        why = f"{lonely[0]} has a mask, but no map" + (
            f", and {len(lonely) - 1} more" if len(lonely) > 1 else ""
        )
        raise UsageError(
            "masks without score maps", where=maps, why=why, do="inspect the whole set with --maps"
        )

    def stream() -> Iterator[tuple[ScoreMap, Mask | None]]:
        for path in paths:
            score = _read_map(path)
            shape = (score.shape[0], score.shape[1])
            yield score, read_mask(of[path.stem], shape) if path.stem in of else None

    return _Pairs(stream(), len(paths))


def _read_map(path: Path) -> ScoreMap:
    """A 16-bit score map: float32 HW in [0, 1]."""
    import cv2
    import numpy as np

    try:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a header that promises more pixels than OpenCV takes
        pixels = None
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 2:
        why = "it is no grey PNG of 16 bits" if pixels is not None else "it is damaged, too large, or no PNG"
        raise ImageError("cannot read the score map", where=path, why=why, do="write it with inspect --maps")
    return (pixels / np.float64(65535)).astype(np.float32)
