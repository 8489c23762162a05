"""The table of commands, each imported when it is named."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import loomsight
from loomsight.errors import UsageError

COMMANDS = (
    "learn",
    "export",
    "inspect",
    "teach",
    "evaluate",
    "synth",
    "train",
    "data",
    "weave",
    "demo",
    "doctor",
)
"""Names in the order of the help; each is a module of this package."""


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"loomsight.cli.{name}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            why = f"the nearest is {near[0]}" if near else None
            raise UsageError("no such command", where=args[0], why=why, do="see 'loomsight --help'")
        return super().resolve_command(ctx, args)


def load(name: str) -> TyperCommand | TyperGroup:
    """Import the command ``name`` and build it."""
    module = importlib.import_module(f"loomsight.cli.{name}")
    found = getattr(module, "app", None)
    app = found if isinstance(found, typer.Typer) else typer.Typer()
    app.rich_markup_mode = None
    if app is not found:
        app.command(name)(getattr(module, name))
    for registered in app.registered_commands:
        if registered.callback is not None and registered.epilog is None:
            registered.help, registered.epilog = split_examples(registered.callback)
    group = typer.main.get_group(app)
    built = group if app is found else group.commands[name]
    built.name = name
    assert isinstance(built, TyperCommand | TyperGroup)  # noqa: S101
    return built


def split_examples(function: Callable[..., Any]) -> tuple[str, str | None]:
    """A command's docstring as (help, examples); the examples keep their lines."""
    text, _, examples = (inspect.getdoc(function) or "").partition("\nExamples:\n")
    return text.strip(), f"\b\nExamples:\n{examples.rstrip()}" if examples.strip() else None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"loomsight {loomsight.__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print a traceback when something fails; any command takes it.")
    ] = False,
) -> None:
    """Fabric inspection that learns a new fabric from a few metres of good cloth."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def command() -> TyperGroup:
    """The whole command line; the commands themselves are not imported yet."""
    # Plain help, not rich's boxes: it starts sooner, and it reads the same in every console and code page.
    app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None, invoke_without_command=True)
    app.callback(epilog="'loomsight COMMAND --help' tells the options of a command, with examples.")(root)
    built = typer.main.get_command(app)
    assert isinstance(built, TyperGroup)  # noqa: S101
    return built
