"""Networks that squeeze cloth into cells and weave it again: an encoder, a generator, a discriminator.

All three are fully convolutional, so what is learned on patches runs on a picture of any size. A *cell* is a
square of the picture that becomes one vector of a latent map; cloth repeats, so a map of cells suits it
better than one vector for a patch, which would have to know where in the patch each yarn lies (Bergmann et
al., Learning Texture Manifolds with the Periodic Spatial GAN, ICML 2017).

Pictures are evenly lit (:meth:`loomsight.fabric.light.Light.even`), float in [−1, 1], with three channels,
or with one where the camera sees no colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.fabric.types import Picture


class _Layer(nn.Module):
    """Convolution, each place's channels brought to the same energy, leaky rectifier."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, stride, padding=(kernel - 1) // 2)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        x = self.conv(x)
        # Per place and not per picture or batch, or a large picture would not be seen as a patch is.
        return F.leaky_relu(x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4), 0.2)


class CellEncoder(nn.Module):
    """Picture → latent map, one vector for a cell of 2^len(widths) pixels a side."""

    def __init__(self, channels: int, latent: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        before = (channels, *widths[:-1])
        self.down = nn.Sequential(*(_Layer(a, b, 4, 2) for a, b in zip(before, widths, strict=True)))
        self.out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n z h2 w2"]:
        out: Tensor = self.out(self.down(x))
        return out


class CellGenerator(nn.Module):
    """Latent map → picture; ``widths`` as of the encoder, so the first of them is at half of the size."""

    def __init__(self, channels: int, latent: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        rising = widths[::-1]
        self.start = _Layer(latent, rising[0], 3)
        self.up = nn.ModuleList(_Layer(a, b, 3) for a, b in pairwise(rising))
        self.out = nn.Conv2d(rising[-1], 4 * channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "n z h w"]) -> Float[Tensor, "n c s t"]:
        x = self.start(z)
        for layer in self.up:
            x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.out(x), 2).tanh()


class CellDiscriminator(nn.Module):
    """Picture → a logit for each place, and the features that led to it, at strides 2, 4, …"""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        before = (channels, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, padding=1) for a, b in zip(before, widths, strict=True)
        )
        self.judge = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def features(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n c h2 w2"]]:
        found = []
        for layer in self.down:
            x = F.leaky_relu(layer(x), 0.2)
            found.append(x)
        return found

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " places"]:
        """A logit for each place of each picture."""
        out: Tensor = self.judge(self.features(x)[-1]).flatten()
        return out


def to_input(even: Picture, channels: int, device: torch.device) -> Float[Tensor, "1 c h w"]:
    """An evenly lit picture, uint8 HWC, as networks of one channel or three take it."""
    x = torch.from_numpy(np.ascontiguousarray(even)).to(device).permute(2, 0, 1)[None].float()
    return (x if channels == 3 else x.mean(1, keepdim=True)) / 127.5 - 1


def over_shifts(
    even: Picture,
    channels: int,
    cell: int,
    said: Callable[[Float[Tensor, "1 c h w"]], Float[Tensor, "1 1 h w"]],
    device: torch.device,
) -> Float[NDArray[np.float32], "h w"]:
    """The mean of what is said of a picture with its cells laid in four ways, half a cell apart.

    Where a defect lies in its cell is chance, and so would be how strange it seems. The picture is mirrored
    by a cell on each side first: what convolutions fill in at a border is outside of it.
    """
    height, width = even.shape[:2]
    total = torch.zeros(1, 1, height, width, device=device)
    shifts = [(0, 0), (cell // 2, 0), (0, cell // 2), (cell // 2, cell // 2)]
    for down, right in shifts:
        top, left = cell + down, cell + right
        below, beside = (cell + -(size + cell) % cell for size in (height + top, width + left))
        padded = np.pad(even, ((top, below), (left, beside), (0, 0)), "symmetric")
        total += said(to_input(padded, channels, device))[:, :, top : top + height, left : left + width]
    return np.asarray((total / len(shifts))[0, 0].cpu().numpy(), np.float32)


def state_arrays(networks: Mapping[str, nn.Module]) -> dict[str, NDArray[np.float32]]:
    """The weights of several networks as plain arrays, ``"network.tensor"``."""
    return {
        f"{name}.{key}": value.detach().float().cpu().numpy()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def load_arrays(networks: Mapping[str, nn.Module], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take the weights from :func:`state_arrays` again; the networks are for use then, not for training.

    Raises:
        KeyError, ValueError: these are not their arrays.
    """
    for name, network in networks.items():
        own = {
            key: torch.from_numpy(np.ascontiguousarray(arrays[f"{name}.{key}"], np.float32))
            for key in network.state_dict()
        }
        try:
            network.load_state_dict(own)
        except RuntimeError as error:  # a tensor has another shape
            raise ValueError(f"not a {name}: {error}") from error
    for_use(networks)


def for_use(networks: Mapping[str, nn.Module]) -> None:
    """Networks that are trained: evaluation mode, no gradients."""
    for network in networks.values():
        network.eval().requires_grad_(False)
