"""Learn a fabric: good pictures in, fabric profile out. The stages stand in :func:`learn`, in order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from loomsight.anomaly import MethodName
from loomsight.anomaly.drift import reference
from loomsight.base import Base, shipped
from loomsight.config import Config
from loomsight.datasets import Item, read_dataset
from loomsight.detection.deeplab import Segmenter, build
from loomsight.errors import DatasetError, ImageError, UsageError
from loomsight.evaluation.operating_point import AlarmRate, OperatingPoint
from loomsight.evaluation.regions import RegionCounts
from loomsight.fabric.flat_field import FlatField, flat_field
from loomsight.fabric.images import find_images, mostly_lossy, read_images, to_rgb
from loomsight.fabric.margin import Along, Margin
from loomsight.fabric.types import LabelledPicture, Picture, ScoreMap
from loomsight.learn.cloth import Doubt, GoodCloth, doubts_about, part, spread, too_little
from loomsight.learn.detector import (
    DetectorSettings,
    LearnedDetector,
    as_in_base,
    base_detector,
    learn_detector,
)
from loomsight.learn.known import load_known
from loomsight.learn.normality import NO_BARS, LearnedNormality, learn_normality
from loomsight.learn.samples import make_samples
from loomsight.learn.saving import check_name, check_target, save_profile
from loomsight.learn.segmenter import SegmenterSettings, calibrate, train_segmenter
from loomsight.learn.trial import TRIED, Trial, marked, try_made
from loomsight.loom import ClothSpec, weave
from loomsight.profile import Profile
from loomsight.progress import Progress
from loomsight.runtime.engine import TorchEngine, UnionEngine
from loomsight.synthesis.recipe import GENERATED, Material, Recipe, TileMaker, types_in
from loomsight.synthesis.samples import Bank
from loomsight.texture.familiarity import Familiarity, Judgement, mixed_fabrics
from loomsight.texture.gram import TextureEncoder
from loomsight.training.loop import History

if TYPE_CHECKING:
    from torch import Tensor

MOST_KNOWN = 600  # pictures of known fabrics held in memory
TEXTURE_PICTURES = 12  # good pictures whose texture code is taken: about a second each
TEXTURE_SHARE = 0.1  # of the minutes, at most, to compare the cloth with the known fabrics
FEW_STEPS = 150  # of training: with fewer the network finds little, and a report may look well all the same
BANK = 300  # samples of each generator
TRAINING_SHARE = 0.3  # of the minutes, at least, to train, however long a slow machine took for all before
DETECTOR_SHARE = 0.6  # of the training's time: a detector learns slower than a segmenter
NORMALITY_SHARE = 0.1  # of the minutes, at most, to remember good cloth
BANK_SHARE = 0.2  # of the minutes, at most, to make them
WOVEN_KNOWN = 48  # pictures that the loom weaves where there are no known fabrics


class LearnSettings(Config):
    """How a fabric is learned."""

    minutes: PositiveFloat = 6.0  # for everything, from the first picture read to the profile written
    steps: PositiveInt | None = None  # of training at most; given alone with a seed, the result repeats
    false_alarms: PositiveFloat | None = None  # promised; default 1 per megapixel, with a scale 2 per 100 m
    mm_per_px: PositiveFloat | None = None  # scale of the pictures
    web_width_mm: PositiveFloat | None = None  # default: the width of a picture, less the margins
    margin: float = Field(0.0, ge=0)  # left out at either selvedge: millimetres, pixels without a scale
    along: Along = "y"  # the pictures' axis that runs along the roll
    on_bad_picture: str = Field("fail", pattern="^(fail|skip)$")  # a picture that cannot be read
    seed: int = Field(0, ge=0)
    recipe: Recipe = Recipe()
    segmenter: SegmenterSettings = SegmenterSettings()
    anomaly: tuple[MethodName, ...] = (
        "memory",
        "prediction",
        "bars",
    )  # for what no label covers; may be empty
    detector: DetectorSettings | None = None  # learned beside the segmenter, for boxes and types

    @property
    def edges(self) -> Margin:
        """What is left out at either selvedge."""
        return Margin(self.margin, self.mm_per_px, self.along)


@dataclass
class Learned:
    """All that learning found out, for the profile and its report."""

    name: str
    settings: LearnSettings
    good: GoodCloth
    names: tuple[str, ...]
    doubts: list[Doubt]
    known: str
    encoder: str
    nearest: Judgement | None
    maker: TileMaker
    banks: dict[str, Bank]
    network: Segmenter
    history: History
    point: OperatingPoint
    good_maps: list[ScoreMap]
    tried: list[Trial]
    familiarity: dict[str, NDArray[np.generic]]
    detector: LearnedDetector | None = None
    normality: LearnedNormality | None = None
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


def time_to_train(seconds: float, *, spent: float, after: float) -> float:
    """What is left of the time given for training, in seconds, but never so little that nothing is learned.

    Args:
        seconds: for everything.
        spent: so far; after: what will be needed after the training.
    """
    return max(seconds - spent - after, TRAINING_SHARE * seconds)


def learn(
    good: Path | str,
    *,
    name: str,
    out: Path,
    known: Path | None = None,
    base: Path | None = None,
    settings: LearnSettings | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Learn a fabric.

    Args:
        good: a folder, a glob or one picture of good cloth.
        name: of the fabric; letters, digits, - _ . and space.
        out: the profile's folder; it must not exist, be empty, or be an earlier profile, which is replaced.
        known: a tree of other fabrics, labelled or good; pictures of ``good`` and of its fabric in there
            are left out. Without it the loom weaves known cloth.
        base: what was trained on known fabrics before: training starts from its networks. None: training
            starts from ImageNet's features. The recipe's generators come from it, or from the one that
            comes with the program, and so does the start of the detector.

    Raises:
        UsageError: a folder is missing, or the settings contradict each other.
        DatasetError: there is no picture, or nothing to learn from.
        ImageError: a picture cannot be read.
        BaseWeightsError: the base is damaged or lacks a generator of the recipe.
        StorageError: the profile cannot be written.
    """
    from loomsight.learn.report import learning_report

    started = time.monotonic()
    settings, progress = _settings(settings or LearnSettings(), known), progress or Progress()
    check_name(name)
    check_target(out, replace=True)
    paths = find_images(good)
    generated = [arm for arm in settings.recipe.arms if arm in GENERATED]
    opened = _open_base(base, generated, wanted=settings.detector is not None and shipped().is_dir())
    names, pictures, skipped = _read_good(paths, settings, progress)
    camera, pictures, doubts = _without_lines(names, pictures, settings.edges)

    progress.say("reading the known fabrics" if known else "weaving known cloth")
    material_known, known_text = _known(known, paths, settings, progress)
    cloth = part(pictures, least=settings.recipe.tile)
    if not cloth.disjoint:
        doubts.append(Doubt("shared", "so little cloth that the threshold was set on what was learned from"))

    progress.say("texture code")
    encoder = TextureEncoder()
    codes = {name: _codes(encoder, pictures, progress)}
    doubts += _strangers(codes[name], names)
    nearest = _nearest_known(encoder, codes[name], material_known if known else [], settings, progress)

    banks: dict[str, Bank] = {}
    if opened is not None and generated:
        same = opened.card.encoder == encoder.backbone
        own = codes[name] if same else _codes(TextureEncoder(opened.card.encoder), pictures, progress)
        banks = _made(opened, cloth, own.mean(axis=0), material_known, settings, progress=progress)
        settings = _without_empty(settings, banks, doubts)
    normality = _normality(cloth, settings, progress)
    material = Material(cloth.learn, material_known, {arm: bank.samples for arm, bank in banks.items()})
    maker = TileMaker(settings.recipe, material, seed=settings.seed)
    after = _seconds_after(settings.segmenter, cloth.judge)
    left = time_to_train(settings.minutes * 60, spent=time.monotonic() - started, after=after)
    start = _start(opened, base, settings)
    share = 1 - DETECTOR_SHARE if settings.detector is not None else 1.0
    network, history = train_segmenter(
        material,
        settings.recipe,
        settings.segmenter,
        types=sorted(
            {*types_in(material, settings.recipe, boxed=False), *(start[1] if start is not None else ())}
        ),
        steps=settings.steps,
        seconds=share * left,
        seed=settings.seed,
        start=start,
        progress=progress,
    )
    progress.say("operating point")
    rate = _rate(settings, pictures)
    point, maps, engine = _united(network, normality, cloth, rate)
    doubts += _of_threshold(point, normality)
    detector = None
    if settings.detector is not None:
        progress.say("detector")
        boxing = as_in_base(settings.detector, opened)
        detector = learn_detector(
            material,
            settings.recipe,
            boxing,
            beside=(point, maps, cloth.judge, rate),
            start=base_detector(opened, boxing.form),
            steps=settings.steps,
            seconds=DETECTOR_SHARE * left,
            seed=settings.seed,
            progress=progress,
        )
        doubts += detector.doubts
    tried = try_made(engine, maker, settings.recipe, point, detector=detector, seed=settings.seed)
    doubts += _unfinished(history, tried)
    for doubt in doubts:
        progress.say(f"note: {doubt.text}")
    learned = Learned(
        name=name,
        settings=settings,
        good=cloth,
        names=tuple(names),
        doubts=doubts,
        known=known_text,
        encoder=encoder.source,
        nearest=nearest,
        maker=maker,
        banks=banks,
        network=network,
        history=history,
        point=point,
        good_maps=maps,
        tried=tried,
        familiarity=_familiarity(codes[name], encoder, pictures, name),
        detector=detector,
        normality=normality,
        skipped=skipped,
        seconds=time.monotonic() - started,
    )
    return save_profile(
        out,
        name=name,
        form=settings.segmenter.form,
        types=network.types,
        weights=network.state_dict(),
        operating_point=point,
        mm_per_px=settings.mm_per_px,
        margin=settings.edges,
        texture=learned.familiarity,
        texture_facts={"backbone": encoder.backbone, "source": encoder.source, "fabric": name},
        camera=camera,
        detector=None if detector is None else (detector.card, detector.network.state_dict()),
        normality=None if normality is None else (normality.card, normality.normality.to_arrays()),
        drift=reference(pictures, maps),
        recipe=settings.recipe.model_dump(mode="json"),
        training={
            "steps": history.steps,
            "detector_steps": None if detector is None else detector.history.steps,
            "seconds": round(history.seconds, 1),
            "seed": settings.seed,
            "known": known_text,
            "pictures": len(pictures),
            "lossy": mostly_lossy(paths),
            "skipped": len(skipped),
            "notes": [doubt.text for doubt in doubts],
        },
        samples=pictures[:4],
        made=[(to_rgb(one.tile.image), marked(one.tile)) for one in tried],
        report=learning_report(learned),
        replace=True,
    )


def _normality(cloth: GoodCloth, settings: LearnSettings, progress: Progress) -> LearnedNormality | None:
    if not settings.anomaly:
        return None
    progress.say("what good cloth looks like")
    seconds = NORMALITY_SHARE * settings.minutes * 60
    return learn_normality(
        cloth, settings.anomaly, seconds=seconds, steps=settings.steps, seed=settings.seed, progress=progress
    )


def _united(
    network: Segmenter, normality: LearnedNormality | None, cloth: GoodCloth, rate: AlarmRate
) -> tuple[OperatingPoint, list[ScoreMap], TorchEngine | UnionEngine]:
    """The operating point, the maps of the cloth held back, and the engine: of the union, if there is one."""
    point, maps = calibrate(network, cloth.judge, rate)
    if normality is None:
        return point, maps, TorchEngine(network)
    point, maps = normality.unite(point, maps, rate)
    return point, maps, UnionEngine(TorchEngine(network), normality.normality, normality.card.union)


def _of_threshold(point: OperatingPoint, normality: LearnedNormality | None) -> list[Doubt]:
    """What its promise costs, and what it rests on."""
    little = too_little(point)
    doubts = [] if little is None else [little]
    if point.alarms_seen > point.alarms_allowed:
        text = "good cloth itself has places as certain as any defect: look at the highest scores below"
        doubts.append(Doubt("saturated", text))
    if normality is not None:
        doubts += normality.doubts
    if normality is not None and not normality.sees_bars:
        doubts.append(Doubt("bars", NO_BARS))
    return doubts


def _open_base(base: Path | None, arms: Sequence[str], *, wanted: bool) -> Base | None:
    """The base, if it is asked for or wanted, and able to make the arms."""
    if not (base or arms or wanted):
        return None
    opened = Base.open(base or shipped())
    for arm in arms:
        opened.check_arm(arm)
    return opened


def _made(
    base: Base,
    cloth: GoodCloth,
    code: NDArray[np.float32],
    known: Sequence[LabelledPicture],
    settings: LearnSettings,
    *,
    progress: Progress,
) -> dict[str, Bank]:
    """The samples of the recipe's generators, within their share of the minutes."""
    arms = [arm for arm in settings.recipe.arms if arm in GENERATED]
    return {
        arm: make_samples(
            base,
            arm,
            cloth.learn,
            code,
            BANK,
            known=known,
            tile=settings.recipe.tile,
            seconds=BANK_SHARE * settings.minutes * 60 / len(arms),
            seed=settings.seed,
            progress=progress,
        )
        for arm in arms
    }


def _without_empty(settings: LearnSettings, banks: dict[str, Bank], doubts: list[Doubt]) -> LearnSettings:
    """The recipe without the generators of which no sample was good enough, which is said."""
    empty = [arm for arm, bank in banks.items() if not bank.samples]
    if not empty:
        return settings
    arms = tuple(arm for arm in settings.recipe.arms if arm not in empty) or ("drawn",)
    recipe = settings.recipe.model_copy(update={"arms": arms})
    text = f"no sample by {' and '.join(empty)} was good enough for this cloth: learned with {recipe.name}"
    doubts.append(Doubt("samples", text))
    return settings.model_copy(update={"recipe": recipe})


def _start(
    opened: Base | None, base: Path | None, settings: LearnSettings
) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The weights to start from, and the types which they tell apart: those of a base that was asked for.

    The program's own base learned from woven cloth alone; what starts there is no better on real cloth
    after the minutes of a learning, and was worse from another such base (docs/base-weights.md).
    """
    if opened is None or base is None or settings.segmenter.form != "lite":
        return None
    types = cast("list[str]", opened.card.networks.get("segmenter", {}).get("types", []))
    return opened.weights("segmenter"), tuple(types)


def _seconds_after(settings: SegmenterSettings, judge: Sequence[Picture]) -> float:
    """How long calibration and the report will take, by the speed of this machine as it is now."""
    engine = TorchEngine(build(settings.form, resnet_weights=settings.resnet_weights))
    sample = to_rgb(max(judge, key=lambda image: image.size)[:256, :256])
    engine.score(sample)  # the first call is slower
    started = time.monotonic()
    engine.score(sample)
    speed = sample.shape[0] * sample.shape[1] / (time.monotonic() - started)
    pixels = sum(image.shape[0] * image.shape[1] for image in judge) + TRIED * 160**2
    return float(5 + 1.2 * pixels / speed)


def _unfinished(history: History, tried: Sequence[Trial]) -> list[Doubt]:
    """What says that the network has not learned what it was taught."""
    if history.steps < FEW_STEPS:
        text = f"only {history.steps} training steps were done; {FEW_STEPS} or more make a sure network"
        return [Doubt("short", f"{text}: give more --minutes")]
    counts = sum((one.counts for one in tried), RegionCounts())
    if counts.defects and counts.found < counts.defects / 3:
        text = f"only {counts.found} of {counts.defects} made defects are found at this threshold"
        return [Doubt("blind", f"{text}: give more --minutes, or more good cloth")]
    return []


def _without_lines(
    names: Sequence[str], pictures: Sequence[Picture], margin: Margin
) -> tuple[FlatField | None, list[Picture], list[Doubt]]:
    """The lines that the camera draws, the cloth between the margins without them, and doubts about it."""
    for name, image in zip(names, pictures, strict=True):
        margin.check(name, margin.across(image))
    inner = [margin.between(image) for image in pictures]
    doubts = doubts_about(names, inner)
    camera = flat_field(inner)
    if camera is None:
        return None, inner, doubts
    within = [camera.correct(image) for image in inner]
    beside = (pictures[0].shape[1] - len(camera.gains)) // 2  # columns that the margins have
    whole = FlatField(np.pad(camera.gains, beside, constant_values=1.0))
    doubts.append(Doubt("camera", whole.text))
    return whole, within, doubts


def _read_good(
    paths: Sequence[Path], settings: LearnSettings, progress: Progress
) -> tuple[list[str], list[Picture], list[str]]:
    """Names and pictures, and what was said of those that cannot be read."""
    names, pictures, skipped = [], [], []

    def tell(error: ImageError) -> None:
        skipped.append(str(error))
        progress.say(f"skipped: {error}")

    chosen = spread(paths, progress)
    on_error = "skip" if settings.on_bad_picture == "skip" else "fail"
    for path, image in read_images(chosen, on_error=on_error, report=tell):  # type: ignore[arg-type]
        names.append(path.name)
        pictures.append(image)
    if not pictures:
        raise DatasetError(
            "no good picture can be read", where=paths[0].parent, why=f"{len(skipped)} were tried"
        )
    return names, pictures, skipped


def _settings(asked: LearnSettings, known: Path | None) -> LearnSettings:
    """What was asked for, and the share of made tiles: smaller with a detector, where others are known."""
    recipe = asked.recipe.beside_detector() if known and asked.detector is not None else asked.recipe
    return asked.model_copy(update={"recipe": recipe.model_copy(update={"synthetic": recipe.made})})


def _known(
    known: Path | None, good: Sequence[Path], settings: LearnSettings, progress: Progress
) -> tuple[list[LabelledPicture], str]:
    """Pictures of known fabrics, and in words where they come from."""
    rng = np.random.default_rng([settings.seed, 1])
    if known is None:
        return list(_woven(rng, progress)), f"{WOVEN_KNOWN} pictures of cloth that the loom wove"
    items = read_dataset(known, on_error=lambda error: progress.say(f"skipped: {error}"))
    others = _without_own(items, good)
    if not items:
        do = "give a folder of pictures, or of fabrics with good/, defect/ and mask/"
        raise DatasetError("no usable picture of known fabrics", where=known, why="nothing was found", do=do)
    if not others:
        raise DatasetError("no known fabric", where=known, why="all in it is of the fabric to learn")
    if len(others) > MOST_KNOWN:
        others = [others[i] for i in sorted(rng.choice(len(others), MOST_KNOWN, replace=False))]
    pictures = load_known(others, progress, skip=settings.on_bad_picture == "skip")
    if not pictures:
        raise DatasetError(
            "no known fabric",
            where=known,
            why="not one of its pictures can be read, or its defects have neither masks nor boxes",
        )
    masks = sum(picture.mask is not None and bool(picture.mask.any()) for picture in pictures)
    boxes = sum(picture.mask is None for picture in pictures)
    if not masks and {"paste", "poisson"} & set(settings.recipe.arms):
        raise UsageError(
            f"the recipe {settings.recipe.name} needs defects with masks",
            where=known,
            why="there is none",
            do="use --recipe drawn, or leave --known out",
        )
    fabrics = len({picture.fabric for picture in pictures})
    alone = f", {boxes} with boxes alone" if boxes else ""
    return pictures, f"{len(pictures)} pictures of {fabrics} fabrics, {masks} with masks{alone}"


def _without_own(items: Sequence[Item], good: Sequence[Path]) -> list[Item]:
    """The items of other fabrics: none of the fabric that is learned, nor of its sources."""
    own_paths = {path.resolve() for path in good}
    own = [item for item in items if item.path.resolve() in own_paths]
    fabrics, sources = {item.fabric for item in own}, {item.source for item in own}
    return [item for item in items if item.fabric not in fabrics and item.source not in sources]


def _woven(rng: np.random.Generator, progress: Progress) -> list[LabelledPicture]:
    woven = []
    for number in progress.track(range(WOVEN_KNOWN), "weaving"):
        cloth = weave(ClothSpec.random(rng), 320, 512, rng, defects="random" if number % 3 else ())
        woven.append(
            LabelledPicture(cloth.image, cloth.mask, fabric=f"loom/{number}", source=f"loom {number}")
        )
    return woven


def _codes(
    encoder: TextureEncoder, pictures: Sequence[Picture], progress: Progress, most: int = TEXTURE_PICTURES
) -> NDArray[np.float32]:
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, most).astype(int))]
    return np.stack([encoder.code(image) for image in progress.track(chosen, "texture codes")])


def _strangers(codes: NDArray[np.float32], names: Sequence[str]) -> list[Doubt]:
    used = np.unique(np.linspace(0, len(names) - 1, TEXTURE_PICTURES).astype(int))
    strange = mixed_fabrics(codes) if len(codes) >= 4 else []
    if not strange:
        return []
    who = tuple(names[used[i]] for i in strange)
    text = f"{len(who)} of {len(codes)} pictures look like another fabric: {', '.join(who[:4])}"
    return [Doubt("mixed", text, who)]


def _nearest_known(
    encoder: TextureEncoder,
    own: NDArray[np.float32],
    known: Sequence[LabelledPicture],
    settings: LearnSettings,
    progress: Progress,
) -> Judgement | None:
    """Which known fabric this cloth is most like, from three pictures of each, of as many as time allows."""
    by_fabric: dict[str, list[Picture]] = {}
    for picture in known:
        by_fabric.setdefault(picture.fabric, []).append(picture.image)
    several = {name: images[:3] for name, images in by_fabric.items() if len(images) >= 3}
    codes: dict[str, NDArray[np.float32]] = {}
    end = time.monotonic() + TEXTURE_SHARE * settings.minutes * 60
    for name, images in progress.track(several.items(), "known textures", len(several)):
        if time.monotonic() < end:
            codes[name] = np.stack([encoder.code(image) for image in images])
    if len(codes) < len(several):
        progress.say(f"note: compared with {len(codes)} of {len(several)} known fabrics, for want of time")
    return Familiarity.fit(codes).judge(own.mean(axis=0)) if codes else None


def _familiarity(
    codes: NDArray[np.float32], encoder: TextureEncoder, pictures: Sequence[Picture], name: str
) -> dict[str, NDArray[np.generic]]:
    """What a line needs to tell this cloth from another; of one or two pictures, from their patches."""
    if len(codes) < 3:
        codes = np.concatenate([encoder.patch_codes(image) for image in pictures])
    return Familiarity.fit({name: codes}).to_arrays() if len(codes) >= 3 else {}


def _rate(settings: LearnSettings, pictures: Sequence[Picture]) -> AlarmRate:
    if settings.mm_per_px is None:
        return AlarmRate.per_megapixel(settings.false_alarms or 1.0)
    across = pictures[0].shape[1 if settings.along == "y" else 0]
    width = settings.web_width_mm or across * settings.mm_per_px
    return AlarmRate.per_100_m(
        settings.false_alarms or 2.0, mm_per_pixel=settings.mm_per_px, web_width_mm=width
    )
