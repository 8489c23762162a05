"""Is this folder good cloth to learn from? What is wrong with it is said before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loomsight.anomaly.drift import sharpness
from loomsight.datasets.annotations import picture_size
from loomsight.errors import ImageError
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.images import to_grey
from loomsight.fabric.types import Picture
from loomsight.progress import Progress

MOST_GOOD = 400  # good pictures in memory, unless said otherwise,
MOST_PIXELS = 200_000_000  # and so many pixels in all, which fit into 4 GB of memory (docs/benchmarks.md)
FEW = 5  # with fewer pictures the operating point rests on too little cloth
_SATURATED = 0.05  # share of pixels at the end of the range
_SOFT = 0.25  # sharpness below this share of the median picture's


def spread(paths: Sequence[Path], progress: Progress, most: int = MOST_GOOD) -> list[Path]:
    """So many pictures at most, and :data:`MOST_PIXELS` of them, evenly over the roll; fewer are said.

    So neither memory nor time grows with a long roll. The sizes are read from the files' heads.
    """
    chosen = _evenly(paths, most)
    pixels = sum(map(_pixels, chosen))
    if pixels > MOST_PIXELS:
        chosen = _evenly(chosen, max(1, int(len(chosen) * MOST_PIXELS / pixels)))
    if len(chosen) < len(paths):
        limits = f"at most {most}, and {MOST_PIXELS / 1e6:.0f} megapixels"
        progress.say(f"note: {len(chosen)} of {len(paths)} good pictures are used, spread evenly: {limits}")
    return chosen


def _evenly(paths: Sequence[Path], most: int) -> list[Path]:
    return [paths[at] for at in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]


def _pixels(path: Path) -> int:
    try:
        height, width = picture_size(path)
    except ImageError:  # who reads it says so
        return 0
    return height * width


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something about the good pictures that a person should look at; ``pictures`` are their names."""

    kind: str
    text: str
    pictures: tuple[str, ...] = ()


def doubts_about(names: Sequence[str], pictures: Sequence[Picture]) -> list[Doubt]:
    """Look at good pictures: too few, without structure, out of focus, over- or underexposed."""
    doubts = []
    if len(pictures) < FEW:
        plural = "" if len(pictures) == 1 else "s"
        text = f"only {len(pictures)} good picture{plural}: {FEW} or more make the threshold firm"
        doubts.append(Doubt("few", text))
    detail = np.array([sharpness(image) for image in pictures])
    flat = [name for name, image in zip(names, pictures, strict=True) if to_grey(image).std() < 1.5]
    soft = [name for name, value in zip(names, detail, strict=True) if value < _SOFT * np.median(detail)]
    bright = [n for n, i in zip(names, pictures, strict=True) if (to_grey(i) >= 254).mean() > _SATURATED]
    dark = [n for n, i in zip(names, pictures, strict=True) if (to_grey(i) <= 1).mean() > _SATURATED]
    for kind, found, text in (
        ("flat", flat, "show no structure at all"),
        (
            "blurred",
            [name for name in soft if name not in flat],
            "are much softer than the others: out of focus?",
        ),
        ("overexposed", bright, "are white in places: too much light, or no cloth there?"),
        ("underexposed", dark, "are black in places: too little light, or no cloth there?"),
    ):
        if found:
            doubts.append(Doubt(kind, f"{len(found)} of {len(pictures)} pictures {text}", tuple(found)))
    return doubts


def too_little(point: OperatingPoint) -> Doubt | None:
    """Whether the cloth that set a threshold is too small to show its promise."""
    if not point.extrapolated:
        return None
    text = (
        f"the threshold rests on {point.megapixels_seen:.2g} Mpx of good cloth, less than one false alarm's "
        f"worth at {point.promised:g} per {point.unit}: it was extrapolated from the highest scores seen, on "
        "the safe side; more good cloth makes it firmer"
    )
    return Doubt("little", text)


@dataclass(frozen=True, slots=True)
class GoodCloth:
    """Good pictures, parted into what is learned from and what sets the operating point.

    Attributes:
        learn: pictures to learn from; judge: pictures the threshold is set on.
        disjoint: whether no pixel is in both.
    """

    learn: tuple[Picture, ...]
    judge: tuple[Picture, ...]
    disjoint: bool


def part(pictures: Sequence[Picture], *, least: int = 160) -> GoodCloth:
    """Keep a quarter of the cloth back for the operating point.

    Of each picture at least four times ``least`` pixels long a quarter, by turns the last and the first, so
    that every such picture is learned from and both selvedges are in both parts; of smaller ones whole
    pictures, as every fourth of equal ones is. Where that comes to less than an eighth of the cloth, or there
    are fewer than four small pictures and nothing else, none can be spared: the threshold is set on what was
    learned.
    """
    learn: list[Picture] = []
    judge: list[Picture] = []
    small: list[Picture] = []
    for image in pictures:
        if max(image.shape[:2]) < 4 * least:
            small.append(image)
            continue
        most, quarter = _cut(image, first=bool(len(learn) % 2))
        learn.append(most)
        judge.append(quarter)
    enough = len(small) >= 4 or bool(learn)
    seen = kept = 0
    for image in small:
        area = image.shape[0] * image.shape[1]
        taken = kept + area / 2 < seen / 4  # of equal pictures every fourth
        (judge if taken else learn).append(image)
        seen, kept = seen + area, kept + area * taken
    if not enough or 8 * _area(judge) < _area(pictures):
        return GoodCloth(tuple(pictures), tuple(pictures), disjoint=False)
    return GoodCloth(tuple(learn), tuple(judge), disjoint=True)


def _area(pictures: Sequence[Picture]) -> int:
    return sum(image.shape[0] * image.shape[1] for image in pictures)


def _cut(image: Picture, *, first: bool) -> tuple[Picture, Picture]:
    """Three quarters along the longer side, and the first or the last quarter."""
    along = int(image.shape[1] >= image.shape[0])
    quarter = image.shape[along] // 4
    parts = np.split(image, [quarter if first else image.shape[along] - quarter], axis=along)
    return (parts[1], parts[0]) if first else (parts[0], parts[1])
