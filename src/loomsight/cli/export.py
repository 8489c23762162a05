"""``loomsight export``: a profile's networks as files for ONNX Runtime and OpenVINO."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loomsight.errors import UsageError


class Sampling(StrEnum):
    """How the detector reads its features."""

    BILINEAR = "bilinear"
    DISCRETE = "discrete"


def export(
    profile: Annotated[Path, typer.Argument(help="The fabric's profile, which gets the files.")],
    *,
    good: Annotated[
        str | None,
        typer.Option(
            help="Pictures of good cloth, a folder or a 'pattern*.png': a gate is learned from them, which "
            "lets surely good cloth pass at ten times the speed.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="For the gate.")] = 200.0,
    sampling: Annotated[
        Sampling,
        typer.Option(help="Of a detector: discrete reads the nearest cell and needs no GridSample."),
    ] = Sampling.BILINEAR,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Export a profile for a fast line: ONNX, and OpenVINO in float32, float16 and INT8.

    Nothing is written before it was run on tiles of the fabric and agrees with torch: float32 to 1e-4, of a
    detector stage by stage, the others by the regions they find. What does not is said and
    left out; what is written stays when the command is stopped. 'loomsight inspect' takes the fastest from
    then on. An integrator finds the files in PROFILE/engines.

    Examples:
      loomsight export twill
      loomsight export twill --good good/
      loomsight export twill --sampling discrete --json
    """
    from loomsight.fabric.images import find_images, read_images
    from loomsight.learn.cloth import spread
    from loomsight.learn.ship import export_profile
    from loomsight.profile import Profile
    from loomsight.progress import for_stream

    if not 0 < seconds < float("inf"):
        raise UsageError("bad --seconds", where=f"{seconds:g}", why="it must be a number above 0")
    paths = find_images(good) if good is not None else []
    opened = Profile.open(profile)
    with for_stream() as progress:
        pictures = [image for _, image in read_images(spread(paths, progress), on_error="fail")]
        made = export_profile(
            opened,
            good=pictures,
            gate_seconds=seconds,
            discrete=sampling is Sampling.DISCRETE,
            progress=progress,
        )
    if json:
        from json import dumps

        facts = {
            "profile": str(made.folder),
            "fastest": made.fastest,
            "gate": None if made.card.gate is None else made.card.gate.model_dump(),
            "engines": [one.model_dump() for one in made.card.engines],
        }
        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
        return
    for one in made.card.engines:
        megabytes = sum(made.card.files[name].size for name in (one.model, one.weights) if name) / 1e6
        figures = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in one.agreement.items())
        typer.echo(f"{profile / one.model}: {megabytes:.1f} MB, {figures}")
    gate = made.card.gate
    if gate is not None:
        typer.echo(f"gate: {gate.rate:.1%} of good cloth is looked at; set on {gate.defects} defects")
    typer.echo(f"next: loomsight inspect PICTURES --profile {profile}   (runs {made.fastest})")
