"""``loomsight learn``: good pictures in, fabric profile out."""

from __future__ import annotations

import difflib
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomsight.anomaly import METHODS, methods_of
from loomsight.cli.edges import Along, check_margin
from loomsight.errors import UsageError

if TYPE_CHECKING:
    from loomsight.profile import Profile


class Network(StrEnum):
    """The segmenter's form."""

    LITE = "lite"
    PAPER = "paper"


class Beside(StrEnum):
    """A second network beside the segmenter."""

    DETECTOR = "detector"


class BadPictures(StrEnum):
    """What follows from a picture that cannot be read."""

    FAIL = "fail"
    SKIP = "skip"


def learn(
    good: Annotated[
        str, typer.Argument(help="Pictures of good cloth: a folder, a 'pattern*.png' or one picture.")
    ],
    *,
    name: Annotated[str, typer.Option(help="The fabric's name.")],
    known: Annotated[
        Path | None,
        typer.Option(
            help="Pictures of other fabrics, with defects or without, as 'loomsight data check' reads them. "
            "This fabric's own are left out. Without it the loom weaves known cloth.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="The folder that 'loomsight train base' made: training starts from it. The one that comes "
            "with the program, for its generators and its detector alone, if not given.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="How defects are made: paste, poisson, perlin, drawn; by a base's generators stage1, "
            "stage1+2, refined, diffusion; or several joined by +; none and augmix make none. drawn if not "
            "given.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for everything; 6 if not given.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps at most; the minutes count too.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the profile; NAME if not given. An earlier profile there is replaced.",
            show_default=False,
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            help="Promised at most: with a scale per 100 m, 2 if not given; else per megapixel, 1.",
            show_default=False,
        ),
    ] = None,
    mm_per_px: Annotated[
        float | None, typer.Option(help="The scale: millimetres of cloth per pixel.", show_default=False)
    ] = None,
    web_width: Annotated[
        float | None,
        typer.Option(
            help="Inspected width in mm, with --mm-per-px; the pictures' less the margins if not given.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            help="Learn nothing so near either selvedge, in mm, or in pixels without a scale; 'loomsight "
            "inspect' then reports nothing there."
        ),
    ] = 0.0,
    along: Annotated[
        Along, typer.Option(help="The pictures' axis that runs along the roll: y, their height, or x.")
    ] = Along.Y,
    network: Annotated[
        Network | None,
        typer.Option(
            help="lite if not given; paper is ResNet-50, ten times slower, for research.", show_default=False
        ),
    ] = None,
    resnet_weights: Annotated[
        Path | None,
        typer.Option(help="A file of ResNet-50 weights for --network paper.", show_default=False),
    ] = None,
    beside: Annotated[
        Beside | None,
        typer.Option(
            "--with",
            help="detector: learn RT-DETR too, which boxes defects and names their types; best from a base "
            "with a detector, see 'loomsight train detector'.",
            show_default=False,
        ),
    ] = None,
    anomaly: Annotated[
        str | None,
        typer.Option(
            help=f"What looks for defects that nobody has seen, joined by +: {', '.join(METHODS)}; or none. "
            "memory+prediction+bars if not given; prediction+bars is faster.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of everything random, 0 if not given; with --steps that end in time a result repeats.",
            show_default=False,
        ),
    ] = None,
    bad_pictures: Annotated[
        BadPictures | None,
        typer.Option(help="A picture that cannot be read: fail if not given, or skip.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Learn a fabric from pictures of good cloth, within minutes.

    Makes a profile, the folder that 'loomsight inspect' needs; its report.html shows what was learned and
    what to look at. Give five pictures or more, sharp, evenly lit, and at the scale of the line.

    Examples:
      loomsight learn good/ --name twill
      loomsight learn good/ --name twill --known fabrics/ --minutes 10
      loomsight learn good/ --name twill --with detector --base base --minutes 20
      loomsight learn 'roll7/*.png' --name denim --mm-per-px 0.1 --web-width 1600 --false-alarms 5
      loomsight learn good/ --name twill --mm-per-px 0.1 --margin 25
    """
    from loomsight.fabric.images import find_images
    from loomsight.learn.saving import check_name, check_target

    check_name(name)
    folder = out if out is not None else Path(name)
    check_target(folder, replace=True)
    for option, value in (
        ("--minutes", minutes),
        ("--steps", steps),
        ("--false-alarms", false_alarms),
        ("--mm-per-px", mm_per_px),
        ("--web-width", web_width),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"bad {option}", where=f"{value:g}", why="it must be a number above 0")
    check_margin(margin)
    if seed is not None and seed < 0:
        raise UsageError("bad --seed", where=str(seed), why="it must be 0 or more")
    if web_width is not None and mm_per_px is None:
        raise UsageError("--web-width says nothing without a scale", do="give --mm-per-px too")
    _check_weights(network, resnet_weights)
    if known is not None and not known.is_dir():
        raise UsageError(
            "bad --known", where=known, why="it is a file" if known.exists() else "there is no such folder"
        )
    arms = None if recipe is None else _arms(recipe)
    find_images(good)
    if base is not None:
        from loomsight.base import Base

        Base.open(base)

    from loomsight.learn import job
    from loomsight.progress import for_stream

    segmenter = _given(form=None if network is None else network.value, resnet_weights=resnet_weights)
    settings = job.LearnSettings.parse(
        _given(
            minutes=minutes,
            steps=steps,
            false_alarms=false_alarms,
            mm_per_px=mm_per_px,
            web_width_mm=web_width,
            margin=margin,
            along=along.value,
            seed=seed,
            on_bad_picture=None if bad_pictures is None else bad_pictures.value,
            recipe=None if arms is None else {"arms": arms},
            segmenter=segmenter or None,
            detector=None if beside is None else {},
            anomaly=None if anomaly is None else _methods(anomaly),
        ),
        where="learn",
    )
    with for_stream() as progress:
        profile = job.learn(
            good, name=name, out=folder, known=known, base=base, settings=settings, progress=progress
        )
    if json:
        from json import dumps

        typer.echo(dumps(_summary(profile), indent=2, ensure_ascii=False))
    else:
        _tell(profile)


def _methods(anomaly: str) -> tuple[str, ...]:
    return () if anomaly.lower() == "none" else methods_of(anomaly)


def _given(**values: Any) -> dict[str, Any]:
    """Only what was given: the defaults stand in the settings."""
    return {key: value for key, value in values.items() if value is not None}


def _check_weights(network: Network | None, weights: Path | None) -> None:
    if weights is None:
        return
    if network is not Network.PAPER:
        raise UsageError("--resnet-weights are for the paper's network", do="give --network paper too")
    if not weights.is_file():
        raise UsageError("bad --resnet-weights", where=weights, why="there is no such file")


def _arms(recipe: str) -> tuple[str, ...]:
    """The arms of a recipe as it is written: "paste+drawn"."""
    from loomsight.synthesis.recipe import ARM_NAMES, SOURCE_ONLY, arms_of

    names, arms = ARM_NAMES, arms_of(recipe)
    for arm in arms:
        if arm not in names:
            near = difflib.get_close_matches(arm, names, n=1, cutoff=0.0)[0]
            raise UsageError(
                "no such recipe",
                where=repr(arm),
                why=f"the nearest is {near}",
                do=f"use {', '.join(names)}; join several by +",
            )
    if len(arms) > 1 and set(arms) & set(SOURCE_ONLY):
        raise UsageError("no such recipe", where=recipe, why=f"{' and '.join(SOURCE_ONLY)} stand alone")
    return arms


def _summary(profile: Profile) -> dict[str, Any]:
    card, point = profile.card, profile.card.operating_point
    return {
        "profile": str(profile.folder),
        "name": card.name,
        "report": str(profile.folder / "report.html"),
        "recipe": card.recipe.get("arms"),
        **card.training,
        "threshold": point.threshold,
        "false_alarms": point.promised,
        "per": point.unit,
        "mm_per_px": card.mm_per_px,
        "margin": card.margin,
        "along": card.along,
    }


def _tell(profile: Profile) -> None:
    training, point = profile.card.training, profile.card.operating_point
    typer.echo(
        f"{profile.name}: learned from {training['pictures']} good pictures and {training['known']}, "
        f"{training['steps']} steps"
    )
    typer.echo(
        f"threshold {point.threshold:.4f}: at most {point.promised:g} false alarms per {point.unit} "
        "of good cloth"
    )
    typer.echo(f"report: {profile.folder / 'report.html'}")
    folder = str(profile.folder)
    folder = repr(folder) if " " in folder else folder
    typer.echo(f"for a fast line: loomsight export {folder} --good GOOD")
    typer.echo(f"next: loomsight inspect PICTURES --profile {folder}")
