"""Settings: frozen, typed, with their defaults in one place; an unknown key names its nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from loomsight.errors import UsageError


class Config(BaseModel):
    """Base of every configuration: immutable, no unknown keys, defaults validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: Path | str = "settings") -> Self:
        """Make a configuration from plain values.

        Raises:
            UsageError: in one line, the first wrong key or value, and the nearest known key.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UsageError("bad setting", where=where, why=_first(cls, error)) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML (or JSON) file of settings; nothing in it is executed."""
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError("cannot read settings", where=path, why=str(error)) from error
        if not isinstance(values, dict):
            raise UsageError("cannot read settings", where=path, why="it is not a list of 'key: value' lines")
        return cls.parse(values, where=path)


def _first(model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, in a clause."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] != "extra_forbidden":
        reason = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
        return f"{key} {reason}, got {first['input']!r:.80}"
    *outer, last = first["loc"]
    near = difflib.get_close_matches(str(last), _fields(model, outer), n=1, cutoff=0.0)
    return f"{key} is not a setting; the nearest is {near[0]}" if near else f"{key} is not a setting"


def _fields(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The names of the settings in the group that ``path`` leads to."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type):
            return []
        if not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
