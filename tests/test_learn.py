"""Learning a fabric: what a user finds in the folder, what is said, and one clear line for every failure."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loomsight import cli
from loomsight.cli import learn as command
from loomsight.datasets import write_dataset
from loomsight.errors import DatasetError, ImageError, ProfileError, UsageError
from loomsight.evaluation.operating_point import AlarmRate, set_operating_point
from loomsight.fabric.images import read_image, write_png
from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import DEFECT_TYPES, LabelledPicture
from loomsight.learn.cloth import part
from loomsight.learn.job import LearnSettings, learn, time_to_train
from loomsight.learn.lessons import Lesson
from loomsight.learn.renew import teach
from loomsight.loom import ClothSpec, weave
from loomsight.profile import Profile
from loomsight.progress import Progress

NEW = ClothSpec(structure="twill 3/1", grey=True)
TINY = {"steps": 3, "minutes": 3, "recipe": {"tile": 64, "batch": 2, "arms": ("paste", "drawn")}}


class Told(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def settings(**values: object) -> LearnSettings:
    return LearnSettings.parse({**TINY, **values})


@pytest.fixture(scope="module")
def fabrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three known fabrics and the new one, all with labelled defects."""
    root = tmp_path_factory.mktemp("cloth") / "fabrics"
    rng = np.random.default_rng(0)

    def pictures() -> Iterator[LabelledPicture]:
        for name in ("new", "a", "b", "c"):
            spec = NEW if name == "new" else ClothSpec(structure="plain", ends_per_cm=15 + ord(name) % 5)
            for piece in range(8):
                cloth = weave(spec, 96, 300, rng, defects="random" if piece >= 5 else ())
                yield LabelledPicture(cloth.image, cloth.mask, fabric=name, source=f"{name} {piece}")

    write_dataset(pictures(), root)
    return root


@pytest.fixture(scope="module")
def learned(fabrics: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, list[str]]:
    told = Told()
    out = tmp_path_factory.mktemp("profile") / "denim"
    profile = learn(
        fabrics / "new/good", name="denim", out=out, known=fabrics, settings=settings(), progress=told
    )
    return profile, told.lines


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    return left.value.code, shown.out, shown.err  # type: ignore[return-value]


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """The one line of a refusal."""
    found, out, err = run(capsys, *words)
    lines = [line for line in err.splitlines() if line.startswith("loomsight: ")]
    assert (found, out, len(lines)) == (code, "", 1), err
    assert "Traceback" not in err
    return lines[0]


def test_a_profile_opens_scores_a_picture_and_says_what_it_promises(
    learned: tuple[Profile, list[str]], fabrics: Path
) -> None:
    profile = Profile.open(learned[0].folder)
    assert profile.name == "denim"
    assert 0 < profile.threshold <= 1
    assert profile.card.operating_point.promised == 1
    assert profile.card.training["steps"] == 3
    image = weave(NEW, 80, 200, np.random.default_rng(1)).image
    assert profile.engine().score(image).shape == (80, 200)
    assert {"names", "places"} <= set(profile.texture())
    assert len(list((profile.folder / "samples").iterdir())) == 4


def test_its_own_defects_are_not_among_the_known(learned: tuple[Profile, list[str]]) -> None:
    assert learned[0].card.training["known"] == "24 pictures of 3 fabrics, 9 with masks"
    assert learned[0].card.recipe["synthetic"] == 0.5


def test_the_report_has_its_pictures_figures_and_charts(learned: tuple[Profile, list[str]]) -> None:
    html = learned[0].read("report.html").decode()
    assert html.count("data:image/jpeg") >= 5 + 12 + 6 + 4
    assert html.count("<svg") == 2
    for words in (
        "denim: how it was learned",
        "What it was taught to find",
        "defect of a known fabric, set into this cloth",
        "defect drawn into this cloth by the loom",
        "What it calls them",
        "The most suspicious places",
        "This is a new fabric" if "This is a new fabric" in html else "looks like the known fabric",
        f"{learned[0].threshold:.6f}",
        "the same cloth set what is expected of good cloth",
    ):
        assert words in html
    assert "What is certain" not in html  # the cloth held back sets more than the threshold
    assert "src=" not in re.sub(r'src="data:image/(jpeg|png);base64,[^"]*"', "", html)
    assert len(html) < 3_000_000


def test_the_same_seed_and_steps_give_the_same_weights(
    learned: tuple[Profile, list[str]], fabrics: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    again = learn(fabrics / "new/good", name="again", out=out, known=fabrics, settings=settings())
    assert again.read("weights.safetensors") == learned[0].read("weights.safetensors")
    assert again.threshold == learned[0].threshold


def test_what_is_doubtful_is_said_while_learning_in_the_profile_and_first_in_the_report(
    fabrics: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    for number in range(2):
        write_png(tmp_path / f"good/{number}.png", weave(NEW, 96, 96, rng).image)
    (tmp_path / "good/2.png").write_text("this is no picture")
    told = Told()
    profile = learn(
        tmp_path / "good",
        name="few",
        out=tmp_path / "out",
        known=fabrics,
        settings=settings(on_bad_picture="skip", recipe={"tile": 64, "batch": 2, "arms": ("none",)}),
        progress=told,
    )
    assert any("only 2 good pictures" in line for line in told.lines)
    assert any("training steps were done" in line for line in told.lines)
    assert any("less than one false alarm's worth at 1 per megapixel" in line for line in told.lines)
    assert any(line.startswith("skipped: ") and "2.png" in line for line in told.lines)
    assert any("only 2 good pictures" in str(note) for note in profile.card.training["notes"])  # type: ignore[union-attr]
    html = profile.read("report.html").decode()
    assert html.index('class="note warning"') < html.index("<h2>")
    assert "The threshold rests on 0.018 Mpx of good cloth" in html.split("<h2>")[0]
    assert "Nothing was made for this cloth" in html
    assert "2.png" in html


def test_with_a_scale_the_promise_is_per_100_m_and_json_says_so(
    fabrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaled"
    scale = ("--mm-per-px", 0.1, "--web-width", 1600, "--false-alarms", 5)
    words = ("learn", fabrics / "new/good/*.png", "--name", "x", "--out", out, "--known", fabrics)
    code, printed, err = run(capsys, *words, *scale, "--steps", 2, "--json")
    assert code == 0, err
    figures = json.loads(printed)
    assert (figures["false_alarms"], figures["per"], figures["mm_per_px"]) == (5, "100 m", 0.1)
    assert (figures["steps"], figures["profile"]) == (2, str(out))
    profile = Profile.open(out)
    area = 100_000 / 0.1 * 1600 / 0.1 / 1e6  # Mpx in 100 m
    point = profile.card.operating_point
    assert np.isclose(point.alarms_allowed, 5 * point.megapixels_seen / area)


def test_the_command_learns_without_known_fabrics_and_says_what_comes_next(
    learned: tuple[Profile, list[str]],
    fabrics: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(learned[0].folder, tmp_path / "my twill")  # an earlier profile is replaced
    words = ("learn", fabrics / "new/good", "--name", "my twill", "--recipe", "drawn", "--steps", 2)
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert out.splitlines()[-1] == "next: loomsight inspect PICTURES --profile 'my twill'"
    assert "48 pictures of cloth that the loom wove, 2 steps" in out
    card = Profile.open(tmp_path / "my twill").card
    assert card.recipe["arms"] == ["drawn"]
    assert card.recipe["synthetic"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "pastte"], "no such recipe: 'pastte': the nearest is paste"),
        (["--recipe", "paste+none"], "stand alone"),
        (["--minutes", "0"], "bad --minutes: 0: it must be a number above 0"),
        (["--steps", "-3"], "bad --steps"),
        (["--false-alarms", "nan"], "bad --false-alarms"),
        (["--seed", "-1"], "bad --seed"),
        (["--web-width", "1600"], "--web-width says nothing without a scale"),
        (["--name", "a/b"], "bad name for a fabric"),
        (["--known", "nowhere"], "bad --known: nowhere: there is no such folder"),
        (["--resnet-weights", "r50.pth"], "give --network paper too"),
        (["--network", "paper", "--resnet-weights", "r50.pth"], "there is no such file"),
        (["--network", "huge"], "Invalid value for '--network'"),
        (["--out", "full"], "not replaced: full: it is no profile"),
        (["--out", "full/notes.txt"], "a file of that name exists"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_before_any_work(
    words: list[str],
    said: str,
    fabrics: Path,
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (elsewhere / "full").mkdir()
    (elsewhere / "full/notes.txt").write_text("mine")
    name = [] if "--name" in words else ["--name", "x"]
    assert said in refused(capsys, 2, "learn", fabrics / "new/good", *name, *words)
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["full", "notes.txt"]


def bomb(path: Path) -> None:
    """A PNG whose header promises 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels)


def test_missing_empty_and_harmful_folders_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tail = ("--name", "x", "--out", tmp_path / "x")
    assert "no such file or folder: nowhere" in refused(capsys, 2, "learn", "nowhere", *tail)
    (tmp_path / "empty").mkdir()
    assert "no pictures in the folder: empty" in refused(capsys, 3, "learn", "empty", *tail)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.png").write_text("this is no picture")
    assert "text/a.png: it is no PNG" in refused(capsys, 3, "learn", "text", *tail)
    (tmp_path / "bomb").mkdir()
    bomb(tmp_path / "bomb/a.png")
    line = refused(capsys, 3, "learn", "bomb", *tail)
    assert "a.png: its header says 60000 × 60000 pixels" in line
    skip = refused(capsys, 3, "learn", "text", *tail, "--bad-pictures", "skip")
    assert "no good picture can be read" in skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb", "empty", "text"]


def test_known_fabrics_that_are_none_are_named(fabrics: Path, tmp_path: Path) -> None:
    good, out = fabrics / "new/good", tmp_path / "out"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DatasetError, match="no usable picture of known fabrics"):
        learn(good, name="x", out=out, known=tmp_path / "nothing", settings=settings())
    with pytest.raises(DatasetError, match="all in it is of the fabric to learn"):
        learn(good, name="x", out=out, known=fabrics / "new", settings=settings())
    pasted = settings(recipe={"tile": 64, "batch": 2, "arms": ("paste",)})
    with pytest.raises(UsageError, match="needs defects with masks"):
        learn(good, name="x", out=out, known=fabrics / "a/good", settings=pasted)
    shutil.copytree(fabrics / "a/defect", tmp_path / "unlabelled/a/defect")
    with pytest.raises(DatasetError, match="neither masks nor boxes"):  # it must not be learned as good cloth
        learn(good, name="x", out=out, known=tmp_path / "unlabelled", settings=settings())
    assert not out.exists()


def test_a_damaged_picture_of_a_known_fabric_ends_learning_or_is_skipped_as_asked(
    fabrics: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    shutil.copytree(fabrics, known)
    broken = sorted((known / "a/good").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-200])
    words = {"name": "x", "out": tmp_path / "x", "known": known}
    with pytest.raises(ImageError, match=broken.name):
        learn(fabrics / "new/good", settings=settings(), **words)  # type: ignore[arg-type]
    told = Told()
    learn(
        fabrics / "new/good",
        settings=settings(on_bad_picture="skip", anomaly=()),
        progress=told,
        **words,  # type: ignore[arg-type]
    )
    assert any(line.startswith("skipped: ") and broken.name in line for line in told.lines)


def test_a_promise_too_strict_for_bars_is_said(fabrics: Path, tmp_path: Path) -> None:
    told = []
    for rate in (20.0, 1e-6):
        told.append(Told())
        learn(
            fabrics / "new/good", name="x", out=tmp_path / "x", known=fabrics, progress=told[-1],
            settings=settings(anomaly=("prediction", "bars"), false_alarms=rate),
        )  # fmt: skip
    assert [any("bars" in line and "not reported" in line for line in one.lines) for one in told] == [
        False,
        True,
    ]


def test_a_picture_that_breaks_later_in_the_folder_is_found_before_training(
    fabrics: Path, tmp_path: Path
) -> None:
    write_png(tmp_path / "good/1.png", weave(NEW, 96, 96, np.random.default_rng(0)).image)
    whole = (tmp_path / "good/1.png").read_bytes()
    (tmp_path / "good/2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"2\.png: it is truncated"):
        learn(tmp_path / "good", name="x", out=tmp_path / "x", known=fabrics, settings=settings())


def test_a_full_disk_is_one_line_and_leaves_nothing(
    fabrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        words = ("learn", fabrics / "new/good", "--name", "x", "--out", disk / "x", "--known", fabrics)
        line = refused(capsys, 3, *words, "--steps", 2)
        assert "the disk is full" in line
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_help_states_the_defaults_that_hold() -> None:
    told = {
        name: parameter.annotation for name, parameter in inspect.signature(command.learn).parameters.items()
    }
    defaults = LearnSettings()
    assert f"{defaults.minutes:g} if not given" in told["minutes"]
    assert f"{defaults.recipe.name} if not given" in told["recipe"]
    assert f"{defaults.seed}" in told["seed"]
    assert f"{defaults.segmenter.form} if not given" in told["network"]
    assert f"{defaults.on_bad_picture} if not given" in told["bad_pictures"]


def test_with_a_detector_the_profile_boxes_and_names(fabrics: Path, elsewhere: Path) -> None:
    from loomsight.inspection.line import inspect as inspect_roll

    small = {"tile": 128, "batch": 2}
    profile = learn(
        fabrics / "new/good",
        name="boxed",
        out=Path("boxed"),
        known=fabrics,
        settings=settings(detector=small),
    )
    assert profile.card.training["detector_steps"] == profile.card.training["steps"]
    card = profile.card.detector
    assert card is not None
    assert card.tile == 128
    assert "slub" in card.types
    assert set(card.types) <= set(DEFECT_TYPES)
    again = Profile.open("boxed").detector()
    assert again is not None
    picture = read_image(sorted((fabrics / "new/defect").iterdir())[0])
    moved = Profile.open("boxed").promising(2.0).card
    assert moved.detector is not None
    assert moved.operating_point.promised == 2.0
    assert moved.detector.fusion.margin <= card.fusion.margin
    assert moved.detector.fusion.threshold == moved.operating_point.threshold
    said = {*card.types, "unknown"}
    assert all(0 < region.score <= 1 and region.type in said for region in again.detect(picture))
    text = Path("boxed/report.html").read_text(encoding="utf-8")
    assert "RT-DETR" in text
    assert "128 × 128 px, 2 a step; recipe paste+drawn, 25% with made defects, 25% good cloth" in text
    shutil.copytree("boxed", "taught")
    renewed = teach(Profile.open("taught"), good=fabrics / "new/good").card
    assert renewed.detector is not None
    assert renewed.detector.margins is not None
    assert renewed.detector.fusion.threshold == renewed.operating_point.threshold
    assert renewed.detector.margins.megapixels_seen == renewed.operating_point.megapixels_seen
    place = sorted((fabrics / "new/defect").iterdir())[0]
    listed = teach(Profile.open("taught"), lessons=[Lesson(place, (8, 8, 40, 40), False)]).lessons
    assert [one["what"] for one in listed] == ["good", "false alarm"]
    result = inspect_roll(fabrics / "new/defect", profile, Path("roll"))
    assert result.ledger.inspected == 3
    assert "RT-DETR" in Path("roll/report.html").read_text(encoding="utf-8")


def test_known_cloth_may_have_boxes_alone(fabrics: Path, elsewhere: Path) -> None:
    known = elsewhere / "known/boxed"
    (known / "images").mkdir(parents=True)
    (known / "labels").mkdir()
    (known / "data.yaml").write_text("names: [hole]\n")
    for picture in sorted((fabrics / "a/defect").iterdir()):
        shutil.copy(picture, known / "images")
        (known / "labels" / f"{picture.stem}.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    only = settings(recipe={"tile": 64, "batch": 2, "arms": ("none",)})
    profile = learn(fabrics / "new/good", name="x", out=Path("x"), known=known, settings=only)
    assert profile.card.training["known"] == "3 pictures of 1 fabrics, 0 with masks, 3 with boxes alone"
    assert profile.segmenter().types == ("unknown",), "boxes do not teach it types"
    page = Path("x/report.html").read_text(encoding="utf-8")
    assert "On windows of the labelled pictures that it learned from, it finds" in page
    assert "of 0 defects" not in page, "tried on what is boxed"


def test_with_says_what_it_knows(fabrics: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "learn", fabrics / "new/good", "--name", "x", "--with", "teleporter")
    assert code == 2
    assert "detector" in err


def test_a_profile_knows_what_good_cloth_looks_like(learned: tuple[Profile, list[str]]) -> None:
    profile = Profile.open(learned[0].folder)
    normality, card = profile.normality(), profile.card.normality
    assert normality is not None
    assert card is not None
    assert normality.methods == card.methods == ("memory", "prediction", "bars")
    cloth = weave(NEW, 96, 300, np.random.default_rng(9)).image
    cloth[40:52, 100:112] = 255 - cloth[40:52, 100:112]
    strange = normality.score(cloth)
    assert strange[40:52, 100:112].max() > strange[:, 200:].max()
    # the profile's engine gives the union: at least as sure as the strangeness alone is of its own
    union = profile.engine().score(cloth)
    assert union[40:52, 100:112].max() > union[:, 200:].max()


def test_without_anomaly_a_profile_has_the_network_alone(
    fabrics: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = run(
        capsys, "learn", fabrics / "new/good", "--name", "x", "--known", fabrics, "--steps", 2,
        "--minutes", 1, "--anomaly", "none",
    )  # fmt: skip
    assert code == 0
    profile = Profile.open(elsewhere / "x")
    assert profile.normality() is None
    assert "normality.safetensors" not in profile.card.files
    page = (elsewhere / "x/report.html").read_text(encoding="utf-8")
    assert "the same cloth set which pixels join pieces" in page


def test_a_damaged_normality_is_named(learned: tuple[Profile, list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(learned[0].folder, folder)
    (folder / "normality.safetensors").write_bytes(b"nothing")
    with pytest.raises(ProfileError, match=r"normality\.safetensors"):
        Profile.open(folder)


@pytest.fixture
def copied(learned: tuple[Profile, list[str]], tmp_path: Path) -> Path:
    """The profile, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(learned[0].folder, folder)
    return folder


def test_an_inspector_teaches_a_missed_defect_and_a_false_alarm(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloth = weave(NEW, 96, 300, np.random.default_rng(9)).image
    cloth[40:52, 100:112] = 255 - cloth[40:52, 100:112]
    write_png(tmp_path / "roll.png", cloth)
    before = Profile.open(copied).engine().score(cloth)[40:52, 100:112].max()
    place = f"{tmp_path / 'roll.png'}@98,38,114,54"
    code, out, _ = run(capsys, "teach", copied, "--false-alarm", place)
    assert code == 0
    assert ": 1 false alarm taught; alarms on the 0.12 Mpx of good cloth that the profile keeps: 0" in out
    calmed = Profile.open(copied).engine().score(cloth)[40:52, 100:112].max()
    assert calmed < before
    assert run(capsys, "teach", copied, "--missed", place, "--missed", place)[0] == 0
    again = Profile.open(copied)
    assert again.engine().score(cloth)[40:52, 100:112].max() > calmed
    assert len(again.card.training["renewed"]) == 2  # type: ignore[arg-type]


def test_of_two_lessons_about_one_place_the_later_holds_and_both_are_listed(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloth = weave(NEW, 96, 300, np.random.default_rng(9)).image
    cloth[40:52, 100:112] = 255 - cloth[40:52, 100:112]
    write_png(tmp_path / "roll.png", cloth)
    place, other = f"{tmp_path / 'roll.png'}@98,38,114,54", f"{tmp_path / 'roll.png'}@100,40,120,60"
    both = refused(capsys, 2, "teach", copied, "--missed", place, "--false-alarm", other)
    assert "taught as missed and as a false alarm" in both
    assert run(capsys, "teach", copied, "--list")[1] == "nothing was taught\n"
    plain = Profile.open(copied).engine().score(cloth)
    assert run(capsys, "teach", copied, "--false-alarm", place)[0] == 0
    code, _, err = run(capsys, "teach", copied, "--missed", place)
    assert code == 0
    assert "was taught as false alarm before" in err
    again = Profile.open(copied).engine().score(cloth)
    assert (again[40:52, 100:112] > plain[40:52, 100:112] - 1e-3).all()  # nothing of the first is left
    first, second = run(capsys, "teach", copied, "--list")[1].splitlines()
    assert first.endswith("false alarm: " + place + ", overruled since")
    assert second.endswith("missed: " + place)


def dark_head(folder: Path, spec: ClothSpec) -> None:
    """Four pictures of good cloth in poorer light."""
    rng = np.random.default_rng(3)
    for number in range(4):
        dark = weave(spec, 96, 300, rng).image * 0.6
        write_png(folder / f"{number}.png", dark.astype(np.uint8))


def test_a_lesson_that_is_taken_back_was_never_given(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloth = weave(NEW, 96, 300, np.random.default_rng(9)).image
    cloth[40:52, 100:112] = 255 - cloth[40:52, 100:112]
    cloth[20:32, 220:232] = 255 - cloth[20:32, 220:232]
    write_png(tmp_path / "roll.png", cloth)
    place, other = f"{tmp_path / 'roll.png'}@98,38,114,54", f"{tmp_path / 'roll.png'}@218,18,234,34"

    def score() -> np.ndarray:
        return Profile.open(copied).engine().score(cloth)

    plain, page = score(), (copied / "report.html").read_text()
    assert run(capsys, "teach", copied, "--false-alarm", place)[0] == 0
    assert run(capsys, "teach", copied, "--false-alarm", other)[0] == 0
    assert np.abs(score() - plain)[40:52, 100:112].max() > 0.05
    one, two = (copied / "report.html").read_text(), score()
    assert run(capsys, "teach", copied, "--missed", other)[0] == 0
    code, out, err = run(capsys, "teach", copied, "--forget", 3)  # the second holds again
    assert code == 0
    assert ": 1 missed defect taken back; alarms on the 0.12 Mpx of good cloth" in out
    assert f"{other} was taught as false alarm, " in err
    assert "this holds again" in err
    np.testing.assert_array_equal(score(), two)
    assert "missed defect" not in (copied / "report.html").read_text()
    assert "overruled" not in run(capsys, "teach", copied, "--list")[1]
    assert "there is no lesson 3" in refused(capsys, 2, "teach", copied, "--forget", 1, "--forget", 3)
    assert run(capsys, "teach", copied, "--forget", 1, "--forget", 2)[0] == 0
    np.testing.assert_array_equal(score(), plain)
    assert run(capsys, "teach", copied, "--list")[1] == "nothing was taught\n"
    assert page == (copied / "report.html").read_text() != one
    told = refused(capsys, 2, "teach", copied, "--forget", 1, "--missed", place)
    assert "--forget teaches nothing" in told


def test_the_last_good_cloth_is_taken_back_with_its_thresholds_and_what_was_taught_since_stays(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark_head(tmp_path / "head", ClothSpec(structure="plain", ends_per_cm=9, grey=True))
    cloth = weave(NEW, 96, 300, np.random.default_rng(9)).image
    cloth[40:52, 100:112] = 255 - cloth[40:52, 100:112]
    write_png(tmp_path / "roll.png", cloth)
    place = f"{tmp_path / 'roll.png'}@98,38,114,54"

    def known() -> tuple[object, ...]:
        profile = Profile.open(copied)
        card, score = profile.card, profile.engine().score(cloth)
        texture = {key: value.tolist() for key, value in profile.texture().items()}
        return card.operating_point, card.normality, card.drift, texture, score.tolist()

    before = known()
    assert run(capsys, "teach", copied, "--good", tmp_path / "head")[0] == 0
    changed = known()
    assert all(one != other for one, other in zip(before, changed, strict=True))
    assert run(capsys, "teach", copied, "--good", tmp_path / "head")[0] == 0
    told = refused(capsys, 2, "teach", copied, "--forget", 1)
    assert "lesson 1 can no longer be taken back" in told
    assert "more good cloth was taught since" in told
    assert run(capsys, "teach", copied, "--false-alarm", place)[0] == 0
    assert run(capsys, "teach", copied, "--forget", 2, "--forget", 3)[0] == 0
    assert known() == changed
    assert not list(copied.glob("before/*"))
    assert "Changed since: 4 good pictures added. The" in (copied / "report.html").read_text()


def test_what_an_earlier_version_taught_is_listed_and_not_taken_back(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "roll.png", weave(NEW, 96, 300, np.random.default_rng(9)).image)
    place = f"{tmp_path / 'roll.png'}@98,38,114,54"
    assert run(capsys, "teach", copied, "--false-alarm", place)[0] == 0
    card = json.loads((copied / "profile.json").read_text())
    del card["training"]["lessons"][0]["number"]
    (copied / "profile.json").write_text(json.dumps(card))
    digest = hashlib.sha256((copied / "profile.json").read_bytes()).hexdigest()
    (copied / "profile.sha256").write_text(f"{digest}  profile.json\n")
    assert run(capsys, "teach", copied, "--list")[1].startswith("1  ")
    told = refused(capsys, 2, "teach", copied, "--forget", 1)
    assert "an earlier version of the program taught it" in told


def test_what_was_taught_outlives_another_memory_and_is_given_up_openly_without_one(
    copied: Path, fabrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloth = weave(NEW, 96, 300, np.random.default_rng(9)).image
    cloth[40:52, 100:112] = 255 - cloth[40:52, 100:112]
    write_png(tmp_path / "roll.png", cloth)
    assert run(capsys, "teach", copied, "--false-alarm", f"{tmp_path / 'roll.png'}@98,38,114,54")[0] == 0
    words = ("train", "anomaly", fabrics / "new/good", "--profile", copied, "--method")
    assert run(capsys, *words, "memory+prediction")[0] == 0
    again = Profile.open(copied)
    normality = again.normality()
    assert normality is not None
    _, calmed = normality.look(cloth)
    assert calmed is not None
    assert calmed[40:52, 100:112].min() < -0.5
    assert len(again.lessons) == 1
    code, _, err = run(capsys, *words, "prediction")
    assert code == 0
    assert "nothing is known any longer of the places that were taught" in err
    assert Profile.open(copied).lessons == []
    assert "false alarm taught" not in (copied / "report.html").read_text()


def test_a_missed_defect_that_looks_like_good_cloth_raises_no_alarms_elsewhere(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(11)
    first, *others = (weave(NEW, 96, 300, rng).image for _ in range(5))
    write_png(tmp_path / "roll.png", first)

    def alarms() -> int:
        profile = Profile.open(copied)
        point, engine = profile.card.operating_point, profile.engine()
        maps = (engine.score(image) for image in others)
        return sum(len(find_regions(score, point.threshold, point.grouping)) for score in maps)

    before = alarms()
    code, out, err = run(capsys, "teach", copied, "--missed", f"{tmp_path / 'roll.png'}@120,30,150,60")
    assert code == 0
    assert alarms() <= before
    assert "1 missed defect taught" in out
    assert "@120,30,150,60 is still not found: it hardly differs from good cloth" in err


def test_good_cloth_of_today_sets_the_threshold_and_the_light_anew(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark_head(tmp_path / "head", NEW)
    before = Profile.open(copied).card
    code, out, _ = run(capsys, "teach", copied, "--good", tmp_path / "head", "--json")
    assert code == 0
    assert json.loads(out)["taught"] == "4 good pictures added"
    after = Profile.open(copied).card
    assert after.drift is not None
    assert before.drift is not None
    assert after.drift.usual["light"] < before.drift.usual["light"] - 0.3
    assert after.operating_point.promised == before.operating_point.promised
    assert after.operating_point.megapixels_seen == pytest.approx(4 * 96 * 75 / 1e6)


def test_a_scrap_of_good_cloth_leaves_the_threshold_and_the_bars_as_they_were(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "head/scrap.png", weave(NEW, 24, 24, np.random.default_rng(3)).image)
    before = Profile.open(copied)
    normality = before.normality()
    code, out, err = run(capsys, "teach", copied, "--good", tmp_path / "head")
    assert code == 0
    assert "1 good picture added" in out
    assert "it stays as it was" in err
    after = Profile.open(copied)
    assert (after.card.operating_point, after.card.drift) == (before.card.operating_point, before.card.drift)
    bar = weave(NEW, 96, 300, np.random.default_rng(4)).image
    bar[30:60] = np.clip(bar[30:60] * 0.7, 0, 255).astype(np.uint8)
    seen = [one.bars(bar) for one in (normality, after.normality()) if one is not None]
    assert seen[0] is not None
    assert np.array_equal(*seen)


def test_other_cloth_taught_as_good_is_said_and_is_known_from_then_on(
    copied: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    for number in range(10):
        cloth = weave(ClothSpec(structure="plain", ends_per_cm=9, grey=True), 96, 300, rng).image
        write_png(elsewhere / f"{'head' if number < 5 else 'roll'}/{number}.png", cloth)

    def strange() -> bool:
        code, _, _ = run(capsys, "inspect", elsewhere / "roll", "--profile", copied, "--out", "r")
        assert code == 0
        said = json.loads((elsewhere / "r/regions.json").read_text())["warnings"]
        shutil.rmtree(elsewhere / "r")
        return any("does not look like the cloth that was learned" in text for text in said)

    assert strange()
    code, _, err = run(capsys, "teach", copied, "--good", elsewhere / "head")
    assert code == 0
    assert "5 of 5 pictures do not look like the cloth that was learned" in err
    assert not strange()


def test_another_method_takes_the_place_of_what_a_profile_has(
    copied: Path, fabrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = fabrics / "new/good"
    words = ("train", "anomaly", good, "--profile", copied, "--method")
    code, _, err = run(capsys, *words, "prediction+student", "--minutes", 0.05)
    assert code == 0
    assert re.search(r"note: only \d+ training steps of the student were done, 500 make a sure one", err)
    profile = Profile.open(copied)
    assert profile.card.normality is not None
    assert profile.card.normality.methods == ("prediction", "student")
    assert profile.engine().score(weave(NEW, 96, 200, np.random.default_rng(1)).image).shape == (96, 200)
    for option, method, said in (
        (("--budget", 64), "prediction", "--budget says nothing here: prediction: it is for memory"),
        (("--compare", "pixels"), "memory", "--compare says nothing here: memory: it is for fanogan and"),
        (("--compare", "dreams"), "fanogan", "there are pixels, features, frozen"),
        (("--budget", 0), "memory", "bad --budget"),
        (("--budget", 4), "memory", "give 64 or more"),
    ):
        assert said in refused(capsys, 2, *words, method, *option)
    # what is remembered by nothing cannot be taught
    assert "no memory" in refused(capsys, 2, "teach", copied, "--good", good)
    assert "there are memory" in refused(capsys, 2, *words, "magic")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--missed", "nowhere.png@1,2,3,4"), "no such picture"),
        (("--missed", "nowhere.png"), "it has no place"),
        ((), "nothing to teach"),
    ],
)
def test_a_lesson_that_is_none_is_refused(
    copied: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, 2, "teach", copied, *words)


def test_a_place_outside_its_picture_is_refused_and_the_profile_stays(
    copied: Path, fabrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((fabrics / "new/good").glob("*.png"))
    told = refused(capsys, 2, "teach", copied, "--missed", f"{picture}@0,0,9999,10")
    assert "the picture has 300 × 96 pixels" in told
    assert "renewed" not in Profile.open(copied).card.training


def test_a_promise_is_moved_at_the_inspection(
    learned: tuple[Profile, list[str]], fabrics: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, thresholds = learned[0].folder, []
    for rate in (1, 20, 60):
        words = ("inspect", fabrics / "new/defect", "--profile", profile, "--out", f"at{rate}")
        assert run(capsys, *words, "--false-alarms", rate)[0] == 0
        thresholds.append(json.loads((elsewhere / f"at{rate}/regions.json").read_text())["threshold"])
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[2]
    assert "above 0" in refused(capsys, 2, *words, "--false-alarms", 0)


def test_a_line_says_that_its_lamp_is_old(
    learned: tuple[Profile, list[str]], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    for number in range(12):
        lamp = 1.0 if number < 5 else 0.6
        write_png(
            elsewhere / f"roll/{number:02d}.png", (weave(NEW, 96, 300, rng).image * lamp).astype(np.uint8)
        )
    assert run(capsys, "inspect", elsewhere / "roll", "--profile", learned[0].folder, "--out", "r")[0] == 0
    (told,) = [
        text for text in json.loads((elsewhere / "r/regions.json").read_text())["warnings"] if "light" in text
    ]
    assert "weaker than when the fabric was learned" in told
    assert "recalibrate" in told


def test_a_slow_machine_still_trains() -> None:
    assert time_to_train(360, spent=60, after=20) == 280
    assert time_to_train(360, spent=400, after=20) == 108


def test_far_more_grain_is_told_in_times_and_not_in_thousands_of_percent(
    learned: tuple[Profile, list[str]], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    for number in range(12):
        write_png(elsewhere / f"roll/{number:02d}.png", rng.integers(0, 256, (96, 300, 3), np.uint8))
    assert run(capsys, "inspect", elsewhere / "roll", "--profile", learned[0].folder, "--out", "r")[0] == 0
    warnings = json.loads((elsewhere / "r/regions.json").read_text())["warnings"]
    (told,) = [text for text in warnings if "Fine detail" in text]
    assert "times as strong as when the fabric was learned" in told


def test_what_lies_in_a_profile_and_is_not_of_it_is_not_lost(
    copied: Path, fabrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fabrics / "new/good", copied / "today")
    for words in (
        ("teach", copied, "--good", copied / "today"),
        ("learn", copied / "today", "--name", "denim", "--out", copied, "--steps", "3"),
    ):
        assert "not part of it" in refused(capsys, 2, *words)
        assert list((copied / "today").iterdir())


def test_the_report_says_what_was_changed_since(
    copied: Path, fabrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "teach", copied, "--good", fabrics / "new/good")[0] == 0
    profile = Profile.open(copied)
    page = (copied / "report.html").read_text()
    assert f"Changed since: 5 good pictures added. The threshold is {profile.threshold:.4f}." in page


def test_a_profile_that_is_taught_cloth_from_files_of_another_kind_minds_the_kind_no_longer(
    copied: Path, fabrics: Path, tmp_path: Path
) -> None:
    assert Profile.open(copied).card.training["lossy"] is False
    assert teach(Profile.open(copied), good=fabrics / "new/good").card.training["lossy"] is False
    (tmp_path / "jpeg").mkdir()
    for path in (fabrics / "new/good").glob("*.png"):
        Image.fromarray(read_image(path)).save(tmp_path / "jpeg" / f"{path.stem}.jpg", quality=95)
    assert teach(Profile.open(copied), good=tmp_path / "jpeg").card.training["lossy"] is None


def test_taught_cloth_sets_the_threshold_on_the_maps_that_an_inspection_sees(
    copied: Path, fabrics: Path
) -> None:
    profile = Profile.open(copied)
    picture = sorted((fabrics / "new/good").glob("*.png"))[0]
    made = teach(
        profile, good=fabrics / "new/good", lessons=[Lesson(picture, (225, 0, 300, 96), defect=False)]
    )
    point, engine = made.card.operating_point, made.engine()
    judged = part([read_image(path) for path in sorted((fabrics / "new/good").glob("*.png"))]).judge
    maps = [engine.score(image) for image in judged]
    rate = AlarmRate(point.promised, point.unit, 1.0)
    again = set_operating_point(maps, rate, point.grouping)
    assert again.threshold == pytest.approx(point.threshold, abs=1e-4)


def test_what_lies_in_the_margins_teaches_nothing_and_sets_no_threshold(
    fabrics: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign stripe at either edge: within the margins the fabric is learned as if there were none."""
    rng = np.random.default_rng(4)
    for number in range(5):
        cloth = weave(NEW, 180, 300, rng).image
        write_png(elsewhere / f"plain/{number}.png", cloth[24:-24])
        striped = rng.integers(0, 256, cloth.shape, np.uint8)
        striped[18:-18] = cloth[18:-18]
        write_png(elsewhere / f"striped/{number}.png", striped)
    plain, left_out = (
        learn(
            elsewhere / good,
            name=name,
            out=elsewhere / name,
            known=fabrics,
            settings=settings(anomaly=("prediction", "bars"), **more),
        )
        for good, name, more in (
            ("plain", "cut", {}),
            ("striped", "left-out", {"margin": 24, "along": "x"}),
        )
    )
    assert left_out.threshold == plain.threshold
    for name in ("weights.safetensors", "normality.safetensors"):
        assert left_out.read(name) == plain.read(name)
    assert left_out.card.drift == plain.card.drift
    assert (left_out.card.margin, left_out.card.along) == (24, "x")
    assert "24 px at either selvedge" in left_out.read("report.html").decode()
    words = (
        "train",
        "anomaly",
        elsewhere / "striped",
        "--profile",
        left_out.folder,
        "--method",
        "prediction",
    )
    assert run(capsys, *words, "--margin", 30)[0] == 0
    again = Profile.open(left_out.folder).card
    assert (again.margin, again.along) == (30, "x")
    assert again.operating_point.megapixels_seen == pytest.approx((180 - 60) * 300 / 1e6)


def test_a_budget_says_how_much_is_remembered_and_a_gan_what_it_compares(
    copied: Path, fabrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "anomaly", fabrics / "new/good", "--profile", copied)
    remembered = []
    for budget in (64, 256):
        assert run(capsys, *words, "--method", "memory", "--budget", budget)[0] == 0
        remembered.append(Profile.open(copied).card.files["normality.safetensors"].size)
    assert 3 < remembered[1] / remembered[0] < 7
    few = ("--method", "ganomaly", "--compare", "pixels+frozen", "--minutes", 0.02)
    assert run(capsys, *words, *few)[0] == 0
    normality = Profile.open(copied).normality()
    assert normality is not None
    assert normality.by_name["ganomaly"].to_arrays()["residuals"].tolist() == [1, 0, 1]


def test_margins_that_leave_nothing_or_are_none_are_refused(
    fabrics: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("learn", fabrics / "new/good", "--name", "x", "--margin")
    assert "bad --margin" in refused(capsys, 2, *words, "-1")
    assert "a margin of 150 px leaves nothing of the cloth" in refused(capsys, 2, *words, 150)
    assert "a margin of 15 mm leaves" in refused(capsys, 2, *words, 15, "--mm-per-px", 0.1)
    assert list(elsewhere.iterdir()) == []
