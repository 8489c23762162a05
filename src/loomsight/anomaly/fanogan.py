"""f-AnoGAN: a generator that weaves good cloth and nothing else, and what it cannot weave is strange.

Schlegl et al., *f-AnoGAN: Fast Unsupervised Anomaly Detection with Generative Adversarial Networks*, Medical
Image Analysis 54, 2019. A GAN learns good patches (G weaves them from noise, D judges); then, with G and D
fixed, an encoder E learns to find the noise of a patch, so that G(E(x)) ≈ x in pixels and in D's features.
The score is what is left over:

    |x − G(E(x))|   and   |f(x) − f(G(E(x)))|,   f: D's features.

Made for cloth: noise is a map of cells (:mod:`loomsight.anomaly.cells`), so that the networks run on a whole
picture; the two residuals are logarithms and averaged, which needs no weight between them; scores are
averaged over four ways to lay the cells. A residual of frozen features can be added.

Its predecessor AnoGAN (Schlegl et al., IPMI 2017) has no encoder and searches the noise of each picture by
gradient descent: :meth:`FAnoGan.search`, a hundred times slower, is here as a reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.anomaly import Residual
from loomsight.anomaly.cells import CellDiscriminator, CellEncoder, CellGenerator, over_shifts
from loomsight.anomaly.residual import Reweaving
from loomsight.fabric.types import Picture

LATENT = 32
WIDTHS = (24, 48, 64, 96)
CELL = 2 ** len(WIDTHS)
"""Pixels a side of a cell."""
RANGE = 3.0
"""E's noise lies within so many deviations: what G never saw in training it need not weave."""


class FAnoGan(Reweaving):
    """The three networks; trained by :func:`loomsight.learn.adversarial.train_fanogan`."""

    name = "fanogan"

    def __init__(self, channels: int, residuals: Sequence[Residual] = ("pixels", "features")) -> None:
        super().__init__(channels, residuals)
        self.generator = CellGenerator(channels, LATENT, WIDTHS).to(self.device)
        self.discriminator = CellDiscriminator(channels, WIDTHS).to(self.device)
        self.encoder = CellEncoder(channels, LATENT, WIDTHS).to(self.device)

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n z h2 w2"]:
        """E(x), softly bounded to the noise that G knows."""
        return RANGE * torch.tanh(self.encoder(x) / RANGE)

    @torch.inference_mode()
    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """A logarithm, of an evenly lit picture or tile."""
        said = lambda x: self._residual(x, self.generator(self.encode(x)))  # noqa: E731
        return over_shifts(even, self.channels, CELL, said, self.device)

    def search(self, even: Picture, *, steps: int = 60, seed: int = 0) -> Float[NDArray[np.float32], "h w"]:
        """The same by AnoGAN's search in the noise, ``steps`` of Adam for each way to lay the cells."""
        random = torch.Generator(self.device).manual_seed(seed)

        def said(x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 1 h w"]:
            shape = (1, LATENT, x.shape[2] // CELL, x.shape[3] // CELL)
            z = torch.randn(shape, generator=random, device=self.device).requires_grad_()
            adam = torch.optim.Adam([z], lr=0.1)
            target = [one.detach() for one in self.discriminator.features(x)[1:3]]
            for _ in range(steps):
                made = self.generator(RANGE * torch.tanh(z / RANGE))
                found = self.discriminator.features(made)[1:3]
                loss = (x - made).abs().mean()
                loss = loss + sum((a - b).abs().mean() for a, b in zip(target, found, strict=True))
                adam.zero_grad()
                loss.backward()
                adam.step()
            with torch.no_grad():
                return self._residual(x, self.generator(RANGE * torch.tanh(z / RANGE)))

        return over_shifts(even, self.channels, CELL, said, self.device)

    def _residual(
        self, x: Float[Tensor, "1 c h w"], made: Float[Tensor, "1 c h w"]
    ) -> Float[Tensor, "1 1 h w"]:
        features = self.discriminator.features
        return self.compared(x, made, lambda: (features(x)[1:3], features(made)[1:3]))

    def networks(self) -> dict[str, nn.Module]:
        """By the names that their arrays have."""
        return {"generator": self.generator, "discriminator": self.discriminator, "encoder": self.encoder}
