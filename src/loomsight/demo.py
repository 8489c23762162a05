"""The main job on woven cloth: learn a new fabric, inspect a roll with hidden defects, count what was found.

Nothing is downloaded and nothing is known beforehand: the loom weaves a few known fabrics with labelled
defects, a metre of good denim that is none of them, and a roll of that denim with defects whose places
stay in ``truth``. Learning and inspection are the same functions that the commands call. The roll is then
compared with the truth: a defect is found when a reported region touches it.

::

    demo/
      known/        fabrics with good/, defect/ and mask/
      good/         good pictures of the new fabric, all that is learned of it
      roll/         the roll as a line-scan camera delivers it; truth/: its masks and their list
      profile/      the learned fabric; report.html tells how
      inspection/   what was found: rollmap.png, report.html, regions.csv, regions.json
      demo.json     the figures
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from loomsight.config import Config
from loomsight.datasets import write_dataset
from loomsight.errors import UsageError
from loomsight.evaluation.regions import TOLERANCE, RegionCounts, count_regions
from loomsight.fabric.images import write_png
from loomsight.fabric.regions import label_regions
from loomsight.fabric.types import LabelledPicture, Mask, Picture, Region, ScoreMap
from loomsight.files import new_folder, write_json
from loomsight.inspection.line import inspect
from loomsight.inspection.sources import open_source
from loomsight.loom import STRUCTURES, Cloth, ClothSpec, weave, weave_roll
from loomsight.profile import Profile
from loomsight.progress import Progress

DENIM = ClothSpec(
    structure="twill 3/1",
    ends_per_cm=24,
    picks_per_cm=18,
    mm_per_px=0.15,
    warp_colour=(58, 74, 116),
    weft_colour=(176, 178, 176),
    gap_colour=(20, 24, 36),
    thickness_noise=0.08,
    sheen=0.3,
)
"""The new fabric."""
FALSE_ALARMS_PER_100_M = 50.0
"""Promised. A mill asks for 2 on a web of 1.6 m; this one is a tenth as wide, and a metre of good cloth
cannot show what happens twice in 100 m."""

_GOOD_OF_EACH, _DEFECTIVE_OF_EACH = 2, 4  # pictures of a known fabric
_FRAME = (512, 1024)
_DEFECTS_PER_M2 = 80.0
_CARD = "demo.json"
_OWN = {_CARD, "known", "good", "profile", "roll", "truth", "inspection"}


class DemoSettings(Config):
    """How large a demonstration is: as it stands, under 5 minutes on two cores."""

    seed: int = Field(0, ge=0)  # of the cloth, its defects and the training
    minutes: PositiveFloat = 2.25  # for learning
    steps: PositiveInt | None = None  # of training at most
    known: PositiveInt = 10  # fabrics
    good: PositiveInt = 12  # pictures of the new one
    metres: PositiveFloat = 2.3  # of roll


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a demonstration.

    Attributes:
        hidden: defects in the roll; found: how many of them a reported region touches.
        false_alarms: reported regions that touch none.
        metres: length of the roll; promised: false alarms per 100 m; threshold: the score it led to.
        steps: of training; seconds: everything.
    """

    out: Path
    hidden: int
    found: int
    false_alarms: int
    metres: float
    promised: float
    threshold: float
    steps: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "out"}


def demonstrate(
    out: Path, settings: DemoSettings | None = None, *, progress: Progress | None = None
) -> Outcome:
    """Weave, learn, inspect, and compare with the truth.

    Args:
        out: the folder to make, whole or not at all; an earlier demonstration there is replaced.
        settings: see :class:`DemoSettings`.

    Raises:
        UsageError: ``out`` is in use for something else.
        StorageError: the disk is full or the folder cannot be written.
    """
    from loomsight.learn.job import LearnSettings, learn

    began = time.monotonic()
    settings, progress = settings or DemoSettings(), progress or Progress()
    seed = settings.seed
    check_out(out)
    with new_folder(out, replace=out.is_dir() and (out / _CARD).is_file()) as work:
        progress.say("weaving known fabrics, a new one, and a roll of it with hidden defects")
        write_dataset(_known(settings.known, np.random.default_rng([seed, 0])), work / "known")
        _weave_good(work / "good", settings.good, np.random.default_rng([seed, 1]))
        truth = _weave_roll(work, settings.metres, np.random.default_rng([seed, 2]))
        learn(
            work / "good",
            name="denim",
            out=work / "profile",
            known=work / "known",
            settings=LearnSettings(
                minutes=settings.minutes,
                steps=settings.steps,
                false_alarms=FALSE_ALARMS_PER_100_M,
                mm_per_px=DENIM.mm_per_px,
                seed=seed,
            ),
            progress=progress,
        )
        progress.say("inspecting the roll")
        profile = Profile.open(work / "profile")
        engine = _Remembering(profile)
        roll = open_source(work / "roll")
        roll.title = "roll"  # the folder has another path while it is being made
        result = inspect(roll, profile, work / "inspection", engine=engine, progress=progress)
        counts = _compare(engine.scores, truth, profile)
        outcome = Outcome(
            out=out,
            hidden=counts.defects,
            found=counts.found,
            false_alarms=counts.false_alarms,
            metres=result.length_m or 0.0,
            promised=FALSE_ALARMS_PER_100_M,
            threshold=profile.threshold,
            steps=int(str(profile.card.training["steps"])),
            seconds=round(time.monotonic() - began, 1),
        )
        write_json(work / _CARD, {**settings.model_dump(), **outcome.summary()})
    return outcome


def check_out(out: Path) -> None:
    """Whether a demonstration may be written there.

    Raises:
        UsageError: a file, or a folder with something in it that is no earlier demonstration.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("cannot make a folder", where=out, why="a file of that name exists")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / _CARD).is_file():
        raise UsageError(
            "the folder exists",
            where=out,
            why="it is no earlier demonstration",
            do="choose another with --out",
        )
    for path in sorted(out.iterdir()):
        if path.name not in _OWN:
            raise UsageError(
                "the demonstration is not replaced",
                where=path,
                why="this is in its folder and not part of it",
                do="move it elsewhere",
            )


class _Remembering:
    """The profile's engine, which keeps its score maps so that they can be compared with the truth."""

    def __init__(self, profile: Profile) -> None:
        self._engine = profile.engine()
        self.scores: list[ScoreMap] = []

    def score(self, image: Picture) -> ScoreMap:
        self.scores.append(self._engine.score(image))
        return self.scores[-1]

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        return self._engine.name(image, regions)


def _known(fabrics: int, rng: np.random.Generator) -> Iterator[LabelledPicture]:
    """Pictures of fabrics of every structure but the new one's."""
    others = [structure for structure in STRUCTURES if structure != DENIM.structure]
    for number in range(fabrics):
        spec = ClothSpec.random(rng)
        while spec.structure != others[number % len(others)]:
            spec = ClothSpec.random(rng)
        name = f"{number + 1:02d}-{spec.structure.replace(' ', '-').replace('/', '')}"
        for piece in range(_GOOD_OF_EACH + _DEFECTIVE_OF_EACH):
            cloth = weave(spec, 320, 640, rng, defects="random" if piece >= _GOOD_OF_EACH else ())
            yield LabelledPicture(cloth.image, cloth.mask, fabric=name, source=f"{name}-{piece + 1}")


def _weave_good(folder: Path, count: int, rng: np.random.Generator) -> None:
    """The beginning of another roll, without a defect."""
    metres = count * _FRAME[0] * DENIM.mm_per_px / 1000
    for number, cloth in enumerate(_roll(metres, 0.0, rng)):
        write_png(folder / f"{number + 1:02d}.png", cloth.image)


@dataclass(frozen=True, slots=True)
class _Truth:
    """The mask of the whole roll; of each defect the boxes (xyxy pixels of the roll) in which it lies."""

    mask: Mask
    defects: dict[int, list[tuple[int, int, int, int]]]


def _weave_roll(work: Path, metres: float, rng: np.random.Generator) -> _Truth:
    """Write the roll and its truth."""
    masks, rows = [], []
    defects: dict[int, list[tuple[int, int, int, int]]] = {}
    for number, cloth in enumerate(_roll(metres, _DEFECTS_PER_M2, rng)):
        first = number * _FRAME[0]
        name = f"{number + 1:03d}.png"
        write_png(work / "roll" / name, cloth.image)
        write_png(work / "truth" / name, cloth.mask.astype(np.uint8) * 255)
        masks.append(cloth.mask)
        rows += [{"picture": name, **asdict(defect)} for defect in cloth.defects]
        for defect in cloth.defects:
            x0, y0, x1, y1 = defect.box
            defects.setdefault(defect.number, []).append((x0, first + y0, x1, first + y1))
    write_json(work / "truth" / "defects.json", rows)
    return _Truth(np.concatenate(masks), defects)


def _roll(metres: float, defects_per_m2: float, rng: np.random.Generator) -> Iterator[Cloth]:
    height, width = _FRAME
    return weave_roll(
        DENIM, rng, metres=metres, frame_height=height, width=width, defects_per_m2=defects_per_m2
    )


def _compare(scores: list[ScoreMap], truth: _Truth, profile: Profile) -> RegionCounts:
    """The whole roll at once, each defect once, in however many pieces and pictures it lies."""
    point, roll = profile.card.operating_point, np.concatenate(scores)
    counts = count_regions(roll, truth.mask, point.threshold, point.grouping)
    _, labels = label_regions(roll, point.threshold, point.grouping)
    side = 2 * TOLERANCE + 1
    near = cv2.dilate((labels > 0).astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    found = sum(
        any((near & truth.mask)[y0:y1, x0:x1].any() for x0, y0, x1, y1 in boxes)
        for boxes in truth.defects.values()
    )
    return replace(counts, defects=len(truth.defects), found=found)
