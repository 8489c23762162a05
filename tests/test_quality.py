"""The quality gate: defects pass, and each way of being no good sample is refused by its name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.evaluation.fidelity import Memory, grown
from loomsight.fabric.types import Mask, Picture
from loomsight.loom import DRAWN_KINDS, ClothSpec, draw_defect, weave
from loomsight.synthesis.paste import DefectPart, cut_parts, paste
from loomsight.synthesis.patches import Look
from loomsight.synthesis.quality import GateSettings, QualityGate, visibility
from loomsight.synthesis.samples import Sample

GATE = QualityGate()


def cloth(seed: int, size: int = 112) -> Picture:
    return weave(ClothSpec(), size, size, np.random.default_rng(seed)).image


def drawn(seed: int, kind: str | None = None) -> Sample:
    rng, good = np.random.default_rng(seed), cloth(seed)
    image, mask = draw_defect(good, kind or DRAWN_KINDS[int(rng.integers(len(DRAWN_KINDS)))], rng)
    return Sample(good, image, mask, 0, "drawn")


def changed_by(good: Picture, mask: Mask, to: np.ndarray) -> Sample:
    image = np.where(mask[..., None], np.clip(to, 0, 255), good).astype(np.uint8)
    return Sample(good, image, mask, 0, "test")


def square(side: int = 20) -> Mask:
    mask = np.zeros((112, 112), bool)
    mask[40 : 40 + side, 50 : 50 + side] = True
    return mask


def parts(seeds: range) -> list[DefectPart]:
    found = []
    for seed in seeds:
        sample = drawn(seed, ("hole", "oil stain", "slub", "knot")[seed % 4])
        found.append(cut_parts(sample.image, sample.mask, "loom", join=25)[0])
    return found


def test_nearly_all_drawn_defects_pass() -> None:
    gate = QualityGate(GateSettings(margin=112))  # the loom shades the cloth around some of its defects
    refused = [reason for seed in range(60) if (reason := gate(drawn(seed)))]
    assert len(refused) <= 3, refused


@settings(max_examples=15)
@given(seed=st.integers(0, 500))
def test_what_changed_nothing_is_invisible(seed: int) -> None:
    sample = drawn(seed)
    same = replace(sample, image=sample.cloth)
    assert visibility(same) == 0
    if sample.mask.mean() < 0.6:
        assert GATE(same) == "invisible"


@settings(max_examples=15)
@given(seed=st.integers(0, 500))
def test_a_defect_beside_the_cloth_is_refused(seed: int) -> None:
    sample = drawn(seed)
    bare = np.full_like(sample.cloth, 250)
    spot = changed_by(bare, square(), bare - 120.0)
    assert GATE(spot) == "off the cloth"


@settings(max_examples=15)
@given(seed=st.integers(0, 500))
def test_camera_noise_is_invisible(seed: int) -> None:
    good = cloth(seed)
    noise = np.random.default_rng(seed).normal(0, 4, good.shape[:2])[..., None]
    assert GATE(changed_by(good, square(), good + noise)) == "invisible"


def test_the_darker_a_spot_the_more_visible_it_is() -> None:
    good = cloth(3)
    strengths = [visibility(changed_by(good, square(8), good * share)) for share in (0.97, 0.8, 0.5, 0.1)]
    assert strengths == sorted(strengths)
    assert strengths[0] < GateSettings().visible < strengths[-1]


def test_cloth_in_the_place_of_cloth_is_no_defect() -> None:
    refused = 0
    for seed in range(12):
        good = cloth(seed)
        refused += GATE(changed_by(good, square(30), np.roll(good, (17, 23), (0, 1)))) is not None
    assert refused >= 7


def test_a_coloured_stain_of_equal_brightness_is_visible() -> None:
    good = np.repeat(cloth(4).mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    assert GATE(changed_by(good, square(), good + np.array([40.0, -40.0, 0.0]))) is None


def test_a_change_far_from_the_mask_is_refused_and_at_its_rim_is_not() -> None:
    sample = drawn(7, "hole")
    rows, columns = np.nonzero(sample.mask)
    rim, far = sample.image.copy(), sample.image.copy()
    rim[rows.min() - 2, columns[0]] ^= 1
    far[(int(rows.mean()) + 56) % 112, (int(columns.mean()) + 56) % 112, 1] ^= 1
    assert GATE(sample) is None
    assert GATE(replace(sample, image=rim)) is None
    assert GATE(replace(sample, image=far)) == "background changed"


def test_a_mask_beside_the_defect_or_much_too_large_does_not_fit() -> None:
    good, spot = cloth(8), square(6)
    sample = changed_by(good, spot, good * 0.1)
    assert GATE(sample) is None
    assert GATE(replace(sample, mask=square(40))) in ("mask does not fit", "invisible")
    wide = QualityGate(GateSettings(margin=30, visible=0))
    assert wide(replace(sample, mask=np.roll(spot, 12, axis=0))) == "mask does not fit"


def test_a_speck_is_too_small_and_a_rash_too_large() -> None:
    good = cloth(9)
    assert GATE(changed_by(good, square(2), good * 0.1)) == "too small"
    assert GATE(changed_by(good, ~square(20), good * 0.1)) == "too large"
    assert QualityGate(GateSettings(smallest=4))(changed_by(good, square(2), good * 0.1)) is None


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory.of(parts(range(32)))


@pytest.mark.parametrize("wider", [False, True])
def test_a_known_defect_set_into_other_cloth_is_a_copy_also_mirrored(memory: Memory, wider: bool) -> None:
    gate, copies = QualityGate(GateSettings(visible=0, unusual=0, agreement=0), memory), 0
    for number, part in enumerate(parts(range(12))):
        good = cloth(500 + number)
        # As a generator does it: relative to the cloth it is learned from, and then to the new one.
        image = Look.of(good).decode(Look.of(part.image, part.mask).encode(part.image))
        mask = grown(part.mask, 1) if wider else part.mask
        if number % 2:
            image, mask = image[:, ::-1], mask[:, ::-1]
        made, whole = good.copy(), np.zeros(good.shape[:2], bool)
        window = np.s_[: mask.shape[0], : mask.shape[1]]
        whole[window] = mask[:112, :112]
        made[whole] = image[:112, :112][mask[:112, :112]]
        copies += gate(Sample(good, made, whole, 0, "stage1")) == "copy"
    assert copies >= 8


def test_independent_defects_are_no_copies(memory: Memory) -> None:
    gate = QualityGate(memory=memory)
    fresh = [drawn(seed, ("hole", "oil stain", "slub", "knot")[seed % 4]) for seed in range(100, 130)]
    assert sum(gate(sample) == "copy" for sample in fresh) <= 3


def test_one_defect_is_no_memory() -> None:
    with pytest.raises(ValueError, match="neighbour"):
        Memory.of(parts(range(1)))


def test_a_pasted_defect_passes_where_copies_are_not_looked_for() -> None:
    rng, found = np.random.default_rng(0), parts(range(20))
    refused = []
    for number, part in enumerate(found):
        good = cloth(600 + number)
        image, mask = paste(part, good, rng)
        refused.append(GATE(Sample(good, image, mask, 0, "paste")))
    assert sum(reason is not None for reason in refused) <= 2, refused


def test_an_invisible_part_beside_a_visible_one_is_refused() -> None:
    good, spot, nothing = cloth(5), square(10), np.zeros((112, 112), bool)
    nothing[80:92, 80:92] = True
    sample = changed_by(good, spot, good * 0.3)
    assert GATE(sample) is None
    assert GATE(replace(sample, mask=spot | nothing)) == "invisible"
