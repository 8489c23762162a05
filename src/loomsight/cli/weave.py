"""``loomsight weave``: cloth, rolls and data sets from the loom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loomsight.loom import ClothSpec

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Preset = Annotated[
    str,
    typer.Option(help="A quality, such as denim, jersey or gauze; or random, woven or knitted."),
]
ClothFile = Annotated[
    Path | None, typer.Option("--cloth", help="A YAML file of the parameters of a cloth.", show_default=False)
]
Out = Annotated[Path, typer.Option(help="Folder to make; it must not exist.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")]


@app.callback()
def weave() -> None:
    """Weave cloth with exactly labelled defects: a picture, a roll or a data set."""


@app.command()
def cloth(
    *,
    out: Out,
    preset: Preset = "sheeting",
    cloth_file: ClothFile = None,
    defect: Annotated[
        list[str] | None, typer.Option(help="A type of defect to weave in; may be given again.")
    ] = None,
    defects: Annotated[int, typer.Option(min=0, max=100, help="Number of defects of any type.")] = 0,
    width: Annotated[int, typer.Option(min=64, max=16384, help="Pixels.")] = 1024,
    height: Annotated[int, typer.Option(min=64, max=16384, help="Pixels.")] = 512,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Weave one picture: cloth.png, mask.png, defects.json, and cloth.yaml to change and weave again.

    Examples:
      loomsight weave cloth --preset denim --out denim
      loomsight weave cloth --preset jersey --defect ladder --defect "needle line" --out bad
      loomsight weave cloth --cloth denim/cloth.yaml --defects 3 --seed 7 --out again
    """
    _free(out)
    spec = _spec(preset, cloth_file, seed)
    from loomsight.weaving import check_kinds, weave_cloth

    kinds = check_kinds(defect or [], spec)
    woven = weave_cloth(spec, out, height=height, width=width, kinds=kinds, count=defects, seed=seed)
    found = [{"type": d.type, "box": d.box, "length_mm": round(d.length_mm, 1)} for d in woven.defects]
    _tell(
        out, {"structure": spec.structure, "defects": found}, json, f"{spec.structure}, {len(found)} defects"
    )


@app.command()
def roll(
    *,
    out: Out,
    preset: Preset = "sheeting",
    cloth_file: ClothFile = None,
    metres: Annotated[float, typer.Option(help="Length of the roll.")] = 1.0,
    width: Annotated[int, typer.Option(help="Pixels across.")] = 1024,
    frame_height: Annotated[int, typer.Option(help="Lines of a frame.")] = 512,
    defects_per_m2: Annotated[float, typer.Option(help="Expected number.")] = 30.0,
    periodic_mm: Annotated[
        float | None,
        typer.Option(help="A damaged roller of this circumference marks each turn.", show_default=False),
    ] = None,
    running: Annotated[
        bool, typer.Option("--running", help="A fault of one end or wale runs for metres.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Weave a roll as a line-scan camera delivers it: frames, masks, encoder.csv and truth.json.

    Examples:
      loomsight weave roll --preset denim --metres 5 --out roll
      loomsight weave roll --preset jersey --metres 3 --running --periodic-mm 420 --out roll
    """
    _free(out)
    spec = _spec(preset, cloth_file, seed)
    from loomsight.progress import for_stream
    from loomsight.weaving import RollSettings, write_roll

    settings = RollSettings.parse(
        {
            "metres": metres,
            "width": width,
            "frame_height": frame_height,
            "defects_per_m2": defects_per_m2,
            "periodic_mm": periodic_mm,
            "running": running,
        },
        where="options",
    )
    with for_stream() as progress:
        truth = write_roll(spec, out, settings, seed=seed, progress=progress)
    _tell(out, truth, json, f"{metres:g} m of {spec.structure}, {len(truth['defects'])} defects")


@app.command()
def dataset(
    *,
    out: Out,
    preset: Preset = "random",
    fabrics: Annotated[int, typer.Option(help="Number of fabrics.")] = 20,
    good: Annotated[int, typer.Option(help="Good pictures of each.")] = 10,
    defective: Annotated[int, typer.Option(help="Defective pictures of each.")] = 10,
    width: Annotated[int, typer.Option(help="Pixels.")] = 512,
    height: Annotated[int, typer.Option(help="Pixels.")] = 320,
    layout: Annotated[str, typer.Option(help="plain, mvtec, aitex, coco, yolo or voc.")] = "plain",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Weave a labelled data set with its card, a contact sheet and the YAML of each fabric.

    Examples:
      loomsight weave dataset --fabrics 40 --out woven
      loomsight weave dataset --preset denim,jersey --fabrics 2 --layout coco --out woven
    """
    _free(out)
    from loomsight.progress import for_stream
    from loomsight.weaving import DatasetSettings, weave_dataset

    settings = DatasetSettings.parse(
        {
            "fabrics": fabrics,
            "good": good,
            "defective": defective,
            "width": width,
            "height": height,
            "preset": preset,
            "layout": layout,
        },
        where="options",
    )
    with for_stream() as progress:
        card = weave_dataset(out, settings, seed=seed, progress=progress)
    _tell(
        out,
        card,
        json,
        f"{card['pictures']} pictures of {fabrics} fabrics, {sum(card['defects'].values())} defects",
    )


def _free(out: Path) -> None:
    from loomsight.errors import UsageError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the folder exists", where=out, do="remove it, or choose another with --out")


def _spec(preset: str, path: Path | None, seed: int) -> ClothSpec:
    import numpy as np

    from loomsight.loom import ClothSpec
    from loomsight.loom import preset as by_name

    return ClothSpec.read(path) if path else by_name(preset, np.random.default_rng(seed))


def _tell(out: Path, made: dict[str, object], json: bool, line: str) -> None:
    if json:
        from json import dumps

        typer.echo(dumps(made, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{out}: {line}")
