"""``loomsight train``: one network at a time, of known fabrics or of a profile."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from loomsight.anomaly import GANS, METHODS, methods_of, residuals_of
from loomsight.cli.edges import check_margin
from loomsight.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Encoder(StrEnum):
    """The network of the texture codes."""

    AUTO = "auto"
    VGG16 = "vgg16"
    LITE0 = "lite0"


@app.callback()
def train() -> None:
    """Train what serves every fabric, from known fabrics; or one part of a fabric's profile."""


@app.command()
def base(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the base. An earlier base there is replaced.")],
    known: Annotated[
        Path | None,
        typer.Option(
            help="Known fabrics with good/, defect/ and mask/, as 'loomsight data check' reads them. Without "
            "it the loom weaves them.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for everything; 60 if not given.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of each network at most; the minutes count too.", show_default=False),
    ] = None,
    diffusion: Annotated[
        bool, typer.Option("--diffusion", help="Train the diffusion generator too.")
    ] = False,
    encoder: Annotated[
        Encoder, typer.Option(help="Of the texture codes; auto: vgg16 where it is installed.")
    ] = Encoder.AUTO,
    woven: Annotated[
        int | None,
        typer.Option(
            help="Fabrics that the loom weaves without --known; 80 if not given.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random, 0 if not given.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Train the segmenter and the defect generators on known fabrics.

    Makes a base, the folder that 'loomsight learn --base' and 'loomsight synth --base' use. The more
    fabrics and labelled defects, and the longer, the better; hours are worth while.

    Examples:
      loomsight train base --known fabrics/ --out base --minutes 120
      loomsight train base --known fabrics/ --out base --diffusion
    """
    from loomsight.base import check_target

    _check(("--minutes", minutes), ("--steps", steps), ("--woven", woven), seed=seed)
    if known is not None and not known.is_dir():
        raise UsageError(
            "bad --known", where=known, why="it is a file" if known.exists() else "there is no such folder"
        )
    if known is not None and woven is not None:
        raise UsageError("--woven says nothing beside --known", do="give one of them")
    check_target(out)

    from loomsight.learn.base import BaseSettings, train_base
    from loomsight.progress import for_stream

    given = {"minutes": minutes, "steps": steps, "woven": woven, "seed": seed}
    settings = BaseSettings.parse(
        {key: value for key, value in given.items() if value is not None}
        | {"diffusion": diffusion, "encoder": encoder.value},
        where="train base",
    )
    with for_stream() as progress:
        made = train_base(known, out=out, settings=settings, progress=progress)
    if json:
        from json import dumps

        facts = {"base": str(made.folder), "arms": made.arms, **made.card.provenance}
        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
        return
    provenance = made.card.provenance
    typer.echo(f"{out}: trained on {provenance['known']} in {provenance['minutes']} minutes")
    typer.echo(f"it makes: {', '.join(made.arms)}")
    typer.echo(f"next: loomsight learn GOOD --name NAME --base {out}")


class Form(StrEnum):
    """The backbones of a detector."""

    LITE0 = "lite0"
    RESNET18 = "resnet18"
    RESNET50 = "resnet50"


_Base = Annotated[
    Path,
    typer.Option(help="The base that gets it; the program's own is copied there first if there is none."),
]
_Known = Annotated[
    Path | None,
    typer.Option(
        help="Known fabrics with masks or boxes; without it the loom weaves them.",
        show_default=False,
    ),
]
_Minutes = Annotated[
    float | None, typer.Option(help="Time for everything; 60 if not given.", show_default=False)
]
_Steps = Annotated[int | None, typer.Option(help="Training steps at most.", show_default=False)]
_Seed = Annotated[int | None, typer.Option(help="Of everything random, 0 if not given.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")]


@app.command()
def detector(
    *, out: _Base, known: _Known = None,
    form: Annotated[
        Form | None,
        typer.Option(help="Its backbone; if not given the base's, at first lite0.", show_default=False),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Of a ResNet form to begin with: model.safetensors as transformers writes it.",
            show_default=False,
        ),
    ] = None,
    minutes: _Minutes = None, steps: _Steps = None, seed: _Seed = None, json: _Json = False,
) -> None:  # fmt: skip
    """Train RT-DETR, which boxes defects and names their types.

    It goes on from the base's detector, at first the program's own, which knows woven cloth.
    'loomsight learn --with detector --base OUT' then starts from it.

    Examples:
      loomsight train detector --known fabrics/ --out base --minutes 120
      loomsight train detector --out base
      loomsight train detector --form resnet18 --weights rtdetr_r18vd/model.safetensors --out base
    """
    if weights is not None and form in (None, Form.LITE0):
        raise UsageError(
            "bad --weights",
            where=weights,
            why="they are of a ResNet form",
            do="give --form resnet18 or resnet50",
        )
    if weights is not None and not weights.is_file():
        raise UsageError("bad --weights", where=weights, why="there is no such file")
    asked = {"form": form.value if form is not None else None, "weights": weights}
    given: dict[str, object] = {key: value for key, value in asked.items() if value is not None}
    _network("detector", out, known, given, minutes=minutes, steps=steps, seed=seed, json=json)


@app.command()
def segmenter(
    *, out: _Base, known: _Known = None, minutes: _Minutes = None, steps: _Steps = None, seed: _Seed = None,
    json: _Json = False,
) -> None:  # fmt: skip
    """Train the segmenter alone, which outlines defects.

    'loomsight learn --base OUT' then starts from it.

    Examples:
      loomsight train segmenter --known fabrics/ --out base --minutes 30
    """
    _network("segmenter", out, known, minutes=minutes, steps=steps, seed=seed, json=json)


@app.command()
def anomaly(
    good: Annotated[Path, typer.Argument(help="Good cloth of the fabric: a folder or a pattern.")],
    *,
    profile: Annotated[Path, typer.Option(help="The fabric's profile, which gets it.")],
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}; several are joined by +.")
    ] = "memory+prediction+bars",
    minutes: Annotated[
        float | None, typer.Option(help="Of training; 5 if not given.", show_default=False)
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Learn nothing so near either selvedge, in mm, or in pixels without a scale; as the profile "
            "has it if not given.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Of what a memory takes while it learns, in MB, beyond the program; 512 if not given, 64 or "
            "more. A 128th of it is for what is remembered: a larger one remembers more of uneven "
            "cloth, and compares longer.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="What a GAN compares of a picture and of what it wove again: pixels, features (its own), "
            "frozen (those of a network that knows photographs), joined by +; pixels+features if not given.",
            show_default=False,
        ),
    ] = None,
    seed: _Seed = None,
    json: _Json = False,
) -> None:  # fmt: skip
    """Learn good cloth, for the defects that nobody labelled.

    What a profile has for that is replaced, and its threshold set anew on a quarter of this cloth; its
    network stays. Memory, prediction and bars find most (see docs/benchmarks.md); the student is the fastest
    network, the two GANs are there for comparison.

    Examples:
      loomsight train anomaly twill/good --profile twill
      loomsight train anomaly twill/good --profile twill --method memory+prediction+bars+student --minutes 10
      loomsight train anomaly twill/good --profile twill --margin 25
      loomsight train anomaly twill/good --profile twill --budget 2048
      loomsight train anomaly twill/good --profile twill --method fanogan --compare pixels+frozen
    """
    _check(("--minutes", minutes), ("--budget", budget), seed=seed)
    check_margin(margin)
    names = methods_of(method)
    residuals = None if compare is None else residuals_of(compare)
    for option, given, those in (("--budget", budget, ("memory",)), ("--compare", compare, GANS)):
        if given is not None and not set(names) & set(those):
            raise UsageError(
                f"{option} says nothing here",
                where=method,
                why=f"it is for {' and '.join(those)}",
                do="leave it out, or choose another --method",
            )

    from loomsight.anomaly.memory import LEAST_MB
    from loomsight.learn.renew import train_anomaly
    from loomsight.profile import Profile
    from loomsight.progress import for_stream

    if budget is not None and budget < LEAST_MB:
        raise UsageError(
            "bad --budget",
            where=f"{budget:g} MB",
            why="the network needs more to look at a piece of cloth",
            do=f"give {LEAST_MB:g} or more, or leave it out for 512",
        )
    opened = Profile.open(profile)
    with for_stream() as progress:
        made = train_anomaly(
            opened,
            good,
            names,
            minutes=minutes or 5.0,
            seed=seed or 0,
            margin=None if margin is None else replace(opened.margin, width=margin),
            budget_mb=budget,
            residuals=residuals,
            progress=progress,
        )
    point = made.card.operating_point
    if json:
        from json import dumps

        facts = {"profile": str(made.folder), "methods": names, "threshold": point.threshold}
        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
        return
    typer.echo(
        f"{profile}: {' and '.join(names)} learned; threshold {point.threshold:.4f}, at most "
        f"{point.promised:g} false alarms per {point.unit}"
    )


def _network(
    which: Literal["segmenter", "detector"],
    out: Path,
    known: Path | None,
    detector: dict[str, object] | None = None,
    *,
    minutes: float | None,
    steps: int | None,
    seed: int | None,
    json: bool,
) -> None:
    from loomsight.base import check_target

    _check(("--minutes", minutes), ("--steps", steps), seed=seed)
    if known is not None and not known.is_dir():
        raise UsageError(
            "bad --known", where=known, why="it is a file" if known.exists() else "there is no such folder"
        )
    check_target(out)

    from loomsight.learn.base import BaseSettings, train_network
    from loomsight.learn.detector import DetectorSettings
    from loomsight.progress import for_stream

    boxing = DetectorSettings.parse(detector or {}, where="train detector")
    given = {"minutes": minutes, "steps": steps, "seed": seed}
    settings = BaseSettings.parse({k: v for k, v in given.items() if v is not None}, where=f"train {which}")
    with for_stream() as progress:
        made = train_network(which, known, out=out, settings=settings, detector=boxing, progress=progress)
    facts = made.card.provenance[which]
    if json:
        from json import dumps

        typer.echo(dumps({"base": str(made.folder), which: facts}, indent=2, ensure_ascii=False))
        return
    assert isinstance(facts, dict)  # noqa: S101 — train_network wrote it
    typer.echo(
        f"{out}: {which} trained on {facts['known']} in {facts['minutes']} minutes, {facts['steps']} steps"
    )
    beside = " --with detector" if which == "detector" else ""
    typer.echo(f"next: loomsight learn GOOD --name NAME{beside} --base {out}")


def _check(*options: tuple[str, float | None], seed: int | None) -> None:
    for option, value in options:
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"bad {option}", where=f"{value:g}", why="it must be a number above 0")
    if seed is not None and seed < 0:
        raise UsageError("bad --seed", where=str(seed), why="it must be 0 or more")
