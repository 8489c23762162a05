"""Diffusion reconstruction: a measured arm of `anomaly.py`, not part of the program.

Good cloth is drowned in noise up to a level, and a network that has learned good cloth alone takes the noise
away in a few steps (Wyatt et al., AnoDDPM, CVPR Workshops 2022); what does not come back is strange. Compared
as the GANs' weavings are: by pixels and by frozen features (anomaly/residual.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loomsight.anomaly.cells import load_arrays, state_arrays, to_input
from loomsight.anomaly.features import Features
from loomsight.anomaly.residual import frozen_residual, pixel_residual
from loomsight.fabric.types import Picture
from loomsight.learn.goodpatches import GoodPatches
from loomsight.progress import Progress
from loomsight.synthesis.diffusion import Noising
from loomsight.training.loop import TrainSettings, fit

LEVEL = 400  # of 1,000: how far a picture is drowned
STEPS = 3  # calls of the network to get it back
CELL = 16  # pixels: the network halves the picture four times


class Denoising:
    """A small U-Net that predicts v; the interface of the program's methods."""

    name = "diffusion"

    def __init__(self, channels: int) -> None:
        from diffusers import UNet2DModel

        self.channels, self.device = channels, torch.device("cpu")
        untyped: Any = UNet2DModel
        self.unet = untyped(
            in_channels=4 * channels,
            out_channels=4 * channels,
            block_out_channels=(32, 48, 64, 64),
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            add_attention=False,
        )
        self.noising, self._frozen = Noising.cosine(), Features()

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v of pictures of which each 2 × 2 pixels are one place of the network."""
        out: Tensor = F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, 2), t, return_dict=False)[0], 2)
        return out

    @torch.inference_mode()
    def strangeness(self, even: Picture) -> Any:
        """A logarithm, of an evenly lit picture or tile."""
        height, width = even.shape[:2]
        below, beside = (CELL + -side % CELL for side in (height, width))
        padded = np.pad(even, ((CELL, below), (CELL, beside), (0, 0)), "symmetric")
        x = to_input(padded, self.channels, self.device)
        made = self._again(x, torch.Generator().manual_seed(0))
        both = (pixel_residual(x, made) + frozen_residual(self._frozen, x, made)) / 2
        return both[0, 0, CELL:, CELL:][:height, :width].numpy()

    def _again(self, x: Tensor, random: torch.Generator) -> Tensor:
        """DDIM (Song et al., ICLR 2021) from the level down."""
        levels = torch.linspace(LEVEL, 0, STEPS + 1).round().long()
        now = self.noising.noisy(x, torch.randn(x.shape, generator=random), levels[:1])
        for at, after in zip(levels[:-1, None], levels[1:, None], strict=True):
            v = self.velocity(now, at)
            made = self.noising.picture(now, v, at).clamp(-1, 1)
            now = self.noising.noisy(made, self.noising.noise(now, v, at), after)
        return made

    def to_arrays(self) -> dict[str, Any]:
        return state_arrays({"unet": self.unet})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        made = cls(int(arrays["unet.conv_out.weight"].shape[0]) // 4)
        load_arrays({"unet": made.unet}, arrays)
        return made


class _Task:
    def __init__(self, made: Denoising) -> None:
        self._made = made
        self.networks = {"unet": made.unet}
        self.optimizers = {"unet": torch.optim.Adam(made.unet.parameters(), 1e-3)}

    def step(self, batch: Tensor, context: Any) -> dict[str, Tensor]:
        random, device = context.generator, batch.device
        t = torch.randint(1, LEVEL + 200, (len(batch),), generator=random, device=device)
        noise = torch.randn(batch.shape, generator=random, device=device)
        noising = self._made.noising
        wanted = noising.velocity(batch, noise, t)
        loss = (self._made.velocity(noising.noisy(batch, noise, t), t) - wanted).square().mean()
        context.update(loss)
        return {"loss": loss}


def train_denoising(
    even: Sequence[Picture], *, steps: int, seed: int = 0, progress: Progress | None = None
) -> Denoising:
    """Train on evenly lit good pictures."""
    torch.manual_seed(seed)
    patches = GoodPatches(even, 64, 16, seed=seed)
    made = Denoising(patches.channels)
    fit(
        _Task(made),
        patches.batch,
        TrainSettings(steps=steps, ema=0.99, seed=seed),
        progress=progress,
        device="cpu",
    )
    return made
