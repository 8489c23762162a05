"""``loomsight teach``: what an inspector knows better, and good cloth of today."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomsight.errors import UsageError

if TYPE_CHECKING:
    from loomsight.profile import Profile


def teach(
    profile: Annotated[Path, typer.Argument(help="The fabric's profile, which is changed.")],
    *,
    good: Annotated[
        Path | None,
        typer.Option(
            help="More good cloth, a folder or a pattern: it is remembered, and a quarter of it sets the "
            "threshold and what is usual in light and focus anew.",
            show_default=False,
        ),
    ] = None,
    missed: Annotated[
        list[str] | None,
        typer.Option(help="PICTURE@x0,y0,x1,y1 in pixels: a defect that was missed.", show_default=False),
    ] = None,
    false_alarm: Annotated[
        list[str] | None,
        typer.Option(help="The same: good cloth that raised an alarm.", show_default=False),
    ] = None,
    forget: Annotated[
        list[int] | None,
        typer.Option(help="The number of a lesson to take back, as --list shows it.", show_default=False),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List what the profile was taught, and change nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was taught as JSON.")] = False,
) -> None:
    """Teach a profile: a missed defect, a false alarm, more good cloth. Nothing is trained; it takes seconds.

    Places are those of regions.csv, columns x0 to y1. Each option can be given several times, but --good.
    Of two lessons about one place the later holds. A lesson that is taken back was never given.

    Examples:
      loomsight teach twill --missed roll7/0012.png@410,96,455,120
      loomsight teach twill --false-alarm roll7/0040.png@0,0,36,256 --false-alarm roll7/0041.png@0,0,30,256
      loomsight teach twill --good roll8/head
      loomsight teach twill --forget 2
    """
    from loomsight.learn import renew
    from loomsight.learn.lessons import Lesson
    from loomsight.profile import Profile
    from loomsight.progress import for_stream

    lessons = [
        Lesson(*_place(text, option), defect=defect)
        for option, texts, defect in (("--missed", missed, True), ("--false-alarm", false_alarm, False))
        for text in texts or ()
    ]
    if (list_ or forget) and (good is not None or lessons or (list_ and forget)):
        alone = "--list" if list_ else "--forget"
        raise UsageError(f"{alone} teaches nothing", do=f"leave {alone} out, or all else")
    if list_:
        _list(Profile.open(profile), json=json)
        return
    if good is None and not lessons and not forget:
        raise UsageError("nothing to teach", do="give --missed, --false-alarm or --good")
    opened = Profile.open(profile)
    with for_stream() as progress:
        if forget:
            made = renew.forget(opened, forget, progress=progress)
        else:
            made = renew.teach(opened, good=good, lessons=lessons, progress=progress)
    told = made.card.training["renewed"]
    assert isinstance(told, list)  # noqa: S101 — it was written just now
    if json:
        from json import dumps

        facts = {
            "profile": str(made.folder), "taught": told[-1], "threshold": made.card.operating_point.threshold
        }  # fmt: skip
        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{profile}: {told[-1]}")


def _list(profile: Profile, *, json: bool) -> None:
    if json:
        from json import dumps

        facts = {"profile": str(profile.folder), "lessons": profile.lessons}
        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
        return
    for one in profile.lessons:
        place = one.get("place")
        where = (
            f"@{','.join(map(str, place))}" if isinstance(place, list) else f", {one['pictures']} pictures"
        )
        held = ", overruled since" if one.get("overruled") else ""
        typer.echo(f"{one['number']}  {one['when']}  {one['what']}: {one['picture']}{where}{held}")
    if not profile.lessons:
        typer.echo("nothing was taught")


def _place(text: str, option: str) -> tuple[Path, tuple[int, int, int, int]]:
    """PICTURE@x0,y0,x1,y1."""
    path, _, box = text.rpartition("@")
    try:
        x0, y0, x1, y1 = (int(value) for value in box.split(","))
    except ValueError as error:
        raise UsageError(
            f"bad {option}", where=text, why="it has no place", do="write PICTURE@x0,y0,x1,y1, in pixels"
        ) from error
    if not path or not Path(path).is_file():
        raise UsageError(f"bad {option}", where=path or text, why="there is no such picture")
    return Path(path), (x0, y0, x1, y1)
