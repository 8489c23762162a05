"""``loomsight weave``: what lies in the folders, and that it can be used and made again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from loomsight import cli
from loomsight.datasets import read_dataset
from loomsight.fabric.images import read_image
from loomsight.loom import ClothSpec


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["weave", *[str(word) for word in words]])
    out, error = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, error


def done(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, out, error = run(capsys, *words)
    assert code == 0, error
    return out


def test_cloth_and_the_yaml_that_weaves_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish = ["--defect", "hole", "--defect", "mispick", "--width", "256", "--height", "160", "--seed", "3"]
    done(capsys, "cloth", "--preset", "denim", *wish, "--out", tmp_path / "a")
    found = json.loads((tmp_path / "a/defects.json").read_text())
    assert sorted(defect["type"] for defect in found) == ["hole", "mispick"]
    mask = read_image(tmp_path / "a/mask.png")
    x0, y0, x1, y1 = found[0]["box"]
    assert mask[y0:y1, x0:x1].max() == 255
    assert ClothSpec.read(tmp_path / "a/cloth.yaml").structure == "twill 3/1"
    done(capsys, "cloth", "--cloth", tmp_path / "a/cloth.yaml", *wish, "--out", tmp_path / "b")
    assert (tmp_path / "a/cloth.png").read_bytes() == (tmp_path / "b/cloth.png").read_bytes()


def test_a_roll_says_where_each_frame_and_each_defect_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "roll"
    options = ["--metres", "0.06", "--width", "256", "--frame-height", "128", "--defects-per-m2", "4000"]
    made = json.loads(
        done(capsys, "roll", "--preset", "jersey", *options, "--running", "--json", "--out", str(out))
    )
    truth = json.loads((out / "truth.json").read_text())
    assert made == truth
    assert truth["mm_per_px"] == 0.1
    frames = sorted(path.name for path in (out / "frames").iterdir())
    with (out / "encoder.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["picture"] for row in rows] == frames
    assert [float(row["metres"]) for row in rows] == pytest.approx([k * 0.0128 for k in range(5)])
    masks = {name: read_image(out / "masks" / name) > 0 for name in frames}
    boxed = {name: np.zeros((128, 256), bool) for name in frames}
    for defect in truth["defects"]:
        assert 0 <= defect["severity"] <= 1
        for seen in defect["frames"]:
            x0, y0, x1, y1 = seen["box"]
            boxed[seen["picture"]][y0:y1, x0:x1] = True
    for name in frames:
        assert not (masks[name] & ~boxed[name]).any(), "every defective pixel is in a box"
    assert max(len(defect["frames"]) for defect in truth["defects"]) >= 3


def test_a_dataset_is_read_back_with_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "woven"
    options = ["--preset", "denim,jersey", "--fabrics", "2", "--good", "2", "--defective", "3"]
    done(capsys, "dataset", *options, "--width", "192", "--height", "128", "--out", str(out))
    items = read_dataset(out / "data")
    assert len(items) == 10
    assert len({item.fabric for item in items}) == 2
    card = json.loads((out / "card.json").read_text())
    pictures = [item.load() for item in items]
    assert sum(bool(p.mask is not None and p.mask.any()) for p in pictures) == 6
    assert sum(len(p.types) for p in pictures) == sum(card["defects"].values())
    text = (out / "README.md").read_text()
    assert "CC0" in text
    assert all(kind in text for kind in card["defects"])
    assert (out / "sheet.png").is_file()
    assert ClothSpec.read(out / "fabrics/002.yaml").structure == "jersey"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cloth", "--preset", "denm"], "the nearest is denim"),
        (["cloth", "--preset", "denim", "--defect", "ladder"], "cannot have it"),
        (["roll", "--metres", "-1"], "metres"),
        (["roll", "--periodic-mm", "1"], "periodic_mm"),
        (["dataset", "--layout", "tfrecord"], "no layout"),
    ],
)
def test_a_wrong_wish_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, error = run(capsys, *words, "--out", tmp_path / "x")
    assert code == 2
    assert out == ""
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, error = run(capsys, "cloth", "--out", tmp_path)
    assert code == 2
    assert "the folder exists" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
