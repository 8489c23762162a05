import re
import subprocess
import sys
from pathlib import Path

import pytest

from loomsight.cli import app
from loomsight.synthesis.recipe import ARM_NAMES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_reference_is_what_the_program_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in names, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_printed_commands_and_options_exist(page: Path) -> None:
    root = app.command()
    context = root.make_context("loomsight", [], resilient_parsing=True)
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    printed = re.findall(r"^(?:\$ )?loomsight (.+)$", blocks, re.MULTILINE)
    for line in [*printed, *re.findall(r"`loomsight ([^`]+)`", text)]:
        words = line.split()
        named = words[0].isalpha() and words[0].islower()
        if named and words[0] in app.COMMANDS and words[0] not in root.list_commands(context):
            continue
        command = root.get_command(context, words[0]) if named else root
        assert command is not None, f"{page.name} prints: loomsight {' '.join(words)}"
        options = {"--debug", "--help"}
        for each in (command, *getattr(command, "commands", {}).values()):
            options |= {option for param in each.params for option in param.opts}
        for word in words:
            option = word.strip("[],.").partition("=")[0]
            assert not option.startswith("--") or option in options, f"{page.name} prints {option}: {line}"


def test_the_help_of_learn_names_every_way_of_making_defects() -> None:
    context = app.command().make_context("loomsight", [], resilient_parsing=True)
    learn = app.command().get_command(context, "learn")
    (recipe,) = (param for param in learn.params if param.name == "recipe")
    assert set(ARM_NAMES) <= set(re.findall(r"[a-z]+[0-9+]*", recipe.help))
