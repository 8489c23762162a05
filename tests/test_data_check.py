"""``loomsight data check``: each fault is found in a data set made to have it, and a sound one is clean."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from loomsight.cli import main
from loomsight.datasets.check import Findings, check_dataset
from loomsight.fabric.images import write_png


def cloth(seed: int, size: tuple[int, int] = (160, 160)) -> np.ndarray:
    """A plain weave with uneven yarns under the same uneven light; each seed is another piece of it."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(float)
    rows += cv2.GaussianBlur(rng.normal(0, 12, size), (0, 0), 6)
    columns += cv2.GaussianBlur(rng.normal(0, 12, size), (0, 0), 6)
    weave = 30 * np.sin(rows * 1.2) * np.sin(columns * 1.2) + rng.normal(0, 6, size)
    light = 40 * np.sin(np.linspace(0, 3, width)) - (np.arange(width) < 12) * 60  # and the same selvedge
    return (120 + weave + light).clip(0, 255).astype(np.uint8)


def make(root: Path, good: int = 6, defects: int = 3) -> Path:
    """A sound plain data set."""
    for seed in range(good):
        write_png(root / "good" / f"g{seed}.png", cloth(seed))
    for seed in range(defects):
        mask = np.zeros((160, 160), np.uint8)
        mask[40:50, 60 : 70 + seed] = 255
        write_png(
            root / "defect" / f"d{seed}.png", np.where(mask > 0, 20, cloth(100 + seed)).astype(np.uint8)
        )
        write_png(root / "mask" / f"d{seed}.png", mask)
    return root


def kinds(findings: Findings) -> list[tuple[str, str]]:
    return [(finding.kind, finding.path) for finding in findings.findings]


def test_a_sound_data_set_is_clean(tmp_path: Path) -> None:
    make(tmp_path / "twill")
    findings = check_dataset(tmp_path)
    assert findings.findings == ()
    assert (findings.pictures, findings.good, findings.defective, findings.masks) == (9, 6, 3, 3)
    assert findings.fabrics == {"twill": 9}


def test_every_fault_is_found_and_named(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "good" / "g0.png").write_text("hello")
    whole = (tmp_path / "good" / "g1.png").read_bytes()
    (tmp_path / "good" / "g1.png").write_bytes(whole[: len(whole) // 2])
    write_png(tmp_path / "mask" / "d0.png", np.zeros((160, 160), np.uint8))
    write_png(tmp_path / "mask" / "d1.png", np.full((80, 160), 255, np.uint8))
    (tmp_path / "mask" / "d2.png").write_bytes(b"")
    write_png(tmp_path / "defect" / "d3.png", cloth(50))
    write_png(tmp_path / "mask" / "left_over.png", np.full((160, 160), 255, np.uint8))
    assert kinds(check_dataset(tmp_path)) == [
        ("corrupt picture", "good/g0.png"),
        ("corrupt picture", "good/g1.png"),
        ("mask size", "mask/d1.png"),
        ("corrupt mask", "mask/d2.png"),
        ("empty mask", "mask/d0.png"),
        ("no label", "defect/d3.png"),
        ("not read", "mask/left_over.png"),
    ]


def test_boxes_outside_and_bad_annotations(tmp_path: Path) -> None:
    labels = {
        "a": "0 0.5 0.5 0.2 0.2\n",
        "b": "0 0.95 0.5 0.3 0.2\n",
        "c": "0 0.5 0.5 0 0.1\n",
        "d": "0 oops\n",
    }
    (tmp_path / "labels").mkdir()
    for seed, (name, label) in enumerate(labels.items()):
        write_png(tmp_path / "images" / f"{name}.png", cloth(seed))
        (tmp_path / "labels" / f"{name}.txt").write_text(label)
    found = kinds(check_dataset(tmp_path))
    assert ("bad annotation", "labels/d.txt:1") in found
    assert [path for kind, path in found if kind == "box outside"] == ["images/b.png", "images/c.png"]


def disguise(picture: np.ndarray, how: str) -> np.ndarray:
    if how == "mirrored":
        return picture[:, ::-1]
    if how == "turned":
        return np.rot90(picture)
    if how == "turned and mirrored":
        return np.rot90(picture, 3)[::-1]
    if how == "brighter and smaller":
        small = cv2.resize(picture, (120, 120), interpolation=cv2.INTER_AREA)
        return (small * 0.8 + 40).clip(0, 255).astype(np.uint8)
    return picture


@pytest.mark.parametrize(
    "how", ["copied", "mirrored", "turned", "turned and mirrored", "brighter and smaller", "jpeg"]
)
def test_a_copy_in_disguise_is_a_near_duplicate(tmp_path: Path, how: str) -> None:
    make(tmp_path, good=12)
    copy = np.ascontiguousarray(disguise(cloth(4), how))
    if how == "jpeg":
        Image.fromarray(copy).save(tmp_path / "good" / "z.jpg", quality=60)
    else:
        write_png(tmp_path / "good" / "z.png", copy)
    (finding,) = check_dataset(tmp_path).findings
    assert finding.kind == "near duplicate"
    assert {Path(finding.path).stem, Path(finding.other or "").stem} == {"z", "g4"}


def test_near_duplicates_and_sources_across_train_and_test(tmp_path: Path) -> None:
    for seed in range(5):
        write_png(tmp_path / "train" / "good" / f"{seed}.png", cloth(seed))
    write_png(tmp_path / "test" / "good" / "0.png", np.ascontiguousarray(cloth(2)[::-1]))
    write_png(tmp_path / "train" / "good" / "s1_png.rf.1.png", cloth(20))
    write_png(tmp_path / "test" / "good" / "s1_png.rf.2.png", cloth(21))
    findings = check_dataset(tmp_path).findings
    assert [finding.kind for finding in findings] == ["source on two sides", "near duplicate"]
    assert "test and train" in findings[1].why


def test_copies_that_say_their_source_are_no_finding(tmp_path: Path) -> None:
    for turn in range(4):
        write_png(tmp_path / f"s1_png.rf.{turn}.png", np.ascontiguousarray(np.rot90(cloth(1), turn)))
    assert check_dataset(tmp_path).clean


def test_blank_pictures_do_not_all_match(tmp_path: Path) -> None:
    for level in range(3):
        write_png(tmp_path / f"{level}.png", np.full((90, 90), 80 + level, np.uint8))
    assert check_dataset(tmp_path).clean


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["data", "check", *words])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_command_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "twill")
    code, out, _ = run(capsys, str(tmp_path))
    assert code == 0
    assert "pictures 9 (good 6, defective 3), fabrics 1" in out
    assert "nothing is wrong" in out
    (tmp_path / "twill" / "good" / "g0.png").write_text("hello")
    code, out, _ = run(capsys, str(tmp_path))
    assert code == 1
    assert "corrupt picture: twill/good/g0.png" in out
    code, _, err = run(capsys, str(tmp_path / "nowhere"))
    assert code == 2
    assert "no such folder" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, str(tmp_path / "empty"))
    assert code == 3
    assert len(err.strip().splitlines()) == 1


def test_command_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    write_png(tmp_path / "mask" / "d0.png", np.zeros((160, 160), np.uint8))
    code, out, _ = run(capsys, str(tmp_path), "--json")
    values = json.loads(out)
    assert code == 1
    assert values["pictures"] == 9
    assert values["clean"] is False
    assert values["findings"][0] | {"why": ""} == {
        "kind": "empty mask",
        "path": "mask/d0.png",
        "why": "",
        "other": None,
    }
