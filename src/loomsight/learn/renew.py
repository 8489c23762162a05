"""A profile renewed: another way to look for what no label covers, more good cloth, what an inspector taught.

The network stays as it is. Good cloth that is given sets the thresholds anew, on the quarter of it that is
held back, and tells the line what light and cloth look like from now on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from loomsight.anomaly import MethodName, Residual
from loomsight.anomaly.drift import reference
from loomsight.card import DetectorCard, NormalityCard
from loomsight.detection.fusion import fuse
from loomsight.errors import UsageError, WeightsError
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.images import find_images, mostly_lossy, read_image, read_images
from loomsight.fabric.margin import Margin
from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import Box, Picture, Region
from loomsight.learn.cloth import GoodCloth, part, spread, too_little
from loomsight.learn.detector import calibrate_fusion
from loomsight.learn.lessons import (
    Lesson,
    counted,
    meet,
    new_record,
    number_of,
    numbers_of,
    overruled,
    recorded,
    settled,
)
from loomsight.learn.normality import NO_BARS, LearnedNormality, learn_normality
from loomsight.learn.saving import save_renewed
from loomsight.profile import EARLIER, Profile
from loomsight.progress import Progress
from loomsight.runtime.engine import DetectorEngine, Engine, SegmenterEngine, TorchDetector, UnionEngine

_MOST_CODES, _FEW_CODES = 12, 3  # pictures whose texture is looked at, and of so few it is not learned
# Of the cloth that the threshold rests on, to set it anew, where that shows no promise by itself.
_ENOUGH = 0.5


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
        budget_mb: of what a memory takes while it learns; residuals: what a GAN compares. See
            :func:`loomsight.learn.normality.fitting`.

    Raises:
        DatasetError, ImageError: no good picture, or one that cannot be read.
    """
    progress = progress or Progress()
    margin = margin or profile.margin
    pictures, cloth, lossy = _good(profile, good, margin, progress)
    learned = learn_normality(
        cloth,
        methods,
        seconds=60 * minutes,
        seed=seed,
        budget_mb=budget_mb,
        residuals=residuals,
        progress=progress,
    )
    what, before = f"{'+'.join(methods)} learned from {len(pictures)} good pictures", profile.normality()
    lessons = [one for one in profile.lessons if one["what"] != "good"]  # the good cloth is now this
    if before is not None and before.taught:
        if "memory" in methods:
            before.forget(numbers_of(one for one in profile.lessons if one["what"] == "good"))
            learned.normality.take_over(before)
            learned.normality.spare(cloth.learn)
            learned = LearnedNormality.of(learned.normality, cloth.judge, progress, learned.doubts)
            what += ", with the places that were taught before"
        else:
            lessons = []
            progress.say("note: without a memory nothing is known any longer of the places that were taught")
            what += ", what was taught of places is lost"
    return _calibrated(
        profile,
        learned,
        pictures,
        cloth,
        margin=margin,
        lessons=lessons,
        lossy=lossy,
        how="anew",
        what=what,
        progress=progress,
    )


def teach(
    profile: Profile,
    *,
    good: Path | str | None = None,
    lessons: Sequence[Lesson] = (),
    progress: Progress | None = None,
) -> Profile:
    """Remember more good cloth, missed defects and false alarms; nothing is trained.

    The profile lists its lessons: number, when, what ("missed", "false alarm", "good"), where, the picture's
    hash, whether a later one of the same place overruled it, and why it can no longer be taken back.

    Raises:
        UsageError: the profile remembers nothing, a place is not in its picture or taught as both, or what
            was taught would raise alarms on the good cloth that the profile keeps.
        DatasetError, ImageError: no good picture, or a picture that cannot be read.
    """
    if good is None and not lessons:
        raise UsageError("nothing to teach", do="give good cloth, or a place that was judged")
    progress = progress or Progress()
    normality, card = profile.normality(), profile.card.normality
    if normality is None or card is None or "memory" not in normality.methods:
        raise UsageError(
            "nothing here can be taught",
            where=profile.folder,
            why="it has no memory of good cloth",
            do="learn again with --anomaly memory+prediction+bars",
        )
    engine, fresh = profile.engine(corrected=True), recorded(profile.lessons, lessons)
    records = overruled([*profile.lessons, *fresh], progress)
    for lesson, number in zip(lessons, numbers_of(fresh), strict=True):
        image = _shown(profile, lesson)
        normality.teach(image, _place(lesson, image), defect=lesson.defect, lesson=number)
    normality.settle(settled(records))
    samples = _samples(profile)
    if samples and any(lesson.defect for lesson in lessons):
        normality.spare(samples)
    lossy: bool | None = None
    if good is not None:
        pictures, cloth, lossy = _good(profile, good, profile.margin, progress)
        record = new_record(records, "good", picture=str(good), pictures=len(pictures))
        normality.add(cloth.learn, lesson=number_of(record))
        normality.spare(cloth.learn, lesson=number_of(record))
        for one in records:
            if one["what"] == "good":
                one.setdefault("final", "more good cloth was taught since")
        records, fresh = [*records, record], [*fresh, record]
        texture = _texture(profile, pictures, progress)
        if _enough(cloth, profile.card.operating_point, progress):
            learned = LearnedNormality.of(normality, cloth.judge, progress)
            return _calibrated(
                profile,
                learned,
                pictures,
                cloth,
                texture=texture,
                lessons=records,
                lossy=lossy,
                how="good taught",
                what=counted(fresh),
                progress=progress,
            )
    point = profile.card.operating_point
    old = _Inspector(engine, point, _detector(profile), profile.card.detector)
    new = replace(old, engine=UnionEngine(_known(engine), normality, card.union))
    before, after = (sum(len(one.regions(image)) for image in samples) for one in (old, new))
    if after > before:
        raise UsageError(
            "this would break the promise of false alarms, and the profile stays as it was",
            where=profile.folder,
            why=f"{after - before} more alarms on {_kept(samples)}",
            do="mark the defect more closely, or give good cloth of today too, with --good, which sets the "
            "threshold anew",
        )
    for lesson in lessons:
        _tell(lesson, new.alarms(_shown(profile, lesson), lesson.box), progress)
    return save_renewed(
        profile,
        normality=(card, normality.to_arrays()),
        operating_point=point,
        drift=profile.card.drift,
        lessons=records,
        lossy=lossy,
        how="taught" if good is None else "good taught",
        what=f"{counted(fresh)}; alarms on {_kept(samples)}: {after}, before {before}",
    )


def forget(profile: Profile, numbers: Collection[int], *, progress: Progress | None = None) -> Profile:
    """Take lessons back, by the numbers that the profile lists: it is as if they had never been given.

    Of good cloth only the last can be: what was there before is kept of that alone, thresholds and all.

    Raises:
        UsageError: there is no such lesson, or it can no longer be taken back.
    """
    progress, listed = progress or Progress(), profile.lessons
    for number in numbers:
        one = next((one for one in listed if one["number"] == number), None)
        if one is None:
            do = f"'loomsight teach {profile.folder} --list' shows their numbers"
            raise UsageError(f"there is no lesson {number}", where=profile.folder, do=do)
        if "final" in one:
            raise UsageError(
                f"lesson {number} can no longer be taken back",
                where=profile.folder,
                why=str(one["final"]),
                do="put a copy of the profile back, teach the opposite, or learn again",
            )
    back = [one for one in listed if one["number"] in numbers]
    records = overruled([one for one in listed if one not in back], progress)
    card, normality, texture = profile.card, profile.normality(), None
    engine, samples, good = profile.engine(corrected=True), _samples(profile), False
    assert normality is not None  # noqa: S101 — the lessons lie in it
    old = _Inspector(engine, card.operating_point, _detector(profile), card.detector)
    if any(one["what"] == "good" for one in back):
        card, earlier, texture = profile.before()
        normality.forget(numbers, earlier)
        normality.spare(samples)  # what was taught since was compared with more cloth
        good = True
    else:
        normality.forget(numbers)
    assert card.normality is not None  # noqa: S101 — said above
    union = UnionEngine(_known(engine), normality, card.normality.union)
    new = replace(old, engine=union, point=card.operating_point, boxed=card.detector)
    before, after = (sum(len(one.regions(image)) for image in samples) for one in (old, new))
    return save_renewed(
        profile,
        normality=(card.normality, normality.to_arrays()),
        operating_point=card.operating_point,
        drift=card.drift,
        detector=card.detector,
        texture=texture,
        lessons=records,
        how="good taken back" if good else "taken back",
        what=f"{counted(back, 'taken back')}; alarms on {_kept(samples)}: {after}, before {before}",
        said=counted([one for one in records if one.get("final") != EARLIER]),
    )


def _kept(samples: Sequence[Picture]) -> str:
    return f"the {sum(map(_megapixels, samples)):.2f} Mpx of good cloth that the profile keeps"


def _shown(profile: Profile, lesson: Lesson) -> Picture:
    """The picture, without the camera's lines."""
    image, camera = read_image(lesson.picture), profile.camera()
    return image if camera is None else camera.correct(image)


def _enough(cloth: GoodCloth, point: OperatingPoint, progress: Progress) -> bool:
    """Whether it is enough to set the threshold anew; where it is not, that is said."""
    held = sum(map(_megapixels, cloth.judge)) if cloth.disjoint else 0.0
    if held >= _ENOUGH * point.megapixels_seen or point.rate.allowed(held) >= 1:
        return True
    progress.say(
        f"note: of this cloth {held:.2g} Mpx could be held back to set the threshold, which rests on "
        f"{point.megapixels_seen:.2g} Mpx: it stays as it was, and so does what is usual in light and focus; "
        "give more good cloth to set them anew"
    )
    return False


def _known(engine: SegmenterEngine | UnionEngine) -> SegmenterEngine:
    """The network's own part of an engine."""
    return engine.known if isinstance(engine, UnionEngine) else engine


def _calibrated(
    profile: Profile,
    learned: LearnedNormality,
    pictures: Sequence[Picture],
    cloth: GoodCloth,
    *,
    margin: Margin | None = None,
    texture: Mapping[str, NDArray[Any]] | None = None,
    lessons: Sequence[Mapping[str, JsonValue]] | None = None,
    lossy: bool,
    how: Literal["anew", "good taught"],
    what: str,
    progress: Progress,
) -> Profile:
    """The thresholds anew, on the good cloth held back."""
    engine, before = profile.engine(corrected=True), profile.card.operating_point
    known = _known(engine)
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
    detector, boxed = _detector(profile), profile.card.detector
    if detector is not None and boxed is not None:
        boxes = [detector.detect(image) for image in progress.track(cloth.judge, "boxes", len(cloth.judge))]
        _, fusion, margins = calibrate_fusion(point, united, boxes, before.rate)
        boxed = boxed.model_copy(update={"fusion": fusion, "margins": margins})
    normality: tuple[NormalityCard, dict[str, np.ndarray]] = (learned.card, learned.normality.to_arrays())
    return save_renewed(
        profile,
        normality=normality,
        operating_point=point,
        drift=reference(pictures, united),
        detector=boxed,
        margin=margin,
        texture=texture,
        lessons=lessons,
        lossy=lossy,
        how=how,
        what=what,
    )


def _texture(
    profile: Profile, pictures: Sequence[Picture], progress: Progress
) -> dict[str, NDArray[Any]] | None:
    """How the cloth looks with pictures that look like another, which is said; None where most do not."""
    from loomsight.texture.familiarity import STRANGE, Familiarity
    from loomsight.texture.gram import TextureEncoder

    arrays, facts = profile.texture(), profile.card.texture
    if not arrays:
        return None
    known, own = Familiarity.from_arrays(arrays), str(facts.get("fabric", profile.name))
    try:
        encoder = TextureEncoder("lite0" if facts.get("backbone") == "lite0" else "vgg16")
    except WeightsError as error:
        progress.say(f"note: whether this is the learned cloth was not checked: {error}")
        return None
    chosen = [pictures[at] for at in np.unique(np.linspace(0, len(pictures) - 1, _MOST_CODES).astype(int))]
    codes = np.stack([encoder.code(image) for image in progress.track(chosen, "texture codes", len(chosen))])
    judged = [known.judge(code) for code in codes]
    strange = sum(one.strangeness > STRANGE or one.fabric != own for one in judged)
    if 2 * strange <= len(chosen):
        return None
    progress.say(
        f"note: {strange} of {len(chosen)} pictures do not look like the cloth that was learned, and are "
        "taken for good cloth all the same: if they are of another fabric, take that back with --forget, "
        "or learn again"
    )
    return known.joined(own, codes).to_arrays() if len(chosen) >= _FEW_CODES else None


def _samples(profile: Profile) -> list[Picture]:
    """The pictures of good cloth that the profile keeps, without the camera's lines."""
    names = sorted(name for name in profile.card.files if name.startswith("samples/"))
    return [read_image(profile.folder / name) for name in names]


@dataclass(frozen=True)
class _Inspector:
    """What an inspection reports of a picture without the camera's lines."""

    engine: Engine
    point: OperatingPoint
    detector: DetectorEngine | None
    boxed: DetectorCard | None

    def regions(self, image: Picture) -> list[Region]:
        score = self.engine.score(image)
        if self.detector is not None and self.boxed is not None:
            return fuse(score, self.detector.detect(image), self.boxed.fusion)
        return find_regions(score, self.point.threshold, self.point.grouping)

    def alarms(self, image: Picture, where: Box) -> bool:
        """Whether something is reported in a place."""
        if self.detector is not None:
            return any(meet(region.box, where) for region in self.regions(image))
        x0, y0, x1, y1 = where
        return bool((self.engine.score(image)[y0:y1, x0:x1] >= self.point.threshold).any())


def _detector(profile: Profile) -> DetectorEngine | None:
    """The profile's detector, if it has one, for pictures without the camera's lines."""
    card = profile.card.detector
    return None if card is None else TorchDetector(profile.detector_network(), card.tile)


def _megapixels(image: Picture) -> float:
    return float(image.shape[0] * image.shape[1]) / 1e6


def _tell(lesson: Lesson, found: bool, progress: Progress) -> None:
    """Say of a place that was taught whether it is not yet what was said."""
    x0, y0, x1, y1 = lesson.box
    if found != lesson.defect:
        where = f"{lesson.picture}@{x0},{y0},{x1},{y1}"
        progress.say(
            f"note: {where} is still not found: it hardly differs from good cloth. Learn again with it, "
            "masked, under --known"
            if lesson.defect
            else f"note: {where} still raises an alarm: give good pictures that show it, with --good"
        )


def _good(
    profile: Profile, good: Path | str, margin: Margin, progress: Progress
) -> tuple[list[Picture], GoodCloth, bool]:
    """Good pictures, how they are parted, and whether their files lose fine detail."""
    chosen = spread(find_images(good), progress)
    camera, pictures = profile.camera(), []
    for path, image in read_images(chosen):
        margin.check(path.name, margin.across(image))
        pictures.append(margin.between(image if camera is None else camera.correct(image)))
    return pictures, part(pictures), mostly_lossy(chosen)


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
