"""The basic GAN: its losses are the formulas, its steps do not leak, and it learns a distribution."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loomsight.synthesis.gan import (
    GanTask,
    Objective,
    diff_augment,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    spectral,
)
from loomsight.training.loop import TrainSettings, fit
from loomsight.training.task import Context


def sigma(s: float) -> float:
    return 1 / (1 + exp(-s))


REAL, FAKE = torch.tensor([2.0, -0.5]), torch.tensor([0.3, -1.5])
BCE_D = -(log(sigma(2.0)) + log(sigma(-0.5))) / 2 - (log(1 - sigma(0.3)) + log(1 - sigma(-1.5))) / 2


@pytest.mark.parametrize(
    ("objective", "of_d", "of_g"),
    [
        (Objective.MINMAX, BCE_D, (log(1 - sigma(0.3)) + log(1 - sigma(-1.5))) / 2),
        (Objective.NON_SATURATING, BCE_D, -(log(sigma(0.3)) + log(sigma(-1.5))) / 2),
        (Objective.HINGE, (0 + 1.5) / 2 + (1.3 + 0) / 2, -(0.3 - 1.5) / 2),
        (
            Objective.RELATIVISTIC,
            -(log(sigma(2.0 - 0.3)) + log(sigma(-0.5 + 1.5))) / 2,
            -(log(sigma(0.3 - 2.0)) + log(sigma(-1.5 + 0.5))) / 2,
        ),
    ],
)
def test_losses_are_the_formulas(objective: Objective, of_d: float, of_g: float) -> None:
    assert float(discriminator_loss(objective, REAL, FAKE)) == pytest.approx(of_d, abs=1e-6)
    assert float(generator_loss(objective, FAKE, REAL)) == pytest.approx(of_g, abs=1e-6)


def test_scores_of_any_size_have_a_finite_loss() -> None:
    far = torch.tensor([-200.0, 200.0])
    for objective in Objective:
        assert torch.isfinite(discriminator_loss(objective, far, far))
        assert torch.isfinite(generator_loss(objective, far, far))


def test_the_relativistic_generator_needs_real_scores() -> None:
    with pytest.raises(ValueError, match="real"):
        generator_loss(Objective.RELATIVISTIC, FAKE)


def test_gradient_penalty_of_a_linear_discriminator_is_half_its_squared_weights() -> None:
    linear = nn.Linear(12, 1)
    images = torch.randn(5, 3, 2, 2).requires_grad_()
    penalty = gradient_penalty(linear(images.flatten(1)).flatten(), images)
    assert penalty.item() == pytest.approx(linear.weight.square().sum().item() / 2, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(linear.weight.grad, linear.weight.detach())


def test_spectral_norm_bounds_every_layer() -> None:
    network = spectral(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.parametrizations.weight.original.mul_(50)
    for _ in range(30):
        network(torch.randn(2, 3, 4, 4))  # a power iteration each
    for layer in (network[0], network[2]):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.05)


# --- the step


def mlp(inp: int, out: int, width: int = 48) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise((inp, width, width)):
        layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, out))


class Watched(Context):
    """Notes the gradients that G and D have at each update."""

    seen: list[tuple[str, bool, bool]]

    def update(self, loss: Tensor, optimizer: str | None = None) -> bool:
        moved = super().update(loss, optimizer)
        g, d = ([p.grad is not None for p in n.parameters()] for n in self.task.networks.values())
        self.seen.append((optimizer or "", any(g), any(d)))
        for network in self.task.networks.values():
            network.zero_grad(set_to_none=True)
        return moved


@pytest.mark.parametrize("objective", Objective)
def test_no_gradient_of_d_reaches_g_and_none_of_g_stays_in_d(objective: Objective) -> None:
    task = GanTask(mlp(4, 2), mlp(2, 1), objective=objective, noise=4)
    context = Watched(task, TrainSettings(steps=1, amp="float32"), torch.device("cpu"))
    context.task, context.seen = task, []
    before = {name: [p.clone() for p in n.parameters()] for name, n in task.networks.items()}
    losses = task.step(torch.randn(8, 2), context)
    assert context.seen == [("discriminator", False, True), ("generator", True, False)]
    for name, network in task.networks.items():
        assert not torch.equal(before[name][0], next(network.parameters()))
    assert ("penalty" in losses) == (objective in (Objective.HINGE, Objective.RELATIVISTIC))


class Refusing(GanTask):
    """Has one more negative, far out, which no generated point is near."""

    def more_negatives(self, batch: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return self.discriminator(torch.full((len(batch), 2), 9.0)).flatten(), torch.arange(len(batch))


@pytest.mark.parametrize("objective", Objective)
def test_d_learns_to_refuse_further_negatives(objective: Objective) -> None:
    scores = {}
    for kind in (GanTask, Refusing):
        torch.manual_seed(0)
        task = kind(mlp(4, 2), mlp(2, 1), objective=objective, noise=4, lr=2e-3, gamma=0.0)
        fit(task, moons, TrainSettings(steps=40, ema=0.0, amp="float32", channels_last=False), device="cpu")
        with torch.no_grad():
            far, real = (task.discriminator(x).mean() for x in (torch.full((1, 2), 9.0), moons(1)))
        scores[kind] = float(real - far)
    assert scores[Refusing] > scores[GanTask] + 0.5


def moons(k: int, count: int = 256) -> Tensor:
    rng = np.random.default_rng([k, 3])
    angle, upper = rng.uniform(0, np.pi, count), rng.random(count) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    points = np.stack((x - 0.5, y - 0.25), 1) + rng.normal(0, 0.05, (count, 2))
    return torch.from_numpy(points.astype(np.float32))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E‖a − b‖ − E‖a − a′‖ − E‖b − b′‖ (Székely and Rizzo, 2013): 0 for equal distributions."""
    within = [float(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))) for x in (a, b)]
    return 2 * float(torch.cdist(a, b).mean()) - sum(within)


# Two samples of 2,000 from the moons are 0.0006 apart, a Gaussian of their mean and deviations 0.05.
@pytest.mark.parametrize("objective", Objective)
def test_each_objective_learns_two_moons(objective: Objective) -> None:
    torch.manual_seed(0)
    task = GanTask(
        mlp(4, 2), mlp(2, 1), objective=objective, noise=4, lr=2e-3, betas=(0.5, 0.9), gamma=0.1, every=4
    )
    settings = TrainSettings(
        steps=1200, schedule="cosine", ema=0.98, amp="float32", channels_last=False, clip_norm=None
    )
    fit(task, moons, settings, device="cpu")
    with torch.no_grad():
        made = task.generator(torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)))
    assert energy_distance(made, moons(10_000, 2000)) < 0.01


# --- augmentation


def picture_with_mask() -> Tensor:
    """A bright square at rows 8–11, columns 4–7 of a grey picture, and its mask."""
    both = torch.zeros(6, 4, 16, 16)
    both[:, :, 8:12, 4:8] = 1
    both[:, :3] *= 0.8
    return both


def test_augmentation_that_is_off_changes_nothing() -> None:
    images = torch.rand(3, 4, 16, 16)
    off = diff_augment(
        images, torch.Generator().manual_seed(0), translation=0, cutout=0, brightness=0, contrast=0
    )
    assert torch.equal(off, images)


def test_a_mask_moves_with_its_picture() -> None:
    both = picture_with_mask()
    moved = diff_augment(both, torch.Generator().manual_seed(0), translation=0.25, brightness=0, contrast=0)
    torch.testing.assert_close(moved[:, 0], 0.8 * moved[:, 3])
    assert not torch.equal(moved[:, 3], both[:, 3])
    assert len({tuple(map(int, m.nonzero()[0])) for m in moved[:, 3]}) > 2  # each its own way


def test_colour_changes_leave_the_mask_and_are_weak() -> None:
    both = picture_with_mask()
    changed = diff_augment(both, torch.Generator().manual_seed(0), translation=0, cutout=0)
    assert torch.equal(changed[:, 3], both[:, 3])
    difference = (changed[:, :3] - both[:, :3]).abs().amax()
    assert 0.01 < float(difference) < 0.15


def test_cutout_empties_a_square_of_picture_and_mask() -> None:
    cut = diff_augment(
        torch.ones(4, 4, 16, 16),
        torch.Generator().manual_seed(0),
        translation=0,
        cutout=0.5,
        brightness=0,
        contrast=0,
    )
    assert torch.equal(cut[:, 0], cut[:, 3])
    assert all(0 < int((one == 0).sum()) <= 64 for one in cut[:, 3])


def test_augmentation_passes_the_gradient_and_obeys_its_seed() -> None:
    images = picture_with_mask().requires_grad_()
    first, again, other = (diff_augment(images, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    first.sum().backward()
    assert images.grad is not None
    assert float(images.grad[:, :3].abs().mean()) > 0.3
