"""``loomsight demo``: the main job on woven cloth, from nothing to a roll map."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from loomsight.errors import UsageError


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for everything; an earlier demo there is replaced.")
    ] = Path("demo"),
    *,
    seed: Annotated[int, typer.Option(help="Of the cloth, its defects and the training.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Time for learning; 2.25 if not given.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show what loomsight does: learn a woven fabric, inspect a roll of it with hidden defects.

    The loom weaves known fabrics, a new one and a roll of it; the new one is learned and the roll inspected
    by the same code as with real cloth; then what was found is compared with what was hidden. It needs no
    pictures and no network, and ends within 5 minutes on two cores. Exit code 0, however many were found.

    Examples:
      loomsight demo
      loomsight demo --out /tmp/demo --seed 7
    """
    if seed < 0:
        raise UsageError("bad --seed", where=str(seed), why="it must be 0 or more")
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise UsageError("bad --minutes", where=f"{minutes:g}", why="it must be a number above 0")
    from loomsight.demo import DemoSettings, check_out, demonstrate
    from loomsight.progress import for_stream

    check_out(out)
    with for_stream() as progress:
        given = {} if minutes is None else {"minutes": minutes}
        outcome = demonstrate(out, DemoSettings.parse({"seed": seed, **given}), progress=progress)
    if json:
        from json import dumps

        typer.echo(dumps({"out": str(out), **outcome.summary()}, indent=2))
        return
    typer.echo(
        f"hidden defects {outcome.hidden}, found {outcome.found}, false alarms {outcome.false_alarms}, "
        f"in {outcome.metres:.2f} m of cloth never seen before"
    )
    typer.echo(
        f"promised: at most {outcome.promised:g} false alarms per 100 m of this narrow web; "
        f"{outcome.steps} training steps, {outcome.seconds / 60:.1f} minutes in all"
    )
    typer.echo(f"roll map:  {out / 'inspection' / 'rollmap.png'}")
    typer.echo(f"report:    {out / 'inspection' / 'report.html'}")
    typer.echo(f"learning:  {out / 'profile' / 'report.html'}")
    typer.echo(f"the truth: {out / 'truth'}")
