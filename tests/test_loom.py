"""The loom: structures as drafted, defects where their masks say, the same bytes for the same seed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.errors import UsageError
from loomsight.fabric.types import DEFECT_TYPES
from loomsight.loom import (
    PRESETS,
    STRUCTURES,
    WOVEN_KINDS,
    Cloth,
    ClothSpec,
    DefectSpec,
    preset,
    weave,
    weave_roll,
)
from loomsight.loom.faults import FAULTS, WovenKind, kinds_of
from loomsight.loom.weaves import Structure, construction, lift_plan


def spec_of(structure: Structure, *, grey: bool = True, **other: Any) -> ClothSpec:
    pitch = 12.0 if construction(structure) == "knitted" or structure == "gauze" else 22.0
    return ClothSpec(structure=structure, grey=grey, ends_per_cm=pitch, picks_per_cm=pitch, **other)


def change(cloth: Cloth, twin: Cloth) -> np.ndarray:
    difference = np.abs(cloth.image.astype(float) - twin.image)
    return difference if difference.ndim == 2 else difference.max(axis=2)


@pytest.mark.parametrize(
    ("structure", "over", "longest_float"),
    [
        ("plain", 1 / 2, 1),
        ("twill 2/1", 2 / 3, 2),
        ("twill 2/2", 1 / 2, 2),
        ("twill 3/1", 3 / 4, 3),
        ("satin 5", 4 / 5, 4),
        ("basket 2/2", 1 / 2, 2),
        ("herringbone", 1 / 2, 2),
        ("broken twill", 3 / 4, 3),
        ("satin 8", 7 / 8, 7),
        ("dobby", 39 / 96, 1),
    ],
)
def test_lift_plans_are_the_drafts(structure: Structure, over: float, longest_float: int) -> None:
    plan = lift_plan(structure)
    assert plan.mean() == pytest.approx(over)
    assert plan.any(axis=0).all(), "every end comes up"
    assert (~plan).any(axis=0).all(), "every end goes down: it is bound in"
    end = np.tile(plan[:, 0], 3).astype(int)
    runs = [len(list(run)) for up, run in itertools.groupby(end) if up]
    assert max(runs) == longest_float


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if construction(s) != "nonwoven"])
def test_the_weave_repeats_at_its_count(structure: Structure) -> None:
    """A thread counter laid on the picture finds the ends per cm of the specification."""
    spec = spec_of(structure, thickness_noise=0.02, tone_noise=0.01)
    image = weave(spec, 256, 512, np.random.default_rng(0)).image.astype(float)
    power = (np.abs(np.fft.rfft(image - image.mean(), axis=1)) ** 2).mean(axis=0)
    repeat = lift_plan(structure).shape[1] * spec.px_per_end
    harmonics = {round(512 / repeat * k) for k in range(1, 17)}
    near = sorted({h + d for h in harmonics for d in (-2, -1, 0, 1, 2) if 0 < h + d < power.size})
    assert power[near].sum() > 1.5 * len(near) / power.size * power[1:].sum()
    assert int(np.argmax(power[8:])) + 8 in near


def test_warp_faced_cloth_shows_the_warp() -> None:
    colours = {"warp_colour": (220.0, 40.0, 40.0), "weft_colour": (40.0, 40.0, 220.0)}
    red = {}
    for structure in ("twill 3/1", "plain"):
        image = weave(ClothSpec(structure=structure, **colours), 128, 128, np.random.default_rng(0)).image
        red[structure] = float(image[:, :, 0].mean() / image[:, :, 2].mean())
    assert red["twill 3/1"] > 1.8
    assert 0.7 < red["plain"] < 1.4


@pytest.mark.parametrize(
    ("kind", "structure"),
    [(k, s) for k in WOVEN_KINDS for s in STRUCTURES if construction(s) in FAULTS[k].made],
)
def test_a_defect_is_in_its_mask_and_nowhere_else(kind: WovenKind, structure: Structure) -> None:
    for seed in range(3):
        edge = "left" if kind == "selvedge cut" else "none"
        spec = spec_of(structure, grey=seed != 1, selvedges=edge)
        defect = DefectSpec.random(
            np.random.default_rng(seed), spec, rows=(60, 130), width=192, kind=kind
        ).model_copy(update={"strength": 0.5 + 0.25 * seed})
        cloth = weave(spec, 192, 192, np.random.default_rng(seed), [defect])
        twin = weave(spec, 192, 192, np.random.default_rng(seed))
        assert not twin.mask.any()
        assert twin.defects == ()
        changed = change(cloth, twin)
        energy = np.square(changed)
        assert energy[cloth.mask].sum() >= 0.95 * energy.sum()
        assert (changed[cloth.mask] >= 2).mean() >= 0.5
        assert changed.max() >= 8, "somebody must be able to see it"
        (found,) = cloth.defects
        assert found.type == kind
        assert found.type in DEFECT_TYPES
        assert found.area == cloth.mask.sum()
        x0, y0, x1, y1 = found.box
        assert cloth.mask[y0:y1, x0:x1].sum() == found.area
        assert cloth.mask[y0].any()
        assert cloth.mask[:, x1 - 1].any()
        assert found.place.millimetres == pytest.approx(defect.x * spec.mm_per_px)


def test_a_broken_end_runs_with_the_warp_and_a_missing_pick_with_the_weft() -> None:
    spec = spec_of("twill 2/2")
    for kind, upright in (("broken end", True), ("missing pick", False)):
        defect = DefectSpec(type=kind, y=128, x=128, length_mm=12)
        x0, y0, x1, y1 = weave(spec, 256, 256, np.random.default_rng(0), [defect]).defects[0].box
        long, short = (y1 - y0, x1 - x0) if upright else (x1 - x0, y1 - y0)
        assert long == pytest.approx(120, abs=25)
        assert short < 40


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(16, 90), st.integers(16, 200))
def test_any_random_cloth(seed: int, height: int, width: int) -> None:
    spec = ClothSpec.random(np.random.default_rng(seed))
    first, again = (weave(spec, height, width, np.random.default_rng(seed), "random") for _ in range(2))
    assert first.image.dtype == np.uint8
    assert first.image.shape == ((height, width) if spec.grey else (height, width, 3))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert first.defects == again.defects
    assert first.image.std() > 1.5
    assert ClothSpec.parse(spec.model_dump()) == spec


def test_another_seed_is_another_piece_of_the_same_cloth() -> None:
    spec = spec_of("plain")
    one, other = (weave(spec, 64, 64, np.random.default_rng(seed)).image for seed in (1, 2))
    assert not np.array_equal(one, other)
    assert abs(float(one.mean()) - float(other.mean())) < 12


EVERYTHING = {
    "twist": 8.0, "hairiness": 0.5, "specks": 4.0, "ends_per_dent": 3, "barre": 0.02, "bow": 0.02,
    "skew": 0.03, "tension_waves_mm": 0.8, "print": "leaves", "print_mm": 5.0, "selvedges": "left",
    "gradient": 0.2, "jitter_px": 0.5, "streaks": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("height", "other"), [(96, {}), (160, {}), (96, EVERYTHING), (160, {"structure": "fleece"})]
)
def test_a_roll_goes_on_from_frame_to_frame(height: int, other: dict[str, Any]) -> None:
    """Whatever the camera's frame, the roll is the same, to the bit: yarns, noise, defects, masks."""
    spec = spec_of("herringbone", grey=False).model_copy(update=other)
    metres = 480 * spec.mm_per_px / 1000
    whole, frames = (
        list(
            weave_roll(
                spec,
                np.random.default_rng(4),
                metres=metres,
                frame_height=rows,
                width=256,
                defects_per_m2=20000,
            )
        )
        for rows in (480, height)
    )
    assert len(whole) == 1
    assert len(frames) == 480 // height
    assert np.array_equal(np.vstack([frame.image for frame in frames]), whole[0].image)
    assert np.array_equal(np.vstack([frame.mask for frame in frames]), whole[0].mask)
    seen = {defect.number for frame in frames for defect in frame.defects}
    assert seen == {defect.number for defect in whole[0].defects}
    assert len(seen) > 5


def test_irregularity_within_tolerance_is_good_cloth() -> None:
    spec = spec_of("twill 2/2", grey=False, **EVERYTHING)
    plain = spec_of("twill 2/2", grey=False)
    cloth, even = (weave(one, 200, 300, np.random.default_rng(0)) for one in (spec, plain))
    assert not cloth.mask.any()
    assert change(cloth, even).mean() > 10, "and it shows"


def test_a_print_repeats_at_its_size_and_a_selvedge_ends_the_cloth() -> None:
    spec = spec_of("plain", print="dots", print_mm=8.0, noise=0.5, thickness_noise=0.0, tone_noise=0.0)
    printed, plain = (
        weave(one, 200, 320, np.random.default_rng(0)).image.astype(float)
        for one in (spec, spec.model_copy(update={"print": "none"}))
    )
    ink = (plain - printed) > 20
    assert 0.05 < ink.mean() < 0.25
    assert (ink[:120] == ink[80:200]).mean() > 0.95
    edge = weave(spec_of("plain", selvedges="right"), 200, 320, np.random.default_rng(0)).image
    outside, inside = edge[:, 280:], edge[:, :200]
    assert outside.std() < 5 < inside.std()
    assert abs(float(outside.mean()) - float(inside.mean())) > 30


def test_bow_sags_the_picks_by_its_share_of_the_width() -> None:
    spec = spec_of("plain", noise=0.5, thickness_noise=0.0, tone_noise=0.0, lighting=0.0, fibre=0.0)
    flat, bowed = (
        weave(one, 200, 400, np.random.default_rng(0)).image.astype(float)
        for one in (spec, spec.model_copy(update={"bow": 0.03}))
    )
    moved = []
    for x in (4, 200):  # the row shift at the edge and in the middle that fits best
        fits = {d: np.abs(bowed[60:140, x] - flat[60 + d : 140 + d, x]).mean() for d in range(-12, 13)}
        moved.append(min(fits, key=fits.__getitem__))
    pitch = spec.px_per_pick * 2  # plain cloth is the same two picks on
    assert abs((moved[1] - moved[0] - 12 + pitch / 2) % pitch - pitch / 2) <= 1.5


def test_an_area_camera_darkens_its_corners_and_packs_its_pictures() -> None:
    spec = spec_of("plain", lighting=0.0)
    even = weave(spec, 200, 320, np.random.default_rng(0)).image.astype(float)
    area = spec.model_copy(update={"camera": "area", "vignetting": 0.5, "jpeg": 60})
    dark = weave(area, 200, 320, np.random.default_rng(0)).image.astype(float)
    assert dark[:40, :40].mean() < 0.7 * even[:40, :40].mean()
    assert dark[80:120, 140:180].mean() > 0.95 * even[80:120, 140:180].mean()


def test_a_damaged_roller_marks_each_turn_and_a_running_fault_crosses_frames() -> None:
    spec = spec_of("jersey")
    roll = list(
        weave_roll(spec, np.random.default_rng(5), metres=0.1, frame_height=128, width=256,
                   defects_per_m2=0, periodic_mm=20.0, running=True)
    )  # fmt: skip
    found = {d.number: d for cloth in roll for d in cloth.defects}
    running = [d for d in found.values() if d.length_mm > 50]
    assert len(running) == 1
    assert running[0].type in ("needle line", "sinker mark")
    assert sum(running[0].number in {d.number for d in cloth.defects} for cloth in roll) >= 5
    marks = sorted(d.place.metres for d in found.values() if d is not running[0])
    assert len(marks) in (5, 6)
    assert np.allclose(np.diff(marks), 0.02)
    assert len({d.place.millimetres for d in found.values() if d is not running[0]}) == 1


def test_a_cloth_has_only_faults_that_it_can_have() -> None:
    assert "ladder" in kinds_of(spec_of("jersey"))
    assert "missing pick" not in kinds_of(spec_of("jersey"))
    assert "slub" not in kinds_of(spec_of("fleece"))
    assert "selvedge cut" not in kinds_of(spec_of("plain"))
    with pytest.raises(UsageError, match="plain cannot have a ladder"):
        weave(spec_of("plain"), 64, 64, np.random.default_rng(0), [
            DefectSpec(type="ladder", y=32, x=32, length_mm=5)
        ])  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_weaves(name: str) -> None:
    cloth = weave(preset(name, np.random.default_rng(0)), 96, 160, np.random.default_rng(0), "random")
    assert cloth.image.std() > 2
    assert cloth.mask.any()


def test_a_preset_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="the nearest is denim"):
        preset("denin", np.random.default_rng(0))
    for name, wanted in (("woven", "woven"), ("knitted", "knitted")):
        made = {preset(name, np.random.default_rng(k)).construction for k in range(6)}
        assert made == {wanted}


def test_a_good_roll_is_good_and_a_bad_one_has_its_share() -> None:
    spec = spec_of("plain", mm_per_px=0.2, blur=0.5).model_copy(
        update={"ends_per_cm": 12.0, "picks_per_cm": 12.0}
    )
    for rate in (0.0, 2000.0):
        roll = weave_roll(spec, np.random.default_rng(1), metres=0.4, width=256, defects_per_m2=rate)
        numbers = {defect.number for cloth in roll for defect in cloth.defects}
        expected = rate * 0.4 * 256 * 0.2 / 1000
        assert len(numbers) == pytest.approx(expected, abs=4 * expected**0.5)


def test_what_cannot_be_woven_is_said() -> None:
    with pytest.raises(UsageError, match="at least 2 px wide"):
        ClothSpec.parse({"ends_per_cm": 80, "mm_per_px": 0.2})
    with pytest.raises(UsageError, match="nearest is cover"):
        ClothSpec.parse({"covre": 0.9})
    with pytest.raises(UsageError, match="smaller than 16 px"):
        weave(ClothSpec(), 8, 64, np.random.default_rng(0))
    with pytest.raises(UsageError, match="cannot weave a roll"):
        weave_roll(ClothSpec(), np.random.default_rng(0), metres=0)


def test_the_loom_needs_no_torch() -> None:
    code = "import sys, loomsight.loom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
