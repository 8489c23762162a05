"""How far a picture is from what a network that knows good cloth alone made of it.

Three measures, each a logarithm, so that their mean needs no weights between them:

* **pixels**: the squared difference, averaged over a few pixels;
* **own features**: the same, of feature maps of the network that was trained with it (f-AnoGAN's
  discriminator, GANomaly's latent map);
* **frozen features**: the same, of EfficientNet-Lite0 (:mod:`loomsight.anomaly.features`), which knows better
  than pixels do what looks alike: a yarn that lies half a pixel beside its place is no defect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.anomaly import Residual
from loomsight.anomaly.cells import load_arrays, state_arrays
from loomsight.anomaly.features import Features
from loomsight.fabric.types import Picture

_ALL: tuple[Residual, ...] = ("pixels", "features", "frozen")
_SPREAD = 3.0  # pixels that squared differences are averaged over, a Gaussian's deviation
_LEAST = 1e-4


def pixel_residual(x: Float[Tensor, "1 c h w"], made: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 1 h w"]:
    """The logarithm of the deviation around each pixel."""
    squared = (x - made).square().mean(1)[0].cpu().numpy()
    smooth = cv2.GaussianBlur(squared, (0, 0), _SPREAD)
    return 0.5 * torch.from_numpy(smooth + _LEAST).log()[None, None].to(x.device)


def map_residual(
    first: Sequence[Float[Tensor, "1 c h w"]],
    second: Sequence[Float[Tensor, "1 c h w"]],
    size: tuple[int, int],
) -> Float[Tensor, "1 1 h w"]:
    """The logarithm of the distance between feature maps, averaged over the maps, at a picture's size."""
    total = torch.zeros(1, 1, *size, device=first[0].device)
    for a, b in zip(first, second, strict=True):
        away = 0.5 * ((a - b).square().mean(1, keepdim=True) + _LEAST).log()
        total += F.interpolate(away, size, mode="bilinear")
    return total / len(first)


def frozen_residual(
    features: Features, x: Float[Tensor, "1 c h w"], made: Float[Tensor, "1 c h w"]
) -> Float[Tensor, "1 1 h w"]:
    """The same of the frozen network's features; each channel counts by its deviation in this picture."""
    pairs = []
    for a, b in zip(*(features.levels(_picture(one)) for one in (x, made)), strict=True):
        scale = a.flatten(1).std(1)[:, None, None] + 1e-3
        pairs.append(((a / scale)[None], (b / scale)[None]))
    return map_residual([a for a, _ in pairs], [b for _, b in pairs], (x.shape[2], x.shape[3]))


def _picture(x: Float[Tensor, "1 c h w"]) -> Picture:
    rgb = x[0].expand(3, -1, -1).permute(1, 2, 0)
    shown = ((rgb + 1) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(shown.to(torch.uint8).cpu().numpy())


class Reweaving(ABC):
    """A method that weaves a picture again and compares; a subclass names its networks and weaves.

    Args:
        channels: 3, or 1 where the camera sees no colour; residuals: what is compared.
    """

    def __init__(self, channels: int, residuals: Sequence[Residual] = ("pixels", "features")) -> None:
        self.channels, self.residuals = channels, tuple(residuals)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._frozen = Features() if "frozen" in self.residuals else None

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """By the names that their arrays have; one is the encoder."""

    def compared(
        self,
        x: Float[Tensor, "1 c h w"],
        made: Float[Tensor, "1 c h w"],
        own: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]],
    ) -> Float[Tensor, "1 1 h w"]:
        """The mean of the residuals; ``own`` gives the feature maps of both pictures, where they count."""
        parts = []
        if "pixels" in self.residuals:
            parts.append(pixel_residual(x, made))
        if "features" in self.residuals:
            parts.append(map_residual(*own(), (x.shape[2], x.shape[3])))
        if self._frozen is not None:
            parts.append(frozen_residual(self._frozen, x, made))
        return torch.stack(parts).mean(0)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        used = np.array([name in self.residuals for name in _ALL], np.float32)
        return state_arrays(self.networks()) | {"residuals": used}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The networks again.

        Raises:
            KeyError, ValueError: these are not their arrays.
        """
        residuals = tuple(name for name, used in zip(_ALL, arrays["residuals"], strict=True) if used)
        made = cls(int(arrays["encoder.down.0.conv.weight"].shape[1]), residuals)
        load_arrays(made.networks(), arrays)
        return made
