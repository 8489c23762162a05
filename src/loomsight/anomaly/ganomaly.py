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

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loomsight.anomaly.cells import (
    CellEncoder,
    CellGenerator,
    load_arrays,
    over_shifts,
    state_arrays,
)
from loomsight.anomaly.features import Features
from loomsight.anomaly.residual import (
    Residual,
    frozen_residual,
    map_residual,
    marked_residuals,
    pixel_residual,
    residuals_of,
)
from loomsight.fabric.types import Picture

LATENT = 12
WIDTHS = (24, 48, 64)
CELL = 2 ** len(WIDTHS)
"""Pixels a side of a cell."""


class Ganomaly:
    """The networks; trained by :func:`loomsight.learn.adversarial.train_ganomaly`."""

    name = "ganomaly"

    def __init__(self, channels: int, residuals: Sequence[Residual] = ("pixels", "features")) -> None:
        self.channels, self.residuals = channels, tuple(residuals)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = CellEncoder(channels, LATENT, WIDTHS).to(self.device)
        self.decoder = CellGenerator(channels, LATENT, WIDTHS).to(self.device)
        self.again = CellEncoder(channels, LATENT, WIDTHS).to(self.device)
        self._frozen = Features() if "frozen" in self.residuals else None

    @torch.inference_mode()
    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """A logarithm, of an evenly lit picture or tile."""
        return over_shifts(even, self.channels, CELL, self._residual, self.device)

    def _residual(self, x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 1 h w"]:
        latent = self.encoder(x)
        made = self.decoder(latent)
        parts = []
        if "pixels" in self.residuals:
            parts.append(pixel_residual(x, made))
        if "features" in self.residuals:
            parts.append(map_residual([latent], [self.again(made)], (x.shape[2], x.shape[3])))
        if self._frozen is not None:
            parts.append(frozen_residual(self._frozen, x, made))
        return torch.stack(parts).mean(0)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        return state_arrays(self._networks()) | marked_residuals(self.residuals)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The networks again.

        Raises:
            KeyError, ValueError: these are not their arrays.
        """
        made = cls(int(arrays["encoder.down.0.conv.weight"].shape[1]), residuals_of(arrays))
        load_arrays(made._networks(), arrays)
        for network in made._networks().values():
            network.eval().requires_grad_(False)
        return made

    def _networks(self) -> dict[str, torch.nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder, "again": self.again}
