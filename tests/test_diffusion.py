"""Diffusion: the noise, the network's training, and defects painted into good cloth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.fabric.images import to_rgb
from loomsight.fabric.types import LabelledPicture
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.diffusion import (
    DiffusionSettings,
    DiffusionStage,
    DiffusionTask,
    Noising,
    build_diffusion,
    diffusion_loss,
    is_grey,
    make_batch,
    seen_as,
    shown,
    train_diffusion,
)
from loomsight.synthesis.patches import SHAPES, Look, PatchMaker
from loomsight.training.loop import TrainSettings, fit, trained_weights

SMALL = DiffusionSettings(channels=(16, 16, 32), code_size=4, batch=4, sampling_steps=3)
CODE = np.linspace(-1, 1, 12, dtype=np.float32)


@pytest.fixture(scope="module")
def maker():
    rng = np.random.default_rng(0)
    woven = [weave(ClothSpec.random(rng), 96, 96, rng).image for _ in range(4)]
    cloth = [LabelledPicture(w, np.zeros(w.shape[:2], bool), fabric=str(i)) for i, w in enumerate(woven)]
    return PatchMaker(cloth, {str(i): np.roll(CODE, i) for i in range(4)})


@pytest.fixture(scope="module")
def network(maker):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build_diffusion(SMALL, code_length=len(CODE))
    made.remember(maker.batch(0, 24))
    return made


def windows(count, side=96, *, grey=False):
    rng = np.random.default_rng(5)
    image = weave(ClothSpec(grey=grey), side, side, rng).image
    return [np.roll(to_rgb(image), i, axis=0) for i in range(count)]


@given(st.integers(0, 99), st.floats(40, 200), st.floats(-20, 20))
@settings(max_examples=25)
def test_a_picture_comes_back_from_what_the_denoiser_sees(seed, level, tint):
    noise = np.random.default_rng(seed).normal(0, 6, (16, 16, 3))
    colour = np.array((level, level + tint, level - tint))
    image = np.clip(colour + noise, 0, 255).astype(np.uint8)
    look = Look.of(image)
    assert np.abs(shown(look, seen_as(look, image)).astype(int) - image).max() <= 1
    grey = np.repeat(image[..., :1], 3, 2)
    look = Look.of(grey)
    seen = seen_as(look, grey)
    assert np.abs(seen[1:]).max() < 1e-5
    assert is_grey(shown(look, seen))


@given(st.lists(st.integers(0, 999), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=25)
def test_noise_and_picture_come_back_from_the_velocity(steps, seed):
    noising, random = Noising.cosine(), torch.Generator().manual_seed(seed)
    t = torch.tensor(steps)
    x0, noise = torch.randn((2, len(t), 3, 8, 8), generator=random)
    noisy, v = noising.noisy(x0, noise, t), noising.velocity(x0, noise, t)
    torch.testing.assert_close(noising.picture(noisy, v, t), x0, atol=1e-4, rtol=0)
    torch.testing.assert_close(noising.noise(noisy, v, t), noise, atol=1e-4, rtol=0)


def test_the_noising_is_that_of_the_scheduler_and_ends_in_noise():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    ours, t = Noising.cosine(), torch.tensor([0, 400, 999])
    x0, noise = torch.randn((2, 3, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.noisy(x0, noise, t), theirs.add_noise(x0, noise, t))
    torch.testing.assert_close(ours.velocity(x0, noise, t), theirs.get_velocity(x0, noise, t))
    torch.testing.assert_close(ours.alpha**2 + ours.sigma**2, torch.ones(1000))
    assert ours.alpha[-1] < 0.01
    assert (ours.alpha.diff() < 0).all()
    assert ours.weight(torch.tensor([0]), 5.0) < 0.01 < ours.weight(torch.tensor([500]), 5.0)


@pytest.mark.parametrize("side", [64, 96])
def test_the_network_takes_squares_of_every_size_and_half_precision_weights(network, side):
    batch = {"noisy": torch.zeros(2, 3, side, side), "cloth": torch.zeros(2, 3, side, side)}
    one = torch.ones(2, 1, side, side)
    code, shape = torch.from_numpy(np.stack([CODE, CODE])), torch.tensor([0, 3])
    with torch.inference_mode():
        v = network(batch["noisy"], torch.tensor([0, 999]), batch["cloth"], one, one, code, shape)
    assert v.shape == (2, 3, side, side)
    assert v.isfinite().all()


def test_what_ships_in_half_precision_is_below_five_megabytes():
    weights = build_diffusion(code_length=3078).half().state_dict().values()
    assert sum(w.numel() * w.element_size() for w in weights) < 5e6
    assert sum(p.numel() for p in build_diffusion(code_length=3078).parameters()) < 2.5e6


def test_a_batch_is_cloth_and_how_its_defects_changed_it(maker):
    asked = DiffusionSettings(batch=32)
    batch = make_batch(maker, 0, asked, seed=0)
    assert batch["change"].shape == batch["cloth"].shape == (32, 3, 64, 64)
    assert 0.4 < batch["cloth"][:, 0].std() < 2
    assert (batch["mask"] <= batch["region"]).all()
    assert batch["change"].abs().mul(1 - batch["region"]).max() == 0
    inside = batch["change"][:, :1][batch["mask"] > 0]
    assert 0.3 < inside.square().mean().sqrt() < 4  # about as strong as the noise
    again = make_batch(maker, 0, asked, seed=0)
    assert all(torch.equal(batch[key], again[key]) for key in batch)


def test_it_learns_one_batch_by_heart(maker):
    """And so the loss, with noise that it did not see in training, falls to a part of what it was."""
    torch.manual_seed(0)
    network = build_diffusion(SMALL.model_copy(update={"lr": 5e-3}), code_length=len(CODE))
    batch, noising, random = make_batch(maker, 0, SMALL, seed=0), Noising.cosine(), torch.Generator()
    noise, t = torch.randn(batch["change"].shape, generator=random.manual_seed(9)), torch.full((4,), 800)

    @torch.no_grad()
    def loss():
        x0, rest = batch["change"], {key: batch[key] for key in ("region", "mask")}
        v = network(
            noising.noisy(x0, noise, t), t, batch["cloth"], code=batch["code"], shape=batch["shape"], **rest
        )
        return float(diffusion_loss(v, noising, x0=x0, noise=noise, t=t, settings=SMALL, **rest))

    before = loss()
    how = TrainSettings(steps=40, ema=0, warmup=2, amp="float32", schedule="constant", workers=1)
    fit(DiffusionTask(network), lambda _: batch, how)
    assert loss() < 0.7 * before


def test_the_loss_counts_the_defect_most_and_nothing_outside_the_region():
    x0, noise = torch.randn((2, 1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    region, mask, t, noising = (
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.tensor([500]),
        Noising.cosine(),
    )
    region[..., 2:6], mask[..., 3:5] = 1, 1

    def loss(wrong, x0=x0, channel=slice(None)):
        v = noising.velocity(x0, noise, t)
        v[:, channel] += wrong
        told = {"noise": noise, "t": t, "region": region, "mask": mask, "settings": SMALL}
        return float(diffusion_loss(v, noising, x0=x0, **told))

    assert loss(1 - region) == 0
    assert 0 < loss(region - mask) < loss(mask)
    grey = torch.cat((x0[:, :1], torch.zeros(1, 2, 8, 8)), 1)
    assert loss(mask, grey, slice(1, 3)) == 0 < loss(mask, grey, slice(0, 1))


def test_a_seed_gives_the_same_weights_and_another_others(maker):
    def trained(seed):
        made, history = train_diffusion(maker, SMALL, steps=2, seed=seed)
        assert history.steps == 2
        assert not made.training
        return trained_weights(DiffusionTask(made))

    one, same, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["diffusion.unet.conv_in.weight"], other["diffusion.unet.conv_in.weight"])
    assert one["diffusion.masks"].any()


@pytest.mark.parametrize("side", [80, 160])
def test_outside_what_is_painted_the_cloth_stays_as_it_was(network, side):
    cloth = windows(3, side)
    made = DiffusionStage(network).make(cloth, CODE, np.random.default_rng(0))
    assert len(made) == 3
    for sample, before in zip(made, cloth, strict=True):
        changed = (sample.image != before).any(axis=2)
        assert sample.image.shape == before.shape
        assert sample.image.dtype == np.uint8
        assert np.array_equal(sample.cloth, before)
        assert changed.any()
        assert changed.mean() < 0.8
        assert not (sample.mask & ~changed).sum() > 0.05 * max(1, sample.mask.sum())
        rows, columns = np.nonzero(changed)
        assert max(np.ptp(rows), np.ptp(columns)) < 128
        assert 0 <= sample.shape < len(SHAPES)
        assert sample.origin == "diffusion"


def test_the_cloth_given_is_not_written_to(network):
    cloth = windows(2)
    kept = [window.copy() for window in cloth]
    DiffusionStage(network).make(cloth, CODE, np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip(cloth, kept, strict=True))


def test_grey_cloth_stays_grey_and_colour_is_kept(network):
    made = DiffusionStage(network).make(windows(2, grey=True), CODE, np.random.default_rng(0))
    assert all((s.image[..., :1] == s.image).all() for s in made)
    made = DiffusionStage(network).make(windows(2), CODE, np.random.default_rng(0))
    assert all((s.image[..., :1] != s.image).any() for s in made)


def test_the_same_random_state_makes_the_same_defects(network):
    stage = DiffusionStage(network)
    one, same, other = (stage.make(windows(2), CODE, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("steps", [2, 25])
def test_all_windows_together_take_as_many_calls_of_the_network_as_steps(network, steps):
    calls = []
    hook = network.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        DiffusionStage(network, steps=steps).make(windows(2, 64), CODE, np.random.default_rng(3))
    finally:
        hook.remove()
    assert len(calls) == steps


def test_what_cannot_be_made_is_refused(network):
    stage, rng = DiffusionStage(network), np.random.default_rng(0)
    assert stage.make([], CODE, rng) == []
    with pytest.raises(ValueError, match="64 px"):
        stage.make(windows(1, 40), CODE, rng)
    with pytest.raises(ValueError, match="12 numbers"):
        stage.make(windows(1), CODE[:5], rng)
    with pytest.raises(ValueError, match="2 to 25"):
        DiffusionStage(network, steps=26)


def test_known_masks_are_those_of_the_class_that_was_asked_for(network, maker):
    rng = np.random.default_rng(0)
    real = {(patch.shape, int(patch.mask.sum())) for patch in maker.batch(0, 24)}
    for shape in {shape for shape, _ in real}:
        for _ in range(5):
            mask = network.known_mask(shape, rng)
            assert (shape, int(mask.sum())) in real
            assert mask.any(0).all() or mask.any(1).all() or mask.size < 64 * 64
