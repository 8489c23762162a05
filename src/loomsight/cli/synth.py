"""``loomsight synth``: defects made in good cloth, as a data set."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from loomsight.errors import UsageError

LAYOUTS = ("mvtec", "coco", "yolo", "plain")


def synth(
    good: Annotated[
        str, typer.Argument(help="Pictures of good cloth: a folder, a 'pattern*.png' or one picture.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the samples; it must not exist or be empty.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The folder that 'loomsight train base' made; the one that comes with the program if not "
            "given.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Samples to make.")] = 200,
    arm: Annotated[
        str,
        typer.Option(
            help="How: stage1 (set hard), stage1+2 (fused), refined (drawn, then fused) or diffusion."
        ),
    ] = "stage1+2",
    layout: Annotated[str, typer.Option(help="mvtec, coco, yolo or plain.")] = "mvtec",
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Leave out samples that the quality gate rejects.")
    ] = True,
    size: Annotated[int, typer.Option(help="Pixels a side of a sample.")] = 160,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make pictures of good cloth with defects, and their masks.

    The data set also holds the good cloth that each was made in. Beside it lie sheet.png, a contact sheet
    of samples and rejected ones, and card.json, which says how they were made.

    Examples:
      loomsight synth good/ --out samples
      loomsight synth good/ --out samples --base base/ --n 500 --arm diffusion --layout coco
    """
    from loomsight.fabric.images import find_images
    from loomsight.files import check_new_folder
    from loomsight.synthesis.recipe import GENERATED

    if arm not in GENERATED:
        near = difflib.get_close_matches(arm, GENERATED, n=1, cutoff=0.0)[0]
        raise UsageError("bad --arm", where=repr(arm), why=f"the nearest is {near}")
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.0)[0]
        raise UsageError("bad --layout", where=repr(layout), why=f"the nearest is {near}")
    if n < 1 or n > 100_000:
        raise UsageError("bad --n", where=str(n), why="it must be 1 to 100000")
    if not 96 <= size <= 512:
        raise UsageError("bad --size", where=str(size), why="it must be 96 to 512 pixels")
    if seed < 0:
        raise UsageError("bad --seed", where=str(seed), why="it must be 0 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the folder exists", where=out, do="remove it, or choose another with --out")
    check_new_folder(out)
    find_images(good)

    from loomsight.learn.synth import SynthSettings, synthesise
    from loomsight.progress import for_stream

    settings = SynthSettings(count=n, arm=arm, layout=layout, gate=gate, size=size, seed=seed)
    with for_stream() as progress:
        card = synthesise(good, out=out, base=base, settings=settings, progress=progress)
    if json:
        from json import dumps

        typer.echo(dumps(card, indent=2, ensure_ascii=False))
        return
    rejected = sum(card["rejected"].values())
    typer.echo(f"{out}: {card['samples']} samples by {arm}, {rejected} rejected")
    typer.echo(f"look at: {out / 'sheet.png'}")
