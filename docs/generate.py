"""Write the reference pages from the program, or check that they are what the program says.

    python docs/generate.py            write docs/reference/*.md
    python docs/generate.py --check    leave with 1, and say which, when a page is stale

Commands come from their options and docstrings, settings from the ``Config`` classes of the whole
package, errors from the exception tree and the places that raise it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loomsight
from loomsight import cli
from loomsight.cli import app
from loomsight.config import Config
from loomsight.errors import LoomsightError

REFERENCE = Path(__file__).parent / "reference"
SOURCE = Path(loomsight.__file__).parent
NOTE = "<!-- Written by docs/generate.py; change the program, then run `make docs`. -->\n"


def commands_page() -> str:
    """Every command with its arguments, options and examples."""
    root = app.command()
    context = root.make_context("loomsight", [], resilient_parsing=True)
    lines = [NOTE, "# Commands\n", (root.help or "") + "\n", *_parameters(root, context)]
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        below = getattr(command, "commands", {})
        if below:
            lines += [f"## loomsight {name}\n", _prose(command.help)]
        for words, single in [(f"{name} {sub}", below[sub]) for sub in below] or [(name, command)]:
            lines += _one_command(words, single, deep=bool(below))
    return "\n".join(lines)


def _one_command(words: str, command: Any, *, deep: bool) -> Iterator[str]:
    context = command.make_context(f"loomsight {words}", [], resilient_parsing=True)
    yield f"{'###' if deep else '##'} loomsight {words}\n"
    yield _prose(command.help)
    arguments = [_argument(param) for param in command.params if param.param_type_name == "argument"]
    yield f"```\n{' '.join(['loomsight', words, *arguments, '[OPTIONS]'])}\n```\n"
    yield from _parameters(command, context)
    examples = (command.epilog or "").partition("Examples:\n")[2]
    if examples:
        yield f"Examples:\n\n```\n{inspect.cleandoc(examples)}\n```\n"


def _parameters(command: Any, context: Any) -> Iterator[str]:
    rows = []
    for param in command.params:
        if getattr(param, "hidden", False):
            continue
        if param.param_type_name == "argument":
            name = _argument(param)
        else:
            name = ", ".join([*param.opts, *param.secondary_opts])
            if not param.is_flag:
                name += f" {param.display_type(context)}"
        default = "" if param.required or not param.default else str(param.default)
        default = "required" if param.required else default
        rows.append(
            (f"`{name}`", param.help or "", f"`{default}`" if default not in ("", "required") else default)
        )
    if rows:
        yield _table(("name", "what it does", "default"), rows)


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()) + ("…" if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def configuration_page() -> str:
    """Every setting with its kind, default and meaning."""
    lines = [
        NOTE,
        "# Configuration\n",
        "Settings are checked before anything starts: an unknown key is answered with the nearest known\n"
        "one, a wrong value with what is allowed. A run's settings stand in its folder.\n",
    ]
    shown = [m for m in _subclasses(Config) if m.__module__.startswith("loomsight.") and m.__name__[0] != "_"]
    names = {model.__name__ for model in shown}
    for model in sorted(shown, key=lambda model: (model.__module__, model.__qualname__)):
        summary, meanings = _described(model)
        lines += [f"## {model.__name__}\n", f"`{model.__module__}`. {_prose(summary)}"]
        properties = model.model_json_schema(mode="serialization").get("properties", {})
        rows = []
        for name, field in model.model_fields.items():
            default = (
                "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
            )
            rows.append(
                (f"`{name}`", _kind(properties.get(name, {}), names), default, _prose(meanings[name]))
            )
        lines.append(_table(("setting", "kind", "default", "meaning"), rows))
    return "\n".join(lines)


def _described(model: type[Config]) -> tuple[str, dict[str, str]]:
    """The first paragraph of a class's docstring, and what it says about each field.

    A field is described by ``Field(description=…)``, in the docstring's ``Attributes:``, in a docstring
    below it, or in a comment at the end of its line.
    """
    text = inspect.getdoc(model) or ""
    meanings: dict[str, str] = {}
    source = inspect.getsource(model)
    body = ast.parse(textwrap.dedent(source)).body[0].body  # type: ignore[attr-defined]
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            meanings[ast.unparse(field.target)] = ast.literal_eval(below.value)
    for line in source.splitlines():
        found = re.match(r"    (\w+): .*?  # (?!noqa|type:)(.+)$", line)
        if found:
            meanings[found[1]] = found[2].strip()
    listed = text.partition("Attributes:\n")[2]
    for name, told in re.findall(r"^ {4}(\w+): ((?:.|\n {8})*)", listed, re.MULTILINE):
        clauses = re.split(r"; (\w+): ", " ".join(told.split()))
        meanings |= dict(zip([name, *clauses[1::2]], clauses[::2], strict=True))
    for name, info in model.model_fields.items():
        meanings[name] = info.description or meanings.get(name, "")
    return " ".join(text.partition("\n\n")[0].split()), meanings


def _kind(schema: dict[str, Any], known: set[str]) -> str:
    """What a value may be, in words, from its JSON schema; ``known`` models have a section of their own."""
    if "anyOf" in schema:
        return " or ".join(_kind(part, known) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})" if name in known else name
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    names |= {"null": "none", "array": "list", "object": "group of settings"}
    words = names.get(schema.get("type", ""), "any")
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([words, ", ".join(limits)]).strip()


def errors_page() -> str:
    """Every kind of failure with its exit code, and every message that has a fixed beginning."""
    lines = [
        NOTE,
        "# Errors\n",
        "A command that fails prints one line on standard error, `loomsight: what: where: why (do)`,\n"
        "and leaves nothing half-written. With `--json` it is an object on standard output; `error` has\n"
        "`type`, `message`, `what`, `where`, `why`, `do` and `exit_code`. `--debug` adds the traceback.\n",
        "## Exit codes\n",
    ]
    codes = [
        (0, "done"),
        (1, "done, and the cloth or the data failed what was asked of it"),
        (2, "an argument or a setting is wrong; nothing was started"),
        (3, "could not"),
        (cli.INTERRUPTED, "stopped by Ctrl-C"),
        (cli.READER_GONE, "the program that read the output has ended"),
        (cli.TERMINATED, "stopped by the system"),
    ]
    lines.append(_table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in codes]))
    messages = _messages()
    for error in (LoomsightError, *_subclasses(LoomsightError)):
        base = "" if error is LoomsightError else f", a `{error.__bases__[0].__name__}`"
        lines.append(f"## {error.__name__}\n")
        lines.append(f"{_prose(inspect.getdoc(error)).splitlines()[0]} Exit code {error.exit_code}{base}.\n")
        rows = sorted(messages.get(error.__name__, set()))
        if rows:
            lines.append(_table(("message begins", "because", "what to do"), rows))
    return "\n".join(lines)


def _messages() -> dict[str, set[tuple[str, str, str]]]:
    """For each error class, the (what, why, do) of the places that raise it; what varies is an ellipsis."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            what = _fixed(node.args[0])
            if not node.func.id.endswith("Error") or what == "…":
                continue
            said = {keyword.arg: _fixed(keyword.value) for keyword in node.keywords}
            found.setdefault(node.func.id, set()).add((what, said.get("why", ""), said.get("do", "")))
    return found


def _fixed(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_fixed(value) for value in node.values)
    if isinstance(node, ast.IfExp):
        return " / ".join((_fixed(node.body), _fixed(node.orelse)))
    return "…"


def _subclasses(base: type[Any]) -> list[type[Any]]:
    """All classes below ``base`` in the package, in the order of their definition."""
    for module in pkgutil.walk_packages([str(SOURCE)], "loomsight."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [known for child in base.__subclasses__() for known in (child, *_below(child))]


def _below(base: type[Any]) -> Iterator[type[Any]]:
    for child in base.__subclasses__():
        yield child
        yield from _below(child)


def _prose(text: str | None) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", text or "").strip() + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    lines = [
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in cells
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the pages, or with ``--check`` tell which are stale."""
    pages = {"commands": commands_page(), "configuration": configuration_page(), "errors": errors_page()}
    stale = 0
    for name, page in pages.items():
        path, text = REFERENCE / f"{name}.md", page.rstrip() + "\n"
        was = path.read_text(encoding="utf-8") if path.is_file() else ""
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif was != text:
            stale += 1
            print(f"docs/reference/{name}.md is stale; run `make docs`:")
            print(
                "\n".join(
                    difflib.unified_diff(was.splitlines(), text.splitlines(), "written", "now", "", "", 0)
                )
            )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
