"""``loomsight data``: look at a data set before learning from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Look at a data set: what it holds and what is wrong with it."""


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="The folder of a fabric, or of many, in any known layout.")],
    layout: Annotated[
        str, typer.Option(help="auto, plain, mvtec, aitex, coco, yolo or voc; auto takes any, mixed.")
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Report corrupt files, masks that do not fit, empty masks and near duplicates.

    Exit code 0: nothing is wrong. 1: something is, and each is a line. 2: no such folder. 3: no data set.

    Examples:
      loomsight data check pictures/
      loomsight data check pictures/ --json > findings.json
    """
    from loomsight.datasets.check import check_dataset
    from loomsight.progress import for_stream

    progress = for_stream()
    try:
        findings = check_dataset(root, layout, progress=progress)
    finally:
        progress.close()
    if json:
        from json import dumps

        typer.echo(dumps(findings.to_json(), indent=2, ensure_ascii=False))
    else:
        typer.echo(
            f"pictures {findings.pictures} (good {findings.good}, defective {findings.defective}), "
            f"fabrics {len(findings.fabrics)}, masks {findings.masks}, boxes {findings.boxes}"
        )
        for finding in findings.findings:
            other = f" ({finding.other})" if finding.other else ""
            typer.echo(f"{finding.kind}: {finding.path}: {finding.why}{other}")
        typer.echo(f"findings: {len(findings.findings)}" if findings.findings else "nothing is wrong")
    if not findings.clean:
        raise typer.Exit(1)
