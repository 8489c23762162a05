"""A profile renewed: another way to look for what no label covers, more good cloth, what an inspector taught.

The network stays as it is. Good cloth that is given sets the thresholds anew, on the quarter of it that is
held back, and tells the line what light and cloth look like from now on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loomsight.anomaly import MethodName, Residual
from loomsight.anomaly.drift import reference
from loomsight.card import NormalityCard
from loomsight.errors import UsageError
from loomsight.fabric.images import find_images, read_image, read_images
from loomsight.fabric.margin import Margin
from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import Picture
from loomsight.learn.cloth import GoodCloth, part, spread, too_little
from loomsight.learn.normality import NO_BARS, LearnedNormality, learn_normality
from loomsight.profile import Profile
from loomsight.progress import Progress


@dataclass(frozen=True, slots=True)
class Lesson:
    """One place that an inspector judged: xyxy pixels of a picture, a missed defect or a false alarm."""

    picture: Path
    box: tuple[int, int, int, int]
    defect: bool


def train_anomaly(
    profile: Profile,
    good: Path | str,
    methods: Sequence[MethodName],
    *,
    minutes: float = 5.0,
    seed: int = 0,
    margin: Margin | None = None,
    budget_mb: float | None = None,
    residuals: Sequence[Residual] | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Learn good cloth by other methods, and put that in the place of what the profile has.

    Args:
        margin: what is left out at either selvedge from now on; the profile's own if None.
        budget_mb: of a memory while it learns; residuals: what a GAN compares. See
            :func:`loomsight.learn.normality.fitting`.

    Raises:
        UsageError: the profile has a detector, which is fused at one promise.
        DatasetError, ImageError: no good picture, or one that cannot be read.
    """
    progress = progress or Progress()
    _check(profile)
    margin = margin or profile.margin
    pictures, cloth = _good(profile, good, margin, progress)
    learned = learn_normality(
        cloth,
        methods,
        seconds=60 * minutes,
        seed=seed,
        budget_mb=budget_mb,
        residuals=residuals,
        progress=progress,
    )
    what = f"{'+'.join(methods)} learned from {len(pictures)} good pictures"
    return _calibrated(profile, learned, pictures, cloth, margin=margin, what=what, progress=progress)


def teach(
    profile: Profile,
    *,
    good: Path | str | None = None,
    lessons: Sequence[Lesson] = (),
    progress: Progress | None = None,
) -> Profile:
    """Remember more good cloth, missed defects and false alarms; nothing is trained.

    Raises:
        UsageError: the profile remembers nothing, or a place is not in its picture.
        DatasetError, ImageError: no good picture, or a picture that cannot be read.
    """
    if good is None and not lessons:
        raise UsageError("nothing to teach", do="give good cloth, or a place that was judged")
    progress = progress or Progress()
    _check(profile)
    normality, card = profile.normality(), profile.card.normality
    if normality is None or card is None or "memory" not in normality.methods:
        raise UsageError(
            "nothing here can be taught",
            where=profile.folder,
            why="it has no memory of good cloth",
            do="learn again with --anomaly memory+prediction+bars",
        )
    camera, told = profile.camera(), []
    for lesson in lessons:
        image = read_image(lesson.picture)
        normality.teach(
            image if camera is None else camera.correct(image), _place(lesson, image), defect=lesson.defect
        )
    if lessons:
        missed = sum(lesson.defect for lesson in lessons)
        counts = (missed, "missed defect"), (len(lessons) - missed, "false alarm")
        words = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count]
        told.append(f"{' and '.join(words)} taught")
    if good is None:
        before = _alarms(profile)
        made = profile.renewed(
            normality=(card, normality.to_arrays()),
            operating_point=profile.card.operating_point,
            drift=profile.card.drift,
            what=told[0],
        )
        more = _alarms(made) - before
        if more > 0:
            progress.say(
                f"note: {more} more alarms on the profile's own samples of good cloth: is the place what you "
                "said? Good cloth of today, --good, sets the threshold anew"
            )
        return made
    pictures, cloth = _good(profile, good, profile.margin, progress)
    normality.add(cloth.learn)
    told.append(f"{len(pictures)} good pictures added")
    learned = LearnedNormality.of(normality, cloth.judge, progress)
    return _calibrated(profile, learned, pictures, cloth, what="; ".join(told), progress=progress)


def _calibrated(
    profile: Profile,
    learned: LearnedNormality,
    pictures: Sequence[Picture],
    cloth: GoodCloth,
    *,
    margin: Margin | None = None,
    what: str,
    progress: Progress,
) -> Profile:
    """The thresholds anew, on the good cloth held back."""
    from loomsight.runtime.engine import UnionEngine

    engine, before = profile.engine(corrected=True), profile.card.operating_point
    known = engine.known if isinstance(engine, UnionEngine) else engine
    maps = [known.score(image) for image in progress.track(cloth.judge, "thresholds", len(cloth.judge))]
    point, united = learned.unite(before, maps, before.rate)
    for doubt in learned.doubts:
        progress.say(f"note: {doubt.text}")
    if not learned.sees_bars:
        progress.say(f"note: {NO_BARS}")
    if not cloth.disjoint:
        progress.say("note: too little cloth to hold any back: the threshold was set on what was learned")
    if (little := too_little(point)) is not None:
        progress.say(f"note: {little.text}")
    normality: tuple[NormalityCard, dict[str, np.ndarray]] = (learned.card, learned.normality.to_arrays())
    return profile.renewed(
        normality=normality,
        operating_point=point,
        drift=reference(pictures, united),
        margin=margin,
        what=what,
    )


def _samples(profile: Profile) -> list[Picture]:
    """The pictures of good cloth that the profile keeps, without the camera's lines."""
    names = sorted(name for name in profile.card.files if name.startswith("samples/"))
    return [read_image(profile.folder / name) for name in names]


def _alarms(profile: Profile) -> int:
    """The alarms on them."""
    engine, point = profile.engine(corrected=True), profile.card.operating_point
    scores = (engine.score(image) for image in _samples(profile))
    return sum(len(find_regions(score, point.threshold, point.grouping)) for score in scores)


def _check(profile: Profile) -> None:
    if profile.card.detector is not None:
        raise UsageError(
            "the profile cannot be renewed",
            where=profile.folder,
            why="a detector is fused with the network at one promise",
            do="learn again",
        )


def _good(
    profile: Profile, good: Path | str, margin: Margin, progress: Progress
) -> tuple[list[Picture], GoodCloth]:
    chosen = spread(find_images(good), progress)
    camera, pictures = profile.camera(), []
    for path, image in read_images(chosen):
        margin.check(path.name, margin.across(image))
        pictures.append(margin.between(image if camera is None else camera.correct(image)))
    return pictures, part(pictures)


def _place(lesson: Lesson, image: Picture) -> np.ndarray:
    x0, y0, x1, y1 = lesson.box
    height, width = image.shape[:2]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UsageError(
            f"no such place as {x0},{y0},{x1},{y1}",
            where=lesson.picture,
            why=f"the picture has {width} × {height} pixels",
            do="give left, top, right and bottom in pixels, as regions.csv has them",
        )
    where = np.zeros((height, width), np.bool_)
    where[y0:y1, x0:x1] = True
    return where
