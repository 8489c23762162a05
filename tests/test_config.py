from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from loomsight.config import Config
from loomsight.errors import UsageError


class Optimiser(Config):
    rate: float = Field(default=1e-3, gt=0)
    decay: float = 0.0


class Settings(Config):
    steps: int = Field(default=400, ge=1)
    recipe: str = "mixture"
    optimiser: Optimiser = Optimiser()
    source: str | None = None


class Named(Config):
    name: str


def test_values_and_defaults() -> None:
    settings = Settings.parse({"steps": 800, "optimiser": {"rate": 0.01}})
    assert (settings.steps, settings.recipe, settings.optimiser.rate) == (800, "mixture", 0.01)


def test_settings_cannot_change_while_they_are_used() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"stesp": 3}, "bad setting: run.yaml: stesp is not a setting; the nearest is steps"),
        (
            {"optimiser": {"rat": 3}},
            "bad setting: run.yaml: optimiser.rat is not a setting; the nearest is rate",
        ),
        ({"steps": 0}, "bad setting: run.yaml: steps should be greater than or equal to 1, got 0"),
        ({"optimiser": 3}, "bad setting: run.yaml: optimiser should be a valid dictionary or instance"),
    ],
)
def test_a_wrong_setting_is_one_line_that_helps(values: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.parse(values, where="run.yaml")
    assert str(caught.value).startswith(line)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match="bad setting: settings: name is missing"):
        Named.parse({})


def test_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 7\noptimiser: {rate: 0.5}\n", encoding="utf-8")
    assert Settings.read(path) == Settings(steps=7, optimiser=Optimiser(rate=0.5))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"- 1\n- 2\n", "not a list of 'key: value' lines"),
        (b"steps: [1\n", "expected"),
        (b"\xff\xfe\x00", "cannot read settings"),
        (b"steps: !!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
    ],
)
def test_a_damaged_file_of_settings_is_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Settings.read(path)
    assert why in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_settings_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read settings: .*none\.yaml"):
        Settings.read(tmp_path / "none.yaml")
