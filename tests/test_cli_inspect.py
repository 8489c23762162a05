import errno
import json
import os
import resource
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from loomsight import cli
from loomsight.detection import deeplab
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.images import read_image, write_png
from loomsight.learn.saving import save_profile


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, shown.out, shown.err


def line(err: str) -> str:
    """The one line that a failure is told in."""
    (text,) = [each for each in err.splitlines() if each.startswith("loomsight: ")]
    assert "Traceback" not in err
    return text


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile whose network has learned nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("profiles") / "twill"
    network = deeplab.build("lite", pretrained=False)
    weights = network.state_dict()
    weights["head.weight"] *= 100  # so that its scores are spread out
    save_profile(
        folder,
        name="twill",
        form="lite",
        weights=weights,
        operating_point=OperatingPoint(0.05, 2.0, "megapixel", 3.0, 6.0, 5, False, 1, 0),
        mm_per_px=0.2,
    )
    return folder


@pytest.fixture
def roll(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(2):
        write_png(tmp_path / "roll" / f"{number}.png", rng.integers(0, 256, (64, 96), np.uint8))
    return tmp_path / "roll"


def huge_png(path: Path) -> Path:
    """A small file whose header promises 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@contextmanager
def full_disk(folder: Path) -> Iterator[str]:
    """A disk of 64 kB where root may mount one; elsewhere a limit on what a file may hold."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield "disk is full"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield os.strerror(errno.EFBIG).lower()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_inspect_writes_its_results_beside_the_profile_by_its_name(
    roll: Path, profile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(roll.parent)
    code, out, _ = run(capsys, "inspect", "roll", "--profile", profile, "--maps")
    assert code == 0
    assert out.splitlines()[-1] == f"report: {Path('twill-inspection/report.html')}"
    results = roll.parent / "twill-inspection"
    assert sorted(path.name for path in results.iterdir()) == [
        "maps", "regions.csv", "regions.json", "report.html", "rollmap.png",
    ]  # fmt: skip
    for number in range(2):
        assert cv2.imread(str(results / f"maps/{number}.png"), cv2.IMREAD_UNCHANGED).shape == (64, 96)
    code, out, err = run(capsys, "inspect", "roll", "--profile", profile, "--along", "x", "--json")
    values = json.loads(out)
    assert code == 0, err
    assert values["ledger"] == {"received": 2, "inspected": 2, "skipped": 0, "failed": 0}
    assert values["length_px"] == 192
    assert values["region_count"] == len(json.loads((results / "regions.json").read_text())["regions"])


@pytest.mark.parametrize(
    ("case", "code", "says"),
    [
        ("missing folder", 2, "no such file"),
        ("empty folder", 3, "no pictures"),
        ("text named .png", 3, "it is no"),
        ("60,000 × 60,000 header", 3, "too large"),
        ("flipped bit", 3, "damaged"),
        ("missing profile", 3, "no such profile"),
        ("folder in use", 2, "no earlier inspection"),
        ("out is a file", 2, "a file of that name"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    *, case: str, code: int, says: str, roll: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = roll.parent
    source, given, out = roll, profile, place / "out"
    weights = profile / "weights.safetensors"
    whole = weights.read_bytes()
    if case == "missing folder":
        source = place / "nowhere"
    elif case == "empty folder":
        source = place / "empty"
        source.mkdir()
    elif case == "text named .png":
        source = place / "text.png"
        source.write_text("hello")
    elif case.startswith("60"):
        source = huge_png(place / "huge" / "a.png").parent
    elif case == "flipped bit":
        weights.write_bytes(whole[:99] + bytes([whole[99] ^ 4]) + whole[100:])
    elif case == "missing profile":
        given = place / "nowhere"
    elif case == "folder in use":
        (out / "own").mkdir(parents=True)
    elif case == "out is a file":
        out.write_text("x")
    before = sorted(place.rglob("*"))
    try:
        left, _, err = run(capsys, "inspect", source, "--profile", given, "--out", out)
    finally:
        weights.write_bytes(whole)
    assert left == code
    assert says in line(err)
    assert sorted(place.rglob("*")) == before


def test_a_bad_picture_among_good_ones_is_skipped_or_fatal(
    roll: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (roll / "1a.png").write_text("hello")
    huge_png(roll / "1b.png")
    words = ("inspect", roll, "--profile", profile, "--out", roll.parent / "out")
    code, _, err = run(capsys, *words, "--strict")
    assert code == 3
    assert "1a.png" in line(err)
    assert not (roll.parent / "out").exists()
    code, out, err = run(capsys, *words, "--json")
    assert code == 0
    assert json.loads(out)["ledger"] == {"received": 4, "inspected": 2, "skipped": 2, "failed": 0}
    assert [text for text in err.splitlines() if text.startswith("skipped: ")]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    roll: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = roll.parent / "disk"
    with full_disk(disk) as says:
        code, _, err = run(capsys, "inspect", roll, "--profile", profile, "--out", disk / "out", "--maps")
        assert code == 3
        assert says in line(err)
        assert list(disk.iterdir()) == []


def labelled(root: Path) -> Path:
    """Two good pictures, and two with a defect of 6 × 8 pixels."""
    rng = np.random.default_rng(1)
    for number in range(4):
        image = rng.integers(60, 90, (64, 96), np.uint8)
        kind = "defect" if number >= 2 else "good"
        if kind == "defect":
            image[20:26, 30:38] = 255
            mask = np.zeros((64, 96), np.uint8)
            mask[20:26, 30:38] = 255
            write_png(root / "mask" / f"{number}.png", mask)
        write_png(root / kind / f"{number}.png", image)
    return root


def write_maps(root: Path, folder: Path, scores: Any) -> None:
    for path in sorted([*root.glob("good/*"), *root.glob("defect/*")]):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write_png(folder / path.name, scores(image).astype(np.uint16))


def test_evaluate_gives_full_marks_to_perfect_maps_and_none_to_inverted_ones(
    tmp_path: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = labelled(tmp_path / "set")
    write_maps(root, tmp_path / "perfect", lambda image: np.where(image == 255, 65535, 0))
    write_maps(root, tmp_path / "inverted", lambda image: np.where(image == 255, 0, 60000))
    words = ("evaluate", "--masks", root / "mask", "--profile", profile, "--json", "--maps")
    code, out, err = run(capsys, *words, tmp_path / "perfect")
    assert code == 0, err
    best = json.loads(out)
    assert (best["pictures"], best["defective"]) == (4, 2)
    full = ("ap_picture", "ap", "f1", "auroc", "aupro", "recall")
    assert [best[key] for key in full] == [pytest.approx(1)] * len(full)
    assert best["false_alarms_per_mpx"] == 0
    worst = json.loads(run(capsys, *words, tmp_path / "inverted")[1])
    assert worst["ap_picture"] < 0.02
    assert worst["aupro"] == pytest.approx(0, abs=1e-6)
    assert worst["false_alarms_per_mpx"] > 50


def test_maps_of_inspect_give_the_figures_of_the_network_itself(
    tmp_path: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = labelled(tmp_path / "set")
    _, direct, _ = run(capsys, "evaluate", root, "--profile", profile, "--json")
    pictures = tmp_path / "all"
    for path in [*root.glob("good/*"), *root.glob("defect/*")]:
        pictures.mkdir(exist_ok=True)
        (pictures / path.name).write_bytes(path.read_bytes())
    run(capsys, "inspect", pictures, "--profile", profile, "--out", tmp_path / "out", "--maps")
    code, mapped, err = run(
        capsys, "evaluate", "--maps", tmp_path / "out/maps", "--masks", root / "mask", "--json",
        "--profile", profile,
    )  # fmt: skip
    assert code == 0, err
    one, other = json.loads(direct), json.loads(mapped)
    assert one.keys() - other.keys() == {
        "box_ap", "box_ap50", "box_ap_small", "box_ap50_typed", "types_right",
        "recall_at_1", "recall_at_4", "recall_at_10",
    }  # fmt: skip
    for key, value in other.items():
        assert one[key] == pytest.approx(value, rel=0.02, abs=2e-3), key


def test_evaluate_prints_a_line_for_each_figure(
    tmp_path: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = labelled(tmp_path / "set")
    write_maps(root, tmp_path / "maps", lambda image: np.where(image == 255, 65535, 0))
    code, out, _ = run(capsys, "evaluate", "--maps", tmp_path / "maps", "--masks", root / "mask")
    assert code == 0
    assert "AUPRO up to 30 % false pixels    1.0000" in out
    assert "defects found                    –" in out  # no threshold was given
    assert "boxes" not in out, "maps have none"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "give a data set"),
        (("SET",), 2, "needs a profile"),
        (("--maps", "MAPS", "--masks", "SET/mask", "--confusion", "types.png"), 2, "tell no types"),
        (("SET", "--profile", "PROFILE", "--confusion", "types.jpg"), 2, "the picture is a PNG"),
        (("SET", "--profile", "PROFILE", "--confusion", "NOWHERE/types.png"), 2, "there is no folder"),
        (("SET", "--maps", "MAPS"), 2, "nothing to evaluate"),
        (("--maps", "MAPS"), 2, "give --masks"),
        (("--maps", "NOWHERE", "--masks", "SET/mask"), 2, "no such folder"),
        (("NOWHERE", "--profile", "PROFILE"), 2, "no such folder"),
        (("SET/good", "--profile", "NOWHERE"), 3, "no such profile"),
        (("--maps", "SET/good", "--masks", "SET/mask"), 2, "has a mask, but no map"),
        (("--maps", "EIGHT", "--masks", "SET/mask"), 3, "no grey PNG of 16 bits"),
        (("--maps", "TEXT", "--masks", "SET/mask"), 3, "damaged, too large, or no PNG"),
        (("--maps", "HUGE", "--masks", "SET/mask"), 3, "damaged, too large, or no PNG"),
        (("--maps", "SMALL", "--masks", "SET/mask"), 3, "does not fit"),
    ],
)
def test_evaluate_says_what_is_wrong(
    *,
    words: tuple[str, ...],
    code: int,
    says: str,
    tmp_path: Path,
    profile: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = labelled(tmp_path / "set")
    for name in "23":
        write_png(tmp_path / "EIGHT" / f"{name}.png", np.zeros((64, 96), np.uint8))
        write_png(tmp_path / "SMALL" / f"{name}.png", np.zeros((32, 96), np.uint16))
        (tmp_path / "TEXT").mkdir(exist_ok=True)
        (tmp_path / "TEXT" / f"{name}.png").write_text("hello")
        huge_png(tmp_path / "HUGE" / f"{name}.png")
    places = {"SET": root, "PROFILE": profile}
    given = []
    for word in words:
        first, *rest = word.split("/")
        given.append(word if word.startswith("--") else places.get(first, tmp_path / first).joinpath(*rest))
    left, _, err = run(capfd, "evaluate", *given)
    assert left == code
    assert says in line(err)


def test_evaluate_scores_boxes_where_there_are_no_masks(
    tmp_path: Path, profile: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = np.full((64, 96), 90, np.uint8)
    image[20:26, 30:38] = 255
    for name, label in {"a": "0 0.35 0.36 0.1 0.1\n", "b": ""}.items():
        write_png(tmp_path / "images" / f"{name}.png", image if label else np.full((64, 96), 90, np.uint8))
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text(label)
    (tmp_path / "data.yaml").write_text("names: [hole]\n")
    picture = tmp_path / "types.png"
    words = ("evaluate", tmp_path, "--profile", profile, "--confusion", picture, "--json")
    code, out, err = run(capfd, *words)
    assert code == 0, err
    assert "1 pictures have boxes alone" in err
    figures = json.loads(out)
    assert (figures["pictures"], figures["defective"]) == (2, 1)
    assert figures["recall"] in {0, 1}
    assert 0 <= figures["box_ap"] <= figures["box_ap50"] <= 1
    assert figures["aupro"] is None
    assert read_image(picture).shape[2] == 3
    code, out, _ = run(capfd, *words)
    assert code == 2
    assert "it is there already" in out


def test_evaluate_says_that_nothing_is_labelled(
    tmp_path: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "defect" / "a.png", np.zeros((64, 96), np.uint8))
    code, _, err = run(capsys, "evaluate", tmp_path, "--profile", profile)
    assert code == 3
    assert "no labels" in line(err)


def test_evaluate_asks_for_types_before_it_looks_at_pictures(
    tmp_path: Path, profile: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = labelled(tmp_path / "set")
    picture = tmp_path / "types.png"
    code, _, err = run(capfd, "evaluate", root, "--profile", profile, "--confusion", picture)
    assert code == 3
    assert "name no type of defect" in line(err)
    assert "evaluate" not in err.replace(line(err), "")
    assert not picture.exists()
