"""Fusion: what it may touch, what it learns, and that the mask says what changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from loomsight.fabric.images import to_rgb
from loomsight.fabric.types import LabelledPicture
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.edits import refine_mask
from loomsight.synthesis.fusion import (
    CompositeMaker,
    FusionNetwork,
    FusionSettings,
    build_fusion,
    fuse,
    hinge_reconstruction,
    region_around,
    train_fusion,
)
from loomsight.synthesis.multistage import Refined, Stage1, Stage12
from loomsight.synthesis.patches import PatchMaker
from loomsight.synthesis.repeat import continued
from loomsight.synthesis.texture_gan import TextureGanSettings, build_generator

SMALL = FusionSettings(width=8, batch=4)


class Blobs(Stage1):
    """A stage 1 whose defects are dark rectangles without weave, and whose spots are empty."""

    def __init__(self) -> None:
        super().__init__(build_generator(TextureGanSettings(code_size=4, code_dims=2)))

    def generate(
        self, codes: NDArray[np.float32], shapes: Sequence[int], rng: np.random.Generator, *, cells: int = 4
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        edits = np.zeros((len(codes), 4, 16 * cells, 16 * cells), np.float32)
        edits[:, :3] = -0.6
        likely = np.zeros((len(codes), 16 * cells, 16 * cells), np.float32)
        likely[np.array(shapes) > 0, 20:36, 16:30] = 0.9
        return edits, likely


@pytest.fixture(scope="module")
def patches() -> PatchMaker:
    rng = np.random.default_rng(0)
    known = []
    for name, spec in {"plain": ClothSpec(grey=True), "twill": ClothSpec(structure="twill 2/2")}.items():
        for number in range(2):
            cloth = weave(spec, 128, 160, rng, defects="random" if number else ())
            known.append(LabelledPicture(cloth.image, cloth.mask, fabric=name))
    return PatchMaker(known, {name: np.zeros(4, np.float32) for name in ("plain", "twill")}, size=64)


@pytest.fixture(scope="module")
def untrained() -> FusionNetwork:
    torch.manual_seed(0)
    network = build_fusion(SMALL)
    with torch.no_grad():
        for parameter in network.finish[1].parameters():  # they begin as 0
            parameter.normal_(std=0.1)
    return network


@pytest.mark.parametrize("side", [96, 160])
@pytest.mark.parametrize("grey", [True, False])
def test_samples_have_a_defect_and_leave_the_cloth_around_it_bit_for_bit(
    untrained: FusionNetwork, side: int, grey: bool
) -> None:
    rng = np.random.default_rng(3)
    windows = [to_rgb(weave(ClothSpec(grey=grey), side, side, rng).image) for _ in range(6)]
    before = [window.copy() for window in windows]
    samples = Stage12(Blobs(), untrained).make(windows, np.zeros(4, np.float32), np.random.default_rng(1))
    assert [sample.origin for sample in samples] == ["stage1+2"] * 6
    assert len({sample.shape for sample in samples}) > 2
    for sample, window in zip(samples, before, strict=True):
        assert sample.image.dtype == np.uint8
        assert np.array_equal(sample.cloth, window)
        far = ~region_around(sample.mask, 24)  # the region reaches 10 px, the refined mask may be smaller
        assert np.array_equal(sample.image[far], window[far])
        assert not grey or bool((sample.image[..., :1] == sample.image[..., 1:]).all())
        if sample.shape == 0:
            assert not sample.mask.any()
            assert np.array_equal(sample.image, window)
            continue
        assert sample.mask.any()
        assert (sample.image != sample.cloth).any(axis=2)[sample.mask].mean() > 0.9
    again = Stage12(Blobs(), untrained).make(windows, np.zeros(4, np.float32), np.random.default_rng(1))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(samples, again, strict=True))


def test_outside_the_region_the_fused_picture_is_the_cloth_and_inside_it_is_what_the_network_says(
    untrained: FusionNetwork,
) -> None:
    cloth, defect = torch.rand(2, 3, 70, 90) - 0.5, torch.rand(2, 3, 70, 90)
    mask, region = torch.zeros(2, 1, 70, 90), torch.zeros(2, 1, 70, 90)
    region[..., 20:50, 30:60] = 1
    mask[..., 30:40, 40:50] = 1
    with torch.inference_mode():
        window = cloth * (1 - region)
        said, fused = fuse(untrained, cloth, window, defect=defect, mask=mask, region=region)
        blind, _ = fuse(untrained, window, window, defect=defect * mask, mask=mask, region=region)
    assert torch.equal(fused * (1 - region), cloth * (1 - region))
    inner = (slice(None), slice(None), slice(22, 48), slice(32, 58))  # past the two pixels that fade
    assert torch.allclose(fused[inner], said[inner], atol=1e-6)
    assert torch.equal(said, blind)  # it has not seen what the window hides
    edge = (fused[..., 20, 31:59] - cloth[..., 20, 31:59]).abs()
    assert bool((edge <= (said[..., 20, 31:59] - cloth[..., 20, 31:59]).abs() / 3 + 1e-6).all())


def test_hinge_reconstruction_counts_what_lies_beyond_the_margin() -> None:
    truth, weight = torch.zeros(1, 3, 2, 2), torch.tensor([[[[2.0, 1.0], [1.0, 0.0]]]])
    output = torch.zeros(1, 3, 2, 2)
    output[0, :, 0, 0] = torch.tensor([0.5, -0.2, 0.05])  # beyond 0.1: 0.4, 0.1, 0
    output[0, :, 1, 1] = 9.0  # weight 0
    loss = hinge_reconstruction(output, truth, weight, 0.1)
    assert loss.item() == pytest.approx(2 * (0.4 + 0.1 + 0) / 3 / 4)
    assert hinge_reconstruction(truth + 0.09, truth, weight, 0.1) == 0
    assert hinge_reconstruction(output, truth, weight * 0, 0.1) == 0


def test_the_refined_mask_is_what_changed() -> None:
    rng = np.random.default_rng(0)
    before = np.clip(rng.normal(128, 8, (64, 64, 1)), 0, 255).astype(np.uint8).repeat(3, 2)
    mask, region = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    region[10:54, 10:54] = True
    mask[20:40, 20:30] = True  # its lower half will not change …
    after = before.copy()
    after[20:30, 20:38] -= 60  # … eight columns beside its upper half will,
    after[48:52, 48:52] -= 60  # and something that does not touch it,
    after[:8] -= 60  # and something that lies outside the region
    refined = refine_mask(before, after, mask, region)
    assert refined[21:29, 21:37].all()
    assert not refined[33:].any()
    assert not refined[:, 41:].any()
    assert not refined[~region].any()
    assert not refine_mask(before, before, mask, region).any()
    assert not refine_mask(before, after, np.zeros_like(mask), region).any()


def test_threads_that_lie_otherwise_beside_the_defect_are_no_defect() -> None:
    rng = np.random.default_rng(0)
    before = weave(ClothSpec(), 96, 96, rng).image
    after = weave(ClothSpec(), 96, 96, rng).image  # the same cloth, other threads
    mask = np.zeros((96, 96), bool)
    mask[40:50, 40:50] = True
    after[mask] = 20
    refined = refine_mask(before, after, mask, region_around(mask, 10))
    assert refined[41:49, 41:49].all()
    assert (refined & ~region_around(mask, 1)).sum() < 0.1 * mask.sum()


def test_cloth_continues_into_the_blanked_region() -> None:
    rows, columns = np.mgrid[:96, :96]
    weave_of_7_by_6 = np.sin(2 * np.pi * rows / 7) * np.cos(2 * np.pi * columns / 6)
    cloth = np.repeat(weave_of_7_by_6[None], 3, 0).astype(np.float32) * 0.5
    region = np.zeros((96, 96), bool)
    region[30:60, 34:62] = True
    spoiled = np.where(region, np.float32(0.9), cloth)
    filled = continued(spoiled, region)
    assert np.array_equal(filled[:, ~region], cloth[:, ~region])
    assert np.abs(filled - cloth).max() < 0.02
    assert not continued(spoiled, np.ones_like(region)).any()  # nothing to continue
    assert np.array_equal(continued(cloth, np.zeros_like(region)), cloth)


def ring_error(network: torch.nn.Module, maker: CompositeMaker) -> tuple[float, float]:
    """Mean error around the defect, over four batches: of the repaired composite, and of a blank one."""
    errors = []
    for k in range(4):
        batch = maker.batch(k)
        defect, mask, region = batch["defect"], batch["mask"], batch["region"]
        with torch.inference_mode():
            _, fused = fuse(network, batch["cloth"], batch["window"], defect=defect, mask=mask, region=region)
        ring = (region - mask).expand(-1, 3, -1, -1) > 0
        truth = batch["cloth"][ring]
        errors.append((float((fused[ring] - truth).abs().mean()), float(truth.abs().mean())))
    repaired, blank = np.mean(errors, axis=0)
    return float(repaired), float(blank)


def test_a_short_training_repairs_better_than_it_was(patches: PatchMaker) -> None:
    settings = FusionSettings(width=8, batch=4, lr=4e-3, foreign=0.3, ema=0.9)
    network, history = train_fusion(patches, settings, steps=60, seed=1)
    assert history.skipped == 0
    assert {"reconstruction", "features", "adversarial", "discriminator"} <= set(history.losses[-1])
    maker = CompositeMaker(patches, settings, seed=9)
    repaired, blank = ring_error(network, maker)
    as_it_began, _ = ring_error(build_fusion(settings), maker)
    assert repaired < 0.97 * as_it_began
    assert repaired < 0.7 * blank


def test_stage_one_and_two_work_together(untrained: FusionNetwork) -> None:
    torch.manual_seed(0)
    generator = build_generator(TextureGanSettings(code_size=6))
    torch.nn.init.constant_(generator.out.bias, 0.0)  # type: ignore[arg-type]  # about half of it a defect
    windows = [weave(ClothSpec(), 128, 128, np.random.default_rng(k)).image for k in range(3)]
    code = np.zeros(6, np.float32)
    samples = Stage12(Stage1(generator), untrained).make(windows, code, np.random.default_rng(0))
    assert [sample.image.shape for sample in samples] == [(128, 128, 3)] * 3
    assert any(sample.mask.any() for sample in samples)


def test_the_same_seed_trains_the_same_network(patches: PatchMaker) -> None:
    def weights(seed: int) -> torch.Tensor:
        network, _ = train_fusion(patches, SMALL, stage1=Blobs(), steps=2, seed=seed)
        return torch.cat([value.flatten() for value in network.state_dict().values()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_the_weights_fit_into_the_base() -> None:
    assert 2 * sum(parameter.numel() for parameter in build_fusion().parameters()) < 2.5e6


def test_drawn_defects_are_refined_in_any_cloth(untrained: FusionNetwork) -> None:
    windows = [to_rgb(weave(ClothSpec(grey=k > 0), 96, 96, np.random.default_rng(k)).image) for k in range(4)]
    samples = Refined(untrained).make(windows, np.zeros(4, np.float32), np.random.default_rng(5))
    again = Refined(untrained).make(windows, np.zeros(4, np.float32), np.random.default_rng(5))
    assert [sample.origin for sample in samples] == ["refined"] * 4
    assert sum(sample.mask.any() for sample in samples) >= 3
    for sample, same, window in zip(samples, again, windows, strict=True):
        assert np.array_equal(sample.image, same.image)
        assert np.array_equal(
            sample.image[~region_around(sample.mask, 24)], window[~region_around(sample.mask, 24)]
        )


def test_training_composites_of_foreign_defects_are_drawn_ones_where_there_is_no_stage_1(
    patches: PatchMaker,
) -> None:
    batch = CompositeMaker(patches, SMALL.model_copy(update={"foreign": 1.0, "batch": 12})).batch(0)
    assert not batch["own"].any()
    under = (batch["mask"] > 0).expand(-1, 3, -1, -1)
    assert (batch["defect"][under] != batch["cloth"][under]).float().mean() > 0.5
    assert (batch["defect"][~under] == batch["cloth"][~under]).float().mean() > 0.5
