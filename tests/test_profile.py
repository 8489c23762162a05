import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.detection import deeplab
from loomsight.errors import ProfileError, StorageError, UsageError
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.learn.saving import check_name, check_target, save_profile
from loomsight.profile import Profile
from loomsight.runtime.engine import TorchEngine

POINT = OperatingPoint(
    threshold=0.7,
    promised=2.0,
    unit="100 m",
    megapixels_seen=3.0,
    alarms_allowed=4.0,
    alarms_seen=3,
    extrapolated=False,
    min_area=3,
    merge_gap=2,
)


def save(folder: Path, **more: Any) -> Profile:
    picture = np.full((8, 9), 90, np.uint8)
    given = {
        "name": "twill 22/1 grey".replace("/", "-"),
        "form": "lite",
        "weights": {"head": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)},
        "operating_point": POINT,
        "mm_per_px": 0.25,
        "texture": {"centre": np.linspace(0, 1, 5, dtype=np.float32)},
        "texture_facts": {"backbone": "lite0"},
        "training": {"steps": 400},
        "samples": [picture, picture],
        "report": "<p>learned</p>",
    }
    return save_profile(folder, **(given | more))


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the card as somebody would who knows how it is protected."""
    card = json.loads((folder / "profile.json").read_text())
    change(card)
    data = json.dumps(card).encode()
    (folder / "profile.json").write_bytes(data)
    (folder / "profile.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  profile.json\n")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles") / "twill"
    save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "moved here"))


def test_all_that_was_learned_comes_back_also_from_another_place(folder: Path) -> None:
    profile = Profile.open(folder)
    assert (profile.name, profile.threshold, profile.scale) == ("twill 22-1 grey", 0.7, 0.25)
    assert profile.card.operating_point == POINT
    assert profile.card.training == {"steps": 400}
    assert profile.card.texture == {"backbone": "lite0"}
    assert torch.equal(profile.weights()["head"], torch.arange(6.0).reshape(2, 3))
    assert np.array_equal(profile.texture()["centre"], np.linspace(0, 1, 5, dtype=np.float32))
    assert profile.read("report.html") == b"<p>learned</p>"
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["01.png", "02.png"]


def test_sha256sum_can_check_the_card(folder: Path) -> None:
    digest, name = (folder / "profile.sha256").read_text().split()
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@settings(max_examples=40)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_noticed_and_its_file_is_named(saved: Path, data: st.DataObject) -> None:
    files = sorted(path for path in saved.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        with pytest.raises(ProfileError) as error:
            Profile.open(saved)
    finally:
        path.write_bytes(whole)
    # The card and its hash vouch for each other: the message names the card for either.
    assert ("profile.json" if path.name == "profile.sha256" else path.name) in str(error.value)
    assert "\n" not in str(error.value)
    Profile.open(saved)


@pytest.mark.parametrize(
    "name", ["profile.json", "profile.sha256", "weights.safetensors", "texture.safetensors", "samples/01.png"]
)
def test_a_missing_or_cut_off_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ProfileError, match=r"profile\.json" if "profile" in name else name):
        Profile.open(folder)
    path.unlink()
    with pytest.raises(ProfileError, match=rf"incomplete.*{name}.*missing"):
        Profile.open(folder)


def test_a_file_that_changes_after_opening_is_noticed_when_it_is_used(folder: Path) -> None:
    profile = Profile.open(folder)
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ProfileError, match=r"weights\.safetensors"):
        profile.weights()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "samples/../../secret", "a\\b", "C:x", "", "."]
)
def test_a_card_that_leads_out_of_its_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"s")
    entry = {"sha256": hashlib.sha256(b"s").hexdigest(), "size": 1}
    reseal(folder, lambda card: card["files"].update({name: entry}))
    with pytest.raises(ProfileError, match="refused"):
        Profile.open(folder)


@pytest.mark.parametrize("name", ["report.html", "samples"])
def test_a_link_is_refused(folder: Path, name: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(ProfileError, match=r"refused.*link"):
        Profile.open(folder)


def test_a_newer_version_is_told_from_damage(folder: Path) -> None:
    reseal(folder, lambda card: card.update(schema_version=2, something="new"))
    with pytest.raises(ProfileError, match=r"newer version.*update loomsight"):
        Profile.open(folder)
    (folder / "profile.sha256").write_text("sealed in another way")
    with pytest.raises(ProfileError, match="newer version"):
        Profile.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"operating_point": {"threshold": 1.5}},
        {"mm_per_px": -1},
        {"unheard": "of"},
        {"schema_version": "one"},
        {"files": {}},
    ],
)
def test_an_impossible_card_is_one_line(folder: Path, change: dict[str, Any]) -> None:
    def apply(card: dict[str, Any]) -> None:
        for key, value in change.items():
            card[key] = card[key] | value if isinstance(value, dict) and value else value

    reseal(folder, apply)
    with pytest.raises(ProfileError) as error:
        Profile.open(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00", '{"schema_version": 1}'])
def test_a_card_that_is_none_is_one_line(folder: Path, text: str) -> None:
    data = text.encode()
    (folder / "profile.json").write_bytes(data)
    (folder / "profile.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  profile.json\n")
    with pytest.raises(ProfileError) as error:
        Profile.open(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../elsewhere/roll"),
        ("alarms_allowed", 0.0),
        ("megapixels_seen", -1.0),
        ("promised", 0.0),
    ],
)
def test_a_card_that_would_lead_elsewhere_or_nowhere_is_refused(
    folder: Path, field: str, value: str | float
) -> None:
    def change(card: Any) -> None:
        (card if field == "name" else card["operating_point"])[field] = value

    reseal(folder, change)
    with pytest.raises(ProfileError) as error:
        Profile.open(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_profile_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="does not exist"):
        Profile.open(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ProfileError, match="no folder"):
        Profile.open(tmp_path / "file")
    with pytest.raises(ProfileError, match="this is no profile"):
        Profile.open(tmp_path)


def test_the_engine_scores_as_the_network_that_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = deeplab.build("lite", pretrained=False)
    profile = save(tmp_path / "p", weights=network.state_dict())
    picture = np.random.default_rng(0).integers(0, 256, (70, 90), np.uint8)
    assert np.array_equal(
        Profile.open(profile.folder).engine().score(picture), TorchEngine(network).score(picture)
    )


def test_weights_of_another_network_and_unknown_networks_are_refused(folder: Path) -> None:
    with pytest.raises(ProfileError, match=r"weights\.safetensors.*not the weights of its network"):
        Profile.open(folder).engine()
    reseal(folder, lambda card: card["network"].update(name="transformer"))
    with pytest.raises(ProfileError, match="does not know its network"):
        Profile.open(folder).engine()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="head"):
        save(tmp_path / "p", weights={"head": torch.tensor([1.0, float("nan")])})
    assert list(tmp_path.iterdir()) == []


def test_only_a_profile_is_replaced(folder: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        save(folder)
    save(folder, name="newer", replace=True)
    assert Profile.open(folder).name == "newer"
    (folder / "good").mkdir()
    (folder / "good/only.png").write_bytes(b"a picture that nobody has twice")
    with pytest.raises(UsageError, match=r"only\.png.*not part of it"):
        save(folder, replace=True)
    assert (folder / "good/only.png").is_file()
    own = folder.parent / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no profile"):
        save(own, replace=True)
    assert (own / "thesis.txt").read_text() == "years of work"
    check_target(folder.parent / "new")
    with pytest.raises(StorageError, match="a file is where its folder should be"):
        check_target(own / "thesis.txt" / "below")  # said before the learning, not after
    with pytest.raises(UsageError, match="a file of that name"):
        check_target(own / "thesis.txt")


@given(name=st.text(max_size=90))
def test_a_name_that_is_taken_can_be_a_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    try:
        check_name(name)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017, both outcomes are right
        return
    parent = tmp_path_factory.getbasetemp() / "names"
    (parent / name).mkdir(parents=True, exist_ok=True)
    assert (parent / name).parent == parent
    assert (parent / name).name == name


@pytest.mark.parametrize("name", ["twill", "斜纹布 3", "a.b-c_d", "Köper", "7"])
def test_names_of_mills(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "a\\b", "..", ".hidden", "-x", "a ", "a.", "con", "NUL.x", "a\nb", "x" * 81]
)
def test_names_that_some_system_cannot_hold(name: str) -> None:
    with pytest.raises(UsageError, match="bad name"):
        check_name(name)
