"""The demonstration, made small: it counts honestly, and all that it names is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loomsight import cli
from loomsight.demo import DemoSettings, Outcome, demonstrate
from loomsight.errors import UsageError
from loomsight.evaluation.regions import count_regions
from loomsight.fabric.images import find_images, read_image, read_mask
from loomsight.fabric.regions import find_regions
from loomsight.profile import Profile

SMALL = DemoSettings(minutes=0.2, steps=4, known=2, good=2, metres=0.15)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demonstrate(out, SMALL)


def test_everything_it_names_is_there(demo: tuple[Path, Outcome]) -> None:
    out, outcome = demo
    for name in ("inspection/rollmap.png", "inspection/report.html", "inspection/regions.csv", "known"):
        assert (out / name).exists()
    assert "What it was taught to find" in (out / "profile/report.html").read_text()
    assert [path.name for path in find_images(out / "roll")] == ["001.png", "002.png"]
    assert Profile.open(out / "profile").scale == 0.15
    assert np.isclose(outcome.metres, 2 * 512 * 0.15 / 1000)
    assert json.loads((out / "demo.json").read_text())["hidden"] == outcome.hidden
    regions = json.loads((out / "inspection/regions.json").read_text())
    assert regions["source"] == "roll"
    assert not [path for path in out.parent.iterdir() if path != out]


def test_its_figures_are_those_of_the_profile_against_the_masks(demo: tuple[Path, Outcome]) -> None:
    out, outcome = demo
    profile = Profile.open(out / "profile")
    engine, point = profile.engine(), profile.card.operating_point
    frames = [engine.score(read_image(path)) for path in find_images(out / "roll")]
    masks = [read_mask(path) for path in find_images(out / "truth")]
    counts = count_regions(
        np.concatenate(frames),
        np.concatenate(masks),
        point.threshold,
        point.grouping,
    )
    assert counts.defects > 0
    assert outcome.false_alarms == counts.false_alarms
    listed = json.loads((out / "truth/defects.json").read_text())
    assert len({row["number"] for row in listed}) == outcome.hidden
    found = set()
    for row in listed:
        frame = int(row["picture"][:3]) - 1
        x0, y0, x1, y1 = row["box"]
        alarms = find_regions(frames[frame], point.threshold, point.grouping)
        for box in (region.box for region in alarms):
            if box[0] < x1 + 3 and x0 < box[2] + 3 and box[1] < y1 + 3 and y0 < box[3] + 3:
                found.add(row["number"])
    assert outcome.found <= len(found), "a region whose box does not come near cannot touch"


def test_another_folder_is_left_alone(
    tmp_path: Path, demo: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as left:
        cli.main(["demo", "--out", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"loomsight: the folder exists: {tmp_path}: it is no earlier")
    with pytest.raises(UsageError, match="a file of that name exists"):
        demonstrate(tmp_path / "notes.txt", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    mine = demo[0] / "mine.png"
    mine.write_bytes(b"the only copy")
    with pytest.raises(UsageError, match=r"not replaced: .*mine\.png"):
        demonstrate(demo[0], SMALL)
    mine.unlink()


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--minutes", "0"], ["--minutes", "nan"]])
def test_wrong_numbers_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["demo", "--out", str(tmp_path / "demo"), *words])
    assert left.value.code == 2
    assert f"bad {words[0]}" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_help_states_the_default_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    assert f"{DemoSettings().minutes:g} if not given" in capsys.readouterr().out
