"""ResNet-18 and ResNet-50, dilated to output stride 8 for dense prediction.

He et al., Deep Residual Learning (CVPR 2016), with the stride in the 3×3 convolution ("v1.5"); dilation in
place of stride as in Chen et al., Rethinking Atrous Convolution (2017). Parameter names and shapes are
torchvision's, so its state dicts load as they are. Weights come from a user's file: no package of the
index has them. Read top to bottom: blocks, network, building.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loomsight.backbones.weights import load_exactly, read_state

Depth = Literal[18, 50]
OutputStride = Literal[8, 16, 32]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inp: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = _conv3(inp, width, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3(width, width, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inp, width, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1×1 down, 3×3, 1×1 up, and a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, inp: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3(width, width, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(inp, width * self.expansion, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _conv3(inp: int, out: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inp, out, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _shortcut(inp: int, out: int, stride: int) -> nn.Sequential | None:
    if inp == out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))


_PLANS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """The feature part of a ResNet: the stem and four stages.

    Args:
        depth: 18 or 50.
        output_stride: 32 as trained, or 16 or 8, where the last stage or two dilate in place of striding.

    Attributes:
        channels: channels of each of the five levels that :meth:`forward` returns.
        strides: their strides; (2, 4, 8, 8, 8) at output stride 8.
        source: which weights it has, in words.
    """

    def __init__(self, depth: Depth = 50, *, output_stride: OutputStride = 8) -> None:
        super().__init__()
        block, counts = _PLANS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.source = "random weights"
        channels, stride, dilation = 64, 4, 1
        levels, strides = [64], [2]
        for stage, count in enumerate(counts, 1):
            step = 1 if stage == 1 else 2
            # The kernel that loses its stride keeps the old dilation, for it still sees the old grid.
            dilations = (dilation, dilation)
            if step == 2 and stride == output_stride:
                dilation, step = dilation * 2, 1
                dilations = (dilations[0], dilation)
            stride *= step
            width = 64 * 2 ** (stage - 1)
            blocks: list[nn.Module] = []
            for index in range(count):
                blocks.append(block(channels, width, step if index == 0 else 1, dilations))
                dilations = (dilation, dilation)
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            levels.append(channels)
            strides.append(stride)
        self.channels, self.strides = tuple(levels), tuple(strides)
        self._mean: Tensor
        self._scale: Tensor
        self.register_buffer("_mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_scale", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for (
            module
        ) in self.modules():  # every residual branch starts as nothing: deep stacks train from scratch
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        """Features at each of :attr:`strides`, finest first, of RGB pictures in [0, 1]."""
        y = F.relu(self.bn1(self.conv1((x - self._mean) / self._scale)), inplace=True)
        levels = [y]
        y = F.max_pool2d(y, 3, 2, padding=1)
        for stage in range(1, 5):
            y = self.get_submodule(f"layer{stage}")(y)
            levels.append(y)
        return levels


def build(depth: Depth = 50, *, weights: Path | None = None, output_stride: OutputStride = 8) -> ResNet:
    """ResNet with the weights of a file, or with random ones; :attr:`ResNet.source` says which.

    Args:
        depth: 18 or 50.
        weights: torchvision's state dict, ``.pth`` or ``.safetensors``; its classifier ``fc`` is left aside.
        output_stride: see :class:`ResNet`.

    Raises:
        WeightsError: the file cannot be read, or a parameter is missing, left over or of another shape.
    """
    network = ResNet(depth, output_stride=output_stride)
    if weights is not None:
        state = {key: value for key, value in read_state(weights).items() if not key.startswith("fc.")}
        load_exactly(network, state, where=weights)
        network.source = f"ResNet-{depth} ({weights.name})"
    return network
