"""A base: trained on known fabrics, sealed, and used by learn and synth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from loomsight import cli
from loomsight.base import Base
from loomsight.datasets import read_dataset
from loomsight.errors import BaseWeightsError, DatasetError, UsageError
from loomsight.fabric.images import read_image, write_png
from loomsight.fabric.types import UNKNOWN
from loomsight.learn.base import BaseSettings, train_base, train_network, weave_fabrics
from loomsight.learn.detector import DetectorSettings, as_in_base, base_detector
from loomsight.learn.synth import SynthSettings, synthesise
from loomsight.loom import DRAWN_KINDS, ClothSpec, weave
from loomsight.progress import Progress
from loomsight.synthesis.diffusion import DiffusionSettings
from loomsight.synthesis.fusion import FusionSettings
from loomsight.synthesis.recipe import Recipe, arms_of
from loomsight.synthesis.texture_gan import TextureGanSettings

TINY = BaseSettings(
    steps=6,
    minutes=5,
    woven=3,
    diffusion=True,
    encoder="lite0",
    recipe=Recipe(tile=64, batch=2),
    stage1=TextureGanSettings(code_dims=4, noise=8, widths=(16, 16, 12, 12), judge=(8, 8, 12, 12), batch=4),
    stage2=FusionSettings(width=8, batch=2),
    painter=DiffusionSettings(channels=(32, 32), code_size=4, batch=2, sampling_steps=2),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return train_base(None, out=tmp_path_factory.mktemp("base") / "base", settings=TINY)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("cloth") / "good", np.random.default_rng(5)
    for number in range(3):
        write_png(folder / f"{number}.png", weave(ClothSpec(), 192, 192, rng).image)
    return folder


def test_a_base_opens_again_with_all_its_generators_and_says_where_it_comes_from(base: Base) -> None:
    again = Base.open(base.folder)
    assert again.arms == ("stage1", "stage1+2", "refined", "diffusion")
    assert again.card.provenance["known"] == "3 fabrics that the loom wove"
    assert again.card.provenance["seed"] == 0
    cloth, code = [np.full((96, 96, 3), 128, np.uint8)] * 2, np.zeros(again.card.code_size, np.float32)
    for arm in again.arms:
        samples = again.generator(arm).make(cloth, code, np.random.default_rng(0))
        assert [sample.origin for sample in samples] == [arm, arm]


def test_the_weights_lie_in_half_precision(base: Base) -> None:
    import safetensors.numpy

    for name in ("segmenter", "stage1", "stage2", "diffusion"):
        stored = safetensors.numpy.load_file(base.folder / f"{name}.safetensors")
        assert any(value.dtype == np.float16 for value in stored.values())


def test_a_flipped_bit_in_any_file_is_named(base: Base, tmp_path: Path) -> None:
    for path in sorted(base.folder.iterdir()):
        copy = tmp_path / path.name / "base"
        shutil.copytree(base.folder, copy)
        data = bytearray((copy / path.name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / path.name).write_bytes(data)
        with pytest.raises(BaseWeightsError, match="damaged"):
            Base.open(copy)


def test_what_is_no_base_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BaseWeightsError, match="does not exist"):
        Base.open(tmp_path / "nowhere")
    with pytest.raises(BaseWeightsError, match="this is no base"):
        Base.open(tmp_path)
    (tmp_path / "text.txt").write_text("mine")
    with pytest.raises(UsageError, match="it is no base"):
        train_base(None, out=tmp_path, settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_known_fabrics_without_masks_are_no_ground_for_a_base(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        train_base(tmp_path / "empty", out=out, settings=TINY)
    shutil.copytree(good, tmp_path / "unlabelled" / "defect")
    with pytest.raises(DatasetError, match="no usable picture"):  # they must not be learned as good cloth
        train_base(tmp_path / "unlabelled", out=out, settings=TINY)
    assert not out.exists()


def test_synth_writes_a_data_set_that_reads_back_with_its_masks_sheet_and_card(
    base: Base, good: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples"
    settings = SynthSettings(count=5, arm="diffusion", gate=False, size=96)
    card = synthesise(good, out=out, base=base.folder, settings=settings, progress=Progress())
    items = read_dataset(out / "samples")
    assert card["samples"] == 5
    assert sum(item.good for item in items) == 5  # the cloth before
    defective = [item for item in items if not item.good]
    assert len(defective) == 5
    for item in defective:
        picture = item.load()
        assert picture.image.shape == (96, 96, 3)
        assert picture.mask is not None
        assert picture.mask.any()
    assert read_image(out / "sheet.png").ndim == 3
    stored = json.loads((out / "card.json").read_text())
    assert stored["arm"] == "diffusion"
    assert stored["base"]["provenance"]["known"] == "3 fabrics that the loom wove"


def test_samples_that_are_not_good_enough_are_counted_and_nothing_is_left(
    base: Base, good: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="rejected"):  # a generator of six steps makes nothing visible
        synthesise(
            good,
            out=tmp_path / "out",
            base=base.folder,
            settings=SynthSettings(count=2, arm="stage1", size=96),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("synth", "GOOD", "--out", "o", "--arm", "stage"), "bad --arm"),
        (("synth", "GOOD", "--out", "o", "--layout", "cocoa"), "the nearest is coco"),
        (("synth", "GOOD", "--out", "o", "--n", "0"), "bad --n"),
        (("synth", "nowhere", "--out", "o"), "nowhere"),
        (("train", "base", "--out", "o", "--known", "nowhere"), "there is no such folder"),
        (("train", "base", "--out", "o", "--minutes", "0"), "bad --minutes"),
        (("learn", "GOOD", "--name", "x", "--base", "nowhere"), "no such base"),
        (("learn", "GOOD", "--name", "x", "--recipe", "stage3"), "the nearest is stage1"),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_written(
    words: tuple[str, ...],
    said: str,
    *,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main([str(good) if word == "GOOD" else word for word in words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loomsight: ")]
    assert left.value.code in (2, 3)
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_learn_takes_the_samples_of_a_base_and_says_when_none_is_good_enough(
    base: Base, good: Path, tmp_path: Path
) -> None:
    from loomsight.learn.job import LearnSettings, learn

    told: list[str] = []

    class Told(Progress):
        def say(self, text: str) -> None:
            told.append(text)

    settings = LearnSettings(
        steps=3, minutes=1, recipe=Recipe(tile=96, batch=2, arms=("stage1", "diffusion"))
    )
    out = tmp_path / "p"
    profile = learn(good, name="p", out=out, base=base.folder, settings=settings, progress=Told())
    assert any("no sample by" in line and "stage1" in line for line in told)
    assert "stage1" not in profile.card.recipe["arms"]  # type: ignore[operator]
    woven = base.card.networks["segmenter"]["types"]
    own = profile.card.network.settings["types"]
    assert isinstance(woven, list)
    assert isinstance(own, list)
    assert set(woven) - set(DRAWN_KINDS) - {UNKNOWN}, "types that only the loom knows"
    assert set(woven) <= set(own), "a fabric tells apart what its base does"


def test_fabrics_from_the_loom_have_good_and_defective_pictures_and_repeat() -> None:
    first, second = weave_fabrics(2, 0, Progress()), weave_fabrics(2, 0, Progress())
    assert [bool(picture.mask.any()) for picture in first[:4]] == [False, True, False, True]  # type: ignore[union-attr]
    assert all((a.image == b.image).all() for a, b in zip(first, second, strict=True))


def test_recipes_are_read_as_they_are_written() -> None:
    assert arms_of("drawn+stage1+2") == ("drawn", "stage1+2")
    assert arms_of("stage1+drawn") == ("stage1", "drawn")
    assert arms_of("stage1+2") == ("stage1+2",)
    assert arms_of("3drawn+stage1+2") == ("drawn", "drawn", "drawn", "stage1+2")
    assert Recipe(arms=arms_of("3drawn+stage1+2")).name == "3drawn+stage1+2"


def test_a_detector_is_put_into_a_base_beside_what_is_there(base: Base, tmp_path: Path) -> None:
    out = tmp_path / "base"
    shutil.copytree(base.folder, out)
    small = DetectorSettings(tile=128, batch=2)
    made = train_network("detector", None, out=out, settings=TINY, detector=small)
    assert made.arms == base.arms, "the generators are still there"
    assert made.card.networks["detector"]["tile"] == 128
    assert made.card.provenance["seed"] == 0
    facts = made.card.provenance["detector"]
    assert isinstance(facts, dict)
    assert facts["steps"] == 6
    assert facts["skipped_steps"] == 0
    assert "after" not in facts, "it began from nothing"
    further = train_network("detector", None, out=out, settings=TINY, detector=small)
    told = further.card.provenance["detector"]
    assert isinstance(told, dict)
    assert told["after"] == facts, "it went on from the first one"
    before, after = base.weights("segmenter"), made.weights("segmenter")
    assert all(np.array_equal(before[key], after[key]) for key in before)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt.*not part of it"):
        train_network("detector", None, out=out, settings=TINY, detector=small)
    (out / "notes.txt").unlink()
    longer = TINY.model_copy(update={"steps": 8})
    again = train_network("segmenter", None, out=out, settings=longer)
    assert "detector" in again.card.networks
    assert again.card.networks["segmenter"]["types"] == base.card.networks["segmenter"]["types"]
    assert any(not np.array_equal(before[key], value) for key, value in again.weights("segmenter").items())


def _ends(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


def _boxed(folder: Path) -> Path:
    """Defective pictures alone, with boxes."""
    rng = np.random.default_rng(0)
    for number in range(3):
        write_png(
            folder / f"known/images/{number}.png", weave(ClothSpec.random(rng), 160, 200, rng, ()).image
        )
        (folder / "known/labels").mkdir(exist_ok=True)
        (folder / f"known/labels/{number}.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    return folder / "known"


@pytest.mark.parametrize("which", ["detector", "segmenter"])
def test_known_fabrics_without_a_good_picture_are_enough(
    which: Literal["detector", "segmenter"], base: Base, tmp_path: Path
) -> None:
    shutil.copytree(base.folder, tmp_path / "base")
    known = _boxed(tmp_path)
    made = train_network(
        which, known, out=tmp_path / "base", settings=TINY, detector=DetectorSettings(batch=2)
    )
    facts = made.card.provenance[which]
    assert isinstance(facts, dict)
    assert facts["steps"] == 6


def test_a_resnet_begins_with_published_weights_and_a_fabric_goes_on_from_it(
    base: Base, tmp_path: Path
) -> None:
    from loomsight.detection import rtdetr

    torch.manual_seed(0)
    rtdetr.build("resnet18", ("hole",)).network.save_pretrained(tmp_path / "published")
    out = tmp_path / "base"
    shutil.copytree(base.folder, out)
    words = ["train", "detector", "--out", str(out), "--known", str(_boxed(tmp_path)), "--steps", "1"]
    words += ["--form", "resnet18", "--weights", str(tmp_path / "published/model.safetensors")]
    assert _ends(words) == 0
    made = Base.open(out)
    assert made.card.networks["detector"]["form"] == "resnet18"
    followed = as_in_base(DetectorSettings(), made)
    assert (followed.form, followed.tile) == ("resnet18", 160)
    assert base_detector(made, followed.form) is not None
    assert as_in_base(DetectorSettings(form="lite0"), made).form == "lite0", "asked for"


def test_train_detector_refuses_what_cannot_be_before_it_trains(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine", encoding="utf-8")
    for words, said in (
        (["train", "detector", "--out", str(tmp_path / "full")], "no base"),
        (
            ["train", "detector", "--out", str(tmp_path / "b"), "--known", str(tmp_path / "none")],
            "no such folder",
        ),
        (["train", "segmenter", "--out", str(tmp_path / "b"), "--minutes", "0"], "above 0"),
        (["train", "detector", "--out", str(tmp_path / "b"), "--weights", "w"], "give --form"),
        (
            ["train", "detector", "--out", str(tmp_path / "b"), "--form", "resnet18", "--weights", "w"],
            "no such file",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "full/notes.txt").read_text(encoding="utf-8") == "mine"
