"""EfficientNet-Lite0 and Lite2: inverted residual blocks with ReLU6, no squeeze-and-excitation.

Tan and Le, EfficientNet (ICML 2019); the Lite variants are Google's for edge devices. Weights: ImageNet,
converted from TensorFlow, hence "same" padding that is asymmetric at stride 2 and BatchNorm eps 1e-3.
Read top to bottom: padding, block, network, loading.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loomsight.backbones.weights import LITE0, LITE2
from loomsight.errors import WeightsError

Variant = Literal["lite0", "lite2"]

# (blocks, kernel, stride, expansion, channels) of the seven stages of Lite0
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_SCALING = {"lite0": (1.0, 1.0), "lite2": (1.1, 1.2)}  # width, depth; stem, first and last stage keep depth
_FILES = {"lite0": LITE0, "lite2": LITE2}


Border = Literal["zeros", "replicate"]


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: at stride 2 the extra pixel goes to the far side."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        top, bottom = _same(x.shape[-2], self.kernel_size[0], self.stride[0], self.dilation[0])
        left, right = _same(x.shape[-1], self.kernel_size[1], self.stride[1], self.dilation[1])
        pad = (top, left)
        if self.padding_mode == "replicate":
            x, pad = F.pad(x, (left, right, top, bottom), mode="replicate"), (0, 0)
        elif (top, left) != (bottom, right):
            x, pad = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, pad, self.dilation, self.groups)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Pixels to add before and after a side, so that it is ceil(size / stride) long afterwards."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, project 1×1; a shortcut where shape allows."""

    def __init__(
        self, inp: int, out: int, *, kernel: int, stride: int, expansion: int, dilation: int
    ) -> None:
        super().__init__()
        mid = inp * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(inp, mid, 1, bias=False)
            self._bn0 = _norm(mid)
        self._depthwise_conv = SameConv2d(
            mid, mid, kernel, stride=stride, dilation=dilation, groups=mid, bias=False
        )
        self._bn1 = _norm(mid)
        self._project_conv = nn.Conv2d(mid, out, 1, bias=False)
        self._bn2 = _norm(out)
        self._expands = expansion != 1
        self._shortcut = stride == 1 and inp == out

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        if self._shortcut:
            y = x + y
        out: Tensor = y
        return out


class EfficientNetLite(nn.Module):
    """The feature part of EfficientNet-Lite: five levels, from stride 2 to the output stride.

    Args:
        variant: "lite0" or "lite2".
        output_stride: 32 as trained, or 16 by dilating the last two stages.
        stages: how many of the seven stages to build (5 ends at stride 16 and leaves out two thirds of
            the weights).
        border: what each convolution sees beyond its input: zeros, as trained, or its outermost values again,
            after which the features of even cloth are the same at a picture's border as in its middle.

    Attributes:
        channels: channels of each level that :meth:`forward` returns.
        strides: their strides.
    """

    def __init__(
        self,
        variant: Variant = "lite0",
        *,
        output_stride: Literal[16, 32] = 16,
        stages: int = 7,
        border: Border = "zeros",
    ) -> None:
        super().__init__()
        width, depth = _SCALING[variant]
        self._conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        self.channels: list[int] = []
        self.strides: list[int] = []
        self._ends: list[int] = []  # the block after which a level is complete
        channels, stride, dilation = 32, 2, 1
        for index, (count, kernel, wanted, expansion, out) in enumerate(_STAGES[:stages]):
            repeats = count if index in (0, 6) else math.ceil(depth * count)
            wide = _round_to_eight(out * width)
            step, before = wanted, dilation
            if wanted == 2 and stride == output_stride:
                dilation, step = dilation * 2, 1
            if step == 2:
                self._close_level(len(blocks) - 1, channels, stride)
            stride *= step
            for repeat in range(repeats):
                block = InvertedResidual(
                    channels,
                    wide,
                    kernel=kernel,
                    stride=1 if repeat else step,
                    expansion=expansion,
                    dilation=dilation if repeat else before,  # the first still sees the old grid
                )
                blocks.append(block)
                channels = wide
        self._close_level(len(blocks) - 1, channels, stride)
        self._blocks = nn.ModuleList(blocks)
        for layer in self.modules():
            if isinstance(layer, SameConv2d):
                layer.padding_mode = border

    def _close_level(self, block: int, channels: int, stride: int) -> None:
        self._ends.append(block)
        self.channels.append(channels)
        self.strides.append(stride)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        """Features at each of :attr:`strides`, finest first, of RGB pictures in [0, 1]."""
        y = F.relu6(self._bn0(self._conv_stem((x * 255 - 127) / 128)))
        levels = []
        for index, block in enumerate(self._blocks):
            y = block(y)
            if index in self._ends:
                levels.append(y)
        return levels


def _round_to_eight(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def build(
    variant: Variant = "lite0",
    *,
    pretrained: bool = True,
    output_stride: Literal[16, 32] = 16,
    stages: int = 7,
    border: Border = "zeros",
) -> EfficientNetLite:
    """EfficientNet-Lite, with its ImageNet weights unless ``pretrained`` is false.

    Raises:
        WeightsError: the weights' package is missing or its file is not the known one.
    """
    network = EfficientNetLite(variant, output_stride=output_stride, stages=stages, border=border)
    if pretrained:
        path = _FILES[variant].verified()
        state = torch.load(path, map_location="cpu", weights_only=True)
        wanted = network.state_dict()
        missing = sorted(wanted.keys() - state.keys())
        if missing:
            raise WeightsError("weights refused", where=path, why=f"no {missing[0]} in it")
        network.load_state_dict({key: state[key] for key in wanted})
    return network
