"""Training of the two GANs that learn good cloth: f-AnoGAN and GANomaly.

The game, its objective and its penalties are those of :mod:`loomsight.synthesis.gan`: the relativistic
pairing with R1 and R2 (R3GAN, NeurIPS 2024), place by place, and the result is the weights' moving average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loomsight.anomaly import Residual, fanogan, ganomaly
from loomsight.anomaly.cells import CellDiscriminator, for_use
from loomsight.anomaly.fanogan import FAnoGan
from loomsight.anomaly.ganomaly import Ganomaly
from loomsight.fabric.types import Picture
from loomsight.learn.goodpatches import GoodPatches
from loomsight.progress import Progress
from loomsight.synthesis.gan import GanTask, Objective
from loomsight.training.loop import TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

PATCH, BATCH = 64, 16
_WEAVING = 0.7  # of f-AnoGAN's steps or seconds, that its GAN gets; its encoder has the rest
_PICTURE, _LATENT = 50.0, 1.0  # GANomaly's weights beside the adversarial loss, as its authors have them
_LR, _BETAS, _GAMMA, _EVERY = 3e-4, (0.0, 0.99), 0.2, 8  # at a rate of 1e-3 the discriminator wins


class CellGanTask(GanTask):
    """f-AnoGAN's first half: G weaves from noise for each cell, D judges."""

    def __init__(self, made: FAnoGan) -> None:
        super().__init__(
            made.generator,
            made.discriminator,
            objective=Objective.RELATIVISTIC,
            lr=_LR,
            betas=_BETAS,
            gamma=_GAMMA,
            every=_EVERY,
        )

    def fake(self, batch: Any, context: Context) -> Float[Tensor, "n c s s"]:
        cells = batch.shape[-1] // fanogan.CELL
        shape = (len(batch), fanogan.LATENT, cells, cells)
        z = torch.randn(shape, generator=context.generator, device=context.device)
        return self.generator(z)  # type: ignore[no-any-return]

    def score(self, images: Float[Tensor, "n c s s"], batch: Any, context: Context) -> Float[Tensor, " n"]:
        return self.discriminator(images)  # type: ignore[no-any-return]


class EncoderTask:
    """f-AnoGAN's second half: E learns to find the noise; G and D are fixed ("izi_f" in the paper)."""

    def __init__(self, made: FAnoGan) -> None:
        self._made = made
        made.generator.requires_grad_(False)
        made.discriminator.requires_grad_(False)
        self.networks: Mapping[str, nn.Module] = {"encoder": made.encoder}
        self.optimizers = {"encoder": torch.optim.Adam(made.encoder.parameters(), 1e-3, (0.9, 0.99))}

    def step(self, batch: Float[Tensor, "n c s s"], context: Context) -> dict[str, Tensor]:
        made = self._made
        again = made.generator(made.encode(batch))
        pixels = (batch - again).square().mean()
        pairs = zip(*(made.discriminator.features(one)[1:3] for one in (batch, again)), strict=True)
        features = torch.stack([(a - b).square().mean() / a.square().mean().detach() for a, b in pairs]).sum()
        context.update(pixels + features)
        return {"pixels": pixels, "features": features}


class GanomalyTask(GanTask):
    """GANomaly's three losses; G here is the encoder, the decoder and the second encoder together."""

    _latent: Tensor
    _woven: Tensor

    def __init__(self, made: Ganomaly) -> None:
        self._made = made
        together = nn.ModuleDict({"encoder": made.encoder, "decoder": made.decoder, "again": made.again})
        super().__init__(
            together,
            CellDiscriminator(made.channels, ganomaly.WIDTHS),
            objective=Objective.RELATIVISTIC,
            lr=_LR,
            betas=_BETAS,
            gamma=_GAMMA,
            every=_EVERY,
        )

    def fake(self, batch: Any, context: Context) -> Float[Tensor, "n c s s"]:
        self._latent = self._made.encoder(batch)
        self._woven = self._made.decoder(self._latent)
        return self._woven

    def score(self, images: Float[Tensor, "n c s s"], batch: Any, context: Context) -> Float[Tensor, " n"]:
        return self.discriminator(images)  # type: ignore[no-any-return]

    def more_for_generator(self, batch: Any, context: Context) -> Tensor:
        picture = (batch - self._woven).abs().mean()
        latent = F.mse_loss(self._made.again(self._woven), self._latent)
        loss: Tensor = _PICTURE * picture + _LATENT * latent
        return loss


def train_fanogan(
    even: Sequence[Picture],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    residuals: Sequence[Residual] = ("pixels", "features"),
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[FAnoGan, int]:
    """Train f-AnoGAN on evenly lit good pictures, for so many steps or seconds of both halves together.

    Returns:
        f-AnoGAN, and how many steps were done.

    Raises:
        TrainingError: it diverged.
        WeightsError: the frozen features are asked for and their weights are missing.
    """
    torch.manual_seed(seed)
    patches = GoodPatches(even, PATCH, BATCH, seed=seed)
    made = FAnoGan(patches.channels, residuals)
    weaving = fit(
        CellGanTask(made), patches.batch, _settings(steps, seconds, _WEAVING, seed), progress=progress
    )
    finding = fit(
        EncoderTask(made), patches.batch, _settings(steps, seconds, 1 - _WEAVING, seed), progress=progress
    )
    for_use(made.networks())
    return made, weaving.steps + finding.steps


def train_ganomaly(
    even: Sequence[Picture],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    residuals: Sequence[Residual] = ("pixels", "features"),
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Ganomaly, int]:
    """Train GANomaly on evenly lit good pictures, for so many steps or seconds.

    Returns:
        GANomaly, and how many steps were done.

    Raises:
        TrainingError: it diverged.
        WeightsError: the frozen features are asked for and their weights are missing.
    """
    torch.manual_seed(seed)
    patches = GoodPatches(even, PATCH, BATCH, seed=seed)
    made = Ganomaly(patches.channels, residuals)
    done = fit(GanomalyTask(made), patches.batch, _settings(steps, seconds, 1.0, seed), progress=progress)
    for_use(made.networks())
    return made, done.steps


def _settings(steps: int | None, seconds: float | None, share: float, seed: int) -> TrainSettings:
    return TrainSettings(
        steps=None if steps is None else max(1, round(steps * share)),
        seconds=None if seconds is None else seconds * share,
        schedule="cosine",
        clip_norm=None,
        ema=0.99,
        seed=seed,
    )
