"""``loomsight inspect``: find the defects in pictures of a roll, and where they are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loomsight.cli.edges import Along, check_margin
from loomsight.errors import UsageError


class Runtime(StrEnum):
    """What runs the networks, see :data:`loomsight.profile.Runtime`."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    OPENVINO_FP16 = "openvino-fp16"
    OPENVINO_INT8 = "openvino-int8"


def inspect(
    source: Annotated[
        str, typer.Argument(help="A folder of pictures, a 'pattern*.png', a picture or a video.")
    ],
    *,
    profile: Annotated[Path, typer.Option(help="The fabric's profile: the folder that learn made.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; NAME-inspection, with the fabric's name, if not given.",
            show_default=False,
        ),
    ] = None,
    maps: Annotated[
        bool, typer.Option("--maps", help="Write each score map too: maps/NAME.png, 16 bits, score × 65535.")
    ] = False,
    along: Annotated[
        Along | None,
        typer.Option(
            help="The pictures' axis that runs along the roll: y, their height, or x; as learned if not "
            "given.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Report nothing so near either selvedge, in mm, or in pixels without a scale; as learned if "
            "not given.",
            show_default=False,
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            help="Promise so many false alarms, in the profile's unit, in place of the profile's own.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Runtime,
        typer.Option(help="What runs the networks; auto: the fastest that the profile was exported for."),
    ] = Runtime.AUTO,
    no_gate: Annotated[
        bool,
        typer.Option("--no-gate", help="The networks look at all of the cloth, also where a gate is sure."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a picture that cannot be read, instead of skipping it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Inspect cloth: find its defects, their places, and draw the roll map.

    Writes regions.json, regions.csv, rollmap.png and report.html. Pictures follow one another along the
    roll in the order of their names; a video's frames likewise. An earlier inspection in the same folder is
    replaced; any other folder with something in it is left alone. Exit code 0: inspected, whatever was found.

    Examples:
      loomsight inspect roll7/ --profile twill
      loomsight inspect 'roll7/cam1_*.png' --profile twill --out roll7-report --maps
      loomsight inspect strip.png --profile twill --along x --json
      loomsight inspect roll7/ --profile twill --false-alarms 5 --margin 25
      loomsight inspect roll7/ --profile twill --engine openvino --no-gate
    """
    from loomsight.inspection import line
    from loomsight.inspection.sources import open_source
    from loomsight.profile import Profile
    from loomsight.progress import for_stream

    frames = open_source(source)
    if false_alarms is not None and not 0 < false_alarms < float("inf"):
        raise UsageError("bad --false-alarms", where=f"{false_alarms:g}", why="it must be a number above 0")
    check_margin(margin)
    opened = Profile.open(profile)
    if false_alarms is not None:
        opened = opened.promising(false_alarms)
    folder = out or Path(f"{opened.name}-inspection")
    line.check_out(folder, frames, opened)
    progress = for_stream()
    try:
        result = line.inspect(
            frames,
            opened,
            folder,
            runtime=None if engine is Runtime.AUTO else engine.value,  # type: ignore[arg-type]  # the same names
            gate=not no_gate,
            maps=maps,
            along=None if along is None else along.value,
            margin=margin,
            strict=strict,
            progress=progress,
        )
    finally:
        progress.close()
    if json:
        from json import dumps

        typer.echo(dumps(result.summary(), indent=2, ensure_ascii=False))
        return
    for text in (*result.warnings, *result.notes):
        typer.echo(f"note: {text}", err=True)
    rate = f", {result.per_100_m:,.1f} per 100 m" if result.per_100_m is not None else ""
    one = f" ({result.defects:,} defects)" if result.defects != result.regions else ""
    typer.echo(
        f"{result.regions:,} regions{one} in {result.defective:,} of {result.ledger.inspected:,} pictures, "
        f"{result.extent}{rate}"
    )
    typer.echo(f"{result.engine}: {result.speed}")
    typer.echo(f"report: {folder / 'report.html'}")
