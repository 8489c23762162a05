"""A profile renewed: another way to look for what no label covers, more good cloth, what an inspector taught.

The network stays as it is. Good cloth that is given sets the thresholds anew, on the quarter of it that is
held back, and tells the line what light and cloth look like from now on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from loomsight.anomaly import MethodName, Residual
from loomsight.anomaly.drift import reference
from loomsight.card import DetectorCard, NormalityCard
from loomsight.detection.fusion import fuse
from loomsight.errors import UsageError, WeightsError
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.images import find_images, read_image, read_images
from loomsight.fabric.margin import Margin
from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import Box, Picture, Region
from loomsight.learn.cloth import GoodCloth, part, spread, too_little
from loomsight.learn.detector import calibrate_fusion
from loomsight.learn.normality import NO_BARS, LearnedNormality, learn_normality
from loomsight.profile import Profile
from loomsight.progress import Progress
from loomsight.runtime.engine import DetectorEngine, Engine, SegmenterEngine, TorchDetector, UnionEngine

_MOST_CODES, _FEW_CODES = 12, 3  # pictures whose texture is looked at, and of so few it is not learned
# Of the cloth that the threshold rests on, to set it anew, where that shows no promise by itself.
_ENOUGH = 0.5


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
        DatasetError, ImageError: no good picture, or one that cannot be read.
    """
    progress = progress or Progress()
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
    what, before = f"{'+'.join(methods)} learned from {len(pictures)} good pictures", profile.normality()
    lessons = [one for one in profile.lessons if one["what"] != "good"]  # the good cloth is now this
    if before is not None and before.taught:
        if "memory" in methods:
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
        anew=True,
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

    The profile lists its lessons: when, what ("missed", "false alarm", "good"), where, the picture's hash,
    and whether a later one of the same place overruled it.

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
    records, told, engine = _recorded(profile.lessons, lessons, progress), [], profile.engine(corrected=True)
    for lesson in lessons:
        image = _shown(profile, lesson)
        normality.teach(image, _place(lesson, image), defect=lesson.defect)
    samples = _samples(profile)
    if samples and any(lesson.defect for lesson in lessons):
        normality.spare(samples)
    if lessons:
        missed = sum(lesson.defect for lesson in lessons)
        counts = (missed, "missed defect"), (len(lessons) - missed, "false alarm")
        words = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count]
        told.append(f"{' and '.join(words)} taught")
    if good is not None:
        pictures, cloth = _good(profile, good, profile.margin, progress)
        normality.add(cloth.learn)
        normality.spare(cloth.learn)
        told.append(f"{len(pictures)} good picture{'s' * (len(pictures) != 1)} added")
        records.append({"when": _now(), "what": "good", "picture": str(good), "pictures": len(pictures)})
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
                what="; ".join(told),
                progress=progress,
            )
    point, detector = profile.card.operating_point, _detector(profile)
    old = _Inspector(engine, point, detector, profile.card.detector)
    new = replace(old, engine=UnionEngine(_known(engine), normality, card.union))
    before, after = (sum(len(one.regions(image)) for image in samples) for one in (old, new))
    cloth_kept = f"the {sum(map(_megapixels, samples)):.2f} Mpx of good cloth that the profile keeps"
    if after > before:
        raise UsageError(
            "this would break the promise of false alarms, and the profile stays as it was",
            where=profile.folder,
            why=f"{after - before} more alarms on {cloth_kept}",
            do="mark the defect more closely, or give good cloth of today too, with --good, which sets the "
            "threshold anew",
        )
    told.append(f"alarms on {cloth_kept}: {after}, before {before}")
    for lesson in lessons:
        _tell(lesson, new.alarms(_shown(profile, lesson), lesson.box), progress)
    return profile.renewed(
        normality=(card, normality.to_arrays()),
        operating_point=point,
        drift=profile.card.drift,
        lessons=records,
        what="; ".join(told),
    )


def _recorded(
    before: Sequence[dict[str, JsonValue]], lessons: Sequence[Lesson], progress: Progress
) -> list[dict[str, JsonValue]]:
    """All lessons; where a new one contradicts an old one, that is said."""
    records, new = [dict(one) for one in before], len(before)
    for lesson in lessons:
        what = "missed" if lesson.defect else "false alarm"
        picture = hashlib.sha256(lesson.picture.read_bytes()).hexdigest()
        for number, old in enumerate(records):
            if old.get("sha256") != picture or old["what"] == what or not _meet(old["place"], lesson.box):
                continue
            where = f"{lesson.picture}@{','.join(map(str, lesson.box))}"
            if number >= new:
                raise UsageError("taught as missed and as a false alarm", where=where, do="say which it is")
            old["overruled"] = True
            progress.say(f"note: {where} was taught as {old['what']} before, {old['when']}: now this holds")
        place: list[JsonValue] = list(lesson.box)
        records.append(
            {"when": _now(), "what": what, "picture": str(lesson.picture), "place": place, "sha256": picture}
        )
    return records


def _meet(one: Any, other: Box) -> bool:
    """Whether two boxes have pixels in common."""
    return bool(
        max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
    anew: bool = False,
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
    return profile.renewed(
        normality=normality,
        operating_point=point,
        drift=reference(pictures, united),
        detector=boxed,
        margin=margin,
        texture=texture,
        lessons=lessons,
        anew=anew,
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
        "taken for good cloth all the same: if they are of another fabric, put a copy of the profile back, "
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
            return any(_meet(region.box, where) for region in self.regions(image))
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
