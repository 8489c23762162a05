"""Familiarity: the right fabric by name, strangers flagged, the promised rate of false flags, storage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from loomsight.errors import UsageError
from loomsight.loom import ClothSpec, weave
from loomsight.loom.weaves import Structure
from loomsight.texture.familiarity import Familiarity, mixed_fabrics
from loomsight.texture.gram import TextureEncoder

Codes = dict[str, NDArray[np.float32]]


class Mill:
    """Codes as cloth makes them: fabrics apart, and pictures of one fabric far apart along the light.

    Directions 0 to 2 are the light: they move every picture and say nothing about the fabric.
    """

    def __init__(self, seed: int = 0, *, light: float = 3.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._size, self._light = 40, light
        self._fabrics: dict[str, NDArray[np.float64]] = {}

    def pictures(self, fabric: str, count: int, *, spread: float = 0.1) -> NDArray[np.float32]:
        middle = self._fabrics.setdefault(fabric, self._rng.normal(0, 0.5, self._size))
        codes = middle + self._rng.normal(0, spread, (count, self._size))
        codes[:, :3] += self._rng.normal(0, self._light, (count, 3))
        return codes.astype(np.float32)


@pytest.fixture(scope="module")
def mill() -> Mill:
    return Mill()


@pytest.fixture(scope="module")
def known(mill: Mill) -> Codes:
    return {f"style {n}": mill.pictures(f"style {n}", 12) for n in range(6)}


def test_new_pictures_are_named_right_where_the_plain_distance_is_wrong(mill: Mill, known: Codes) -> None:
    familiarity = Familiarity.fit(known)
    right, plain = 0, 0
    for name in known:
        for code in mill.pictures(name, 10):
            right += familiarity.judge(code).fabric == name
            nearest = min(known, key=lambda other: np.linalg.norm(known[other] - code, axis=1).min())
            plain += nearest == name
    assert right == 60
    assert plain < 55  # the light alone would mislead


def test_strangers_are_flagged_and_known_cloth_is_not(mill: Mill, known: Codes) -> None:
    familiarity = Familiarity.fit(known)
    fresh = [familiarity.judge(code) for name in known for code in mill.pictures(name, 20)]
    strange = [familiarity.judge(code) for n in range(5) for code in mill.pictures(f"stranger {n}", 4)]
    assert np.mean([judgement.known for judgement in fresh]) > 0.85
    assert not any(judgement.known for judgement in strange)
    assert np.median([judgement.confidence for judgement in fresh]) > 0.8
    assert max(judgement.confidence for judgement in strange) < 0.5
    assert all(judgement.known == (judgement.confidence >= 0.5) for judgement in fresh + strange)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_rate_of_false_flags_is_the_one_asked_for(rate: float) -> None:
    flags = []
    for seed in range(6):
        mill = Mill(seed)
        familiarity = Familiarity.fit({f"{n}": mill.pictures(f"{n}", 15) for n in range(5)}, false_flags=rate)
        flags += [not familiarity.judge(code).known for n in range(5) for code in mill.pictures(f"{n}", 20)]
    # Held-back parts know a little less than the whole, so the limit is on the generous side.
    assert 0.2 * rate < np.mean(flags) < 1.6 * rate


def test_a_quiet_fabric_is_left_sooner_than_a_hairy_one() -> None:
    mill = Mill(3, light=0.0)
    known = {"twill": mill.pictures("twill", 20, spread=0.02), "wool": mill.pictures("wool", 20, spread=0.3)}
    familiarity = Familiarity.fit(known)
    step = np.zeros(40, np.float32)
    step[20:] = 0.12
    twill = [familiarity.judge(code + step) for code in mill.pictures("twill", 10, spread=0.02)]
    wool = [familiarity.judge(code + step) for code in mill.pictures("wool", 10, spread=0.3)]
    assert np.median([judgement.distance for judgement in twill]) > 1.25 * np.median(
        [judgement.distance for judgement in wool]
    )


def test_one_fabric_alone_can_be_familiar_too() -> None:
    mill = Mill(4, light=0.3)
    familiarity = Familiarity.fit({"twill": mill.pictures("twill", 20)})
    assert np.mean([familiarity.judge(code).known for code in mill.pictures("twill", 30)]) > 0.75
    assert not any(familiarity.judge(code).known for n in range(4) for code in mill.pictures(f"{n}", 3))


def test_what_cannot_be_told_is_refused_in_one_line(known: Codes) -> None:
    familiarity = Familiarity.fit(known)
    with pytest.raises(UsageError, match="another encoder"):
        familiarity.judge(np.zeros(7, np.float32))
    with pytest.raises(UsageError, match="three pictures"):
        Familiarity.fit({"a": np.zeros((2, 5)), "b": np.zeros((1, 5))})
    with pytest.raises(UsageError, match="three pictures"):
        Familiarity.fit({})
    with pytest.raises(UsageError, match="different encoders"):
        Familiarity.fit({"a": np.zeros((4, 5)), "b": np.zeros((4, 6))})


def test_copies_of_one_picture_do_not_break_the_fit(known: Codes) -> None:
    copies = np.repeat(known["style 0"][:1], 5, axis=0)
    judgement = Familiarity.fit({"copied": copies}).judge(copies[0])
    assert judgement.known
    assert np.isfinite(judgement.confidence)
    assert Familiarity.fit(known | {"copied": copies + 5}).judge(copies[0] + 5).fabric == "copied"
    assert Familiarity.fit(known | {"single": copies[:1] + 9}).judge(copies[0] + 9).fabric == "single"


def test_it_is_stored_as_plain_arrays_and_judges_the_same_afterwards(
    tmp_path: Path, mill: Mill, known: Codes
) -> None:
    familiarity = Familiarity.fit(known | {"köper 2/1": mill.pictures("twill", 4)})
    save_file(familiarity.to_arrays(), tmp_path / "familiarity.safetensors")
    again = Familiarity.from_arrays(load_file(tmp_path / "familiarity.safetensors"))
    assert again.names == familiarity.names
    for code in (*mill.pictures("style 2", 3), *mill.pictures("stranger", 3), *mill.pictures("twill", 1)):
        before, after = familiarity.judge(code), again.judge(code)
        assert (after.fabric, after.known) == (before.fabric, before.known)
        assert after.confidence == pytest.approx(before.confidence, abs=1e-3)
    with pytest.raises(KeyError):
        Familiarity.from_arrays({})


def test_mixed_fabrics_are_pointed_out_and_one_fabric_is_not() -> None:
    rng = np.random.default_rng(0)
    cloth, other = rng.normal(0, 0.1, (12, 30)), rng.normal(0, 0.1, (3, 30)) + 1
    assert mixed_fabrics(cloth) == []
    mixed = np.concatenate((cloth[:5], other, cloth[5:]))
    assert mixed_fabrics(mixed) == [5, 6, 7]
    assert mixed_fabrics(np.concatenate((cloth, cloth[:1]))) == []  # a copy is no stranger
    assert mixed_fabrics(cloth[:3]) == mixed_fabrics(cloth[:0]) == []
    assert mixed_fabrics(np.repeat(cloth[:1], 6, axis=0)) == []


def test_woven_cloth_from_picture_to_judgement() -> None:
    encoder = TextureEncoder("lite0", patches=2)
    structures: tuple[Structure, ...] = ("plain", "twill 2/2", "jersey")

    def pictures(structure: Structure, seeds: range) -> NDArray[np.float32]:
        spec = ClothSpec(structure=structure, ends_per_cm=18, picks_per_cm=16)
        return encoder.codes(weave(spec, 160, 192, np.random.default_rng(seed)).image for seed in seeds)

    familiarity = Familiarity.fit({structure: pictures(structure, range(5)) for structure in structures})
    for structure in structures:
        judgements = [familiarity.judge(code) for code in pictures(structure, range(10, 13))]
        assert {judgement.fabric for judgement in judgements} == {structure}
        assert sum(judgement.known for judgement in judgements) >= 2
    satin = pictures("satin 5", range(3))
    assert not any(familiarity.judge(code).known for code in satin)
    assert mixed_fabrics(np.concatenate((pictures("plain", range(6)), satin[:2]))) == [6, 7]
