"""GANomaly: cloth is squeezed, woven again and squeezed again; what changed on the way is strange.

Akcay et al., *GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training*, ACCV 2018. An encoder,
a decoder and a second encoder learn good patches together, in three ways: the picture that comes out looks
like the one that went in (L1), a discriminator cannot tell it from a real one, and the two latent maps agree.
The score is the distance of the latent maps, |E(x) − E′(G(E(x)))|; a defect that is not woven again changes
it.

Made for cloth: latent maps of cells (:mod:`loomsight.anomaly.cells`) in place of one vector for a patch, the
relativistic objective in place of matching the discriminator's features, and the residual of pixels beside
that of latents, as logarithms; over four ways to lay the cells. A residual of frozen features can be added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.anomaly import Residual
from loomsight.anomaly.cells import CellEncoder, CellGenerator, over_shifts
from loomsight.anomaly.residual import Reweaving
from loomsight.fabric.types import Picture

LATENT = 12
WIDTHS = (24, 48, 64)
CELL = 2 ** len(WIDTHS)
"""Pixels a side of a cell."""


class Ganomaly(Reweaving):
    """The networks; trained by :func:`loomsight.learn.adversarial.train_ganomaly`."""

    name = "ganomaly"

    def __init__(self, channels: int, residuals: Sequence[Residual] = ("pixels", "features")) -> None:
        super().__init__(channels, residuals)
        self.encoder = CellEncoder(channels, LATENT, WIDTHS).to(self.device)
        self.decoder = CellGenerator(channels, LATENT, WIDTHS).to(self.device)
        self.again = CellEncoder(channels, LATENT, WIDTHS).to(self.device)

    @torch.inference_mode()
    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """A logarithm, of an evenly lit picture or tile."""
        return over_shifts(even, self.channels, CELL, self._residual, self.device)

    def _residual(self, x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 1 h w"]:
        latent = self.encoder(x)
        made = self.decoder(latent)
        return self.compared(x, made, lambda: ([latent], [self.again(made)]))

    def networks(self) -> dict[str, nn.Module]:
        """By the names that their arrays have."""
        return {"encoder": self.encoder, "decoder": self.decoder, "again": self.again}
