"""Train a base on known fabrics: segmenter, stage 1, stage 2 and, if asked, diffusion."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from loomsight.base import Base, check_target, shipped
from loomsight.config import Config
from loomsight.datasets import read_dataset
from loomsight.errors import DatasetError
from loomsight.fabric.types import LabelledPicture
from loomsight.learn.detector import DetectorSettings, as_in_base, base_detector, train_detector
from loomsight.learn.known import load_known
from loomsight.learn.segmenter import SegmenterSettings, train_segmenter
from loomsight.loom import ClothSpec, weave
from loomsight.progress import Progress
from loomsight.synthesis.diffusion import DiffusionSettings, train_diffusion
from loomsight.synthesis.fusion import FusionSettings, train_fusion
from loomsight.synthesis.multistage import Stage1
from loomsight.synthesis.patches import PatchMaker
from loomsight.synthesis.recipe import Material, Recipe, types_in
from loomsight.synthesis.texture_gan import TextureGanSettings, train_texture_gan
from loomsight.texture.gram import TextureEncoder

if TYPE_CHECKING:
    from torch import nn

CODED = 3  # good pictures of a fabric whose codes are averaged
_SHARES = {"segmenter": 0.1, "stage1": 0.55, "stage2": 0.15, "diffusion": 0.3}  # of the time
_WOVEN_SIZE = (256, 384)  # pixels


class BaseSettings(Config):
    """How a base is trained."""

    minutes: PositiveFloat = 60.0  # for everything
    steps: PositiveInt | None = None  # of each network at most; given alone with a seed, the result repeats
    diffusion: bool = False  # train diffusion too
    encoder: Literal["auto", "vgg16", "lite0"] = "auto"  # of the texture codes
    woven: PositiveInt = 80  # fabrics that the loom weaves where no known ones are given
    drawn: float = Field(0.5, ge=0, le=1)  # share of patches whose defect is drawn on good cloth
    patch: PositiveInt = 64  # pixels a side
    seed: int = Field(0, ge=0)
    recipe: Recipe = Recipe()
    stage1: TextureGanSettings = TextureGanSettings()
    stage2: FusionSettings = FusionSettings()
    painter: DiffusionSettings = DiffusionSettings()


def train_base(
    known: Path | None,
    *,
    out: Path,
    settings: BaseSettings | None = None,
    progress: Progress | None = None,
) -> Base:
    """Train a base and write its folder.

    Args:
        known: a tree of labelled fabrics; None: the loom weaves them, and nothing else is learned from.
        out: the base's folder; it must not exist, be empty, or be an earlier base, which is replaced.

    Raises:
        UsageError: ``out`` holds something else.
        DatasetError: there is nothing to learn from.
        TrainingError: a training diverged.
        StorageError: the base cannot be written.
    """
    settings, progress = settings or BaseSettings(), progress or Progress()
    check_target(out)
    pictures, told = _known_fabrics(known, settings, progress)
    return train_base_on(pictures, out=out, told=told, settings=settings, progress=progress)


def train_network(
    which: Literal["segmenter", "detector"],
    known: Path | None,
    *,
    out: Path,
    settings: BaseSettings | None = None,
    detector: DetectorSettings | None = None,
    progress: Progress | None = None,
) -> Base:
    """Train one network on known fabrics and put it into a base; a detector goes on from the base's own.

    Args:
        which: the network.
        known: a tree of labelled fabrics, masks or boxes; None: the loom weaves them.
        out: a base, which gets the network; if there is none, the one that comes with the program is
            copied there first.
        settings: minutes, steps, woven fabrics, seed and recipe count.
        detector: the detector and how it learns.

    Raises:
        UsageError: ``out`` holds something else.
        DatasetError: there is nothing to learn from.
        TrainingError: the training diverged.
        StorageError: the base cannot be written.
    """
    settings, detector, progress = (
        settings or BaseSettings(),
        detector or DetectorSettings(),
        progress or Progress(),
    )
    check_target(out)
    started = time.monotonic()
    old = Base.open(out) if out.is_dir() and any(out.iterdir()) else Base.open(shipped())
    detector = as_in_base(detector, old)
    pictures, told = _known_fabrics(known, settings, progress)
    good = [picture.image for picture in pictures if picture.mask is not None and not picture.mask.any()]
    recipe = settings.recipe if good else Recipe(arms=("none",), tile=settings.recipe.tile)
    material = Material(good, list(pictures))
    seconds = settings.minutes * 60
    common: dict[str, Any] = {"steps": settings.steps, "seconds": seconds, "seed": settings.seed}
    common["progress"] = progress
    network: nn.Module
    built: dict[str, Any]
    fresh = which != "detector" or detector.weights is not None
    start = None if fresh else base_detector(old, detector.form)
    if which == "detector":
        network, history = train_detector(material, recipe, detector, start=start, **common)
        built = {"form": detector.form, "types": list(network.types), "tile": detector.tile}
    else:
        types = types_in(material, recipe, boxed=False)
        network, history = train_segmenter(material, recipe, SegmenterSettings(), types=types, **common)
        built = {"form": "lite", "types": list(types)}
    facts = {
        "known": told,
        "steps": history.steps,
        "skipped_steps": history.skipped,
        "seed": settings.seed,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": f"{platform.machine()}, {_threads()} threads",
    }
    if start is not None:
        facts["after"] = old.card.provenance.get(which, {})
    return old.with_network(out, which, network, built, facts)


def _known_fabrics(
    known: Path | None, settings: BaseSettings, progress: Progress
) -> tuple[list[LabelledPicture], str]:
    """The pictures, and in words what they are."""
    if known is None:
        woven = weave_fabrics(settings.woven, settings.seed, progress)
        return woven, f"{settings.woven} fabrics that the loom wove"
    items = read_dataset(known, on_error=lambda error: progress.say(f"skipped: {error}"))
    pictures = load_known(items, progress)
    if not pictures:
        raise DatasetError("no known fabric", where=known, why="there is no usable picture")
    return pictures, f"{len(pictures)} pictures of {len({p.fabric for p in pictures})} fabrics"


def train_base_on(
    pictures: Sequence[LabelledPicture],
    *,
    out: Path,
    told: str,
    settings: BaseSettings,
    progress: Progress | None = None,
) -> Base:
    """As :func:`train_base`, from pictures in memory; ``told`` says in words what they are."""
    progress = progress or Progress()
    started = time.monotonic()
    encoder = TextureEncoder(settings.encoder)
    codes = fabric_codes(pictures, encoder, progress)
    try:
        patches = PatchMaker(pictures, codes, size=settings.patch, drawn=settings.drawn, seed=settings.seed)
    except ValueError as error:
        raise DatasetError("no known fabric", why=str(error)) from error
    left = settings.minutes * 60 - (time.monotonic() - started)
    names = [name for name in _SHARES if settings.diffusion or name != "diffusion"]
    total = sum(_SHARES[name] for name in names)
    seconds = {name: max(5.0, left * _SHARES[name] / total) for name in names}
    common: dict[str, Any] = {"steps": settings.steps, "seed": settings.seed, "progress": progress}

    progress.say("segmenter")
    good = [picture.image for picture in pictures if picture.mask is not None and not picture.mask.any()]
    recipe = settings.recipe if good else Recipe(arms=("none",), tile=settings.recipe.tile)
    material = Material(good, list(pictures))
    segmenter, learned = train_segmenter(
        material,
        recipe,
        SegmenterSettings(),
        types=types_in(material, recipe, boxed=False),
        seconds=seconds["segmenter"],
        **common,
    )
    steps = {"segmenter": learned.steps}
    progress.say("stage 1: defects from texture")
    stage1, history = train_texture_gan(patches, settings.stage1, seconds=seconds["stage1"], **common)
    steps["stage1"] = history.steps
    progress.say("stage 2: fusion into the cloth")
    stage2, history = train_fusion(
        patches, settings.stage2, stage1=Stage1(stage1), seconds=seconds["stage2"], **common
    )
    steps["stage2"] = history.steps
    networks: dict[str, Any] = {"segmenter": segmenter, "stage1": stage1, "stage2": stage2}
    built = {
        "segmenter": {"form": "lite", "types": list(segmenter.types)},
        "stage1": stage1.settings.model_dump(mode="json"),
        "stage2": settings.stage2.model_dump(mode="json"),
    }
    if settings.diffusion:
        progress.say("diffusion")
        painter, history = train_diffusion(patches, settings.painter, seconds=seconds["diffusion"], **common)
        networks["diffusion"], steps["diffusion"] = painter, history.steps
        built["diffusion"] = settings.painter.model_dump(mode="json")
    return Base.save(
        out,
        encoder=encoder.backbone,
        code_size=encoder.size,
        patch=settings.patch,
        networks=networks,
        settings=built,
        provenance={
            "known": told,
            "fabrics": len(codes),
            "encoder": encoder.source,
            "steps": steps,
            "seed": settings.seed,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "machine": f"{platform.machine()}, {_threads()} threads",
        },
    )


def fabric_codes(
    pictures: Sequence[LabelledPicture], encoder: TextureEncoder, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """The texture code of each fabric: the mean over its good pictures, or over all if none is good."""
    by_fabric: dict[str, list[LabelledPicture]] = {}
    for picture in pictures:
        by_fabric.setdefault(picture.fabric, []).append(picture)
    codes = {}
    for name, own in progress.track(by_fabric.items(), "texture codes", len(by_fabric)):
        good = [picture for picture in own if picture.mask is not None and not picture.mask.any()]
        chosen = (good or own)[:: max(1, len(good or own) // CODED)][:CODED]
        codes[name] = encoder.codes(picture.image for picture in chosen).mean(axis=0)
    return codes


def weave_fabrics(count: int, seed: int, progress: Progress) -> list[LabelledPicture]:
    """Known fabrics from the loom: of each two good pictures and two with woven defects."""
    pictures = []
    for number in progress.track(range(count), "weaving", count):
        rng = np.random.default_rng([seed, number, 11])
        spec = ClothSpec.random(rng)
        for copy in range(4):
            cloth = weave(spec, *_WOVEN_SIZE, rng, defects="random" if copy % 2 else ())
            fabric = f"loom/{number}"
            boxes = np.array([defect.box for defect in cloth.defects], np.float32).reshape(-1, 4)
            types = tuple(defect.type for defect in cloth.defects)
            pictures.append(
                LabelledPicture(cloth.image, cloth.mask, boxes, types, fabric, f"{fabric} {copy}")
            )
    return pictures


def _threads() -> int:
    import torch

    return torch.get_num_threads()
