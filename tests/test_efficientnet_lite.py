"""EfficientNet-Lite: its levels, its pretrained weights, and dilation in place of the last stride."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from loomsight.backbones import efficientnet_lite
from loomsight.backbones.efficientnet_lite import SameConv2d, Variant


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
@pytest.mark.parametrize("output_stride", [16, 32])
def test_levels_have_the_stated_channels_and_strides(
    variant: Variant, output_stride: Literal[16, 32]
) -> None:
    network = efficientnet_lite.build(variant, pretrained=False, output_stride=output_stride).eval()
    with torch.inference_mode():
        levels = network(torch.rand(1, 3, 64, 96))
    assert tuple(network.strides) == (2, 4, 8, 16, 32)[: 4 if output_stride == 16 else 5]
    for level, channels, stride in zip(levels, network.channels, network.strides, strict=True):
        assert level.shape == (1, channels, 64 // stride, 96 // stride)


def test_five_stages_are_the_beginning_of_seven() -> None:
    whole = efficientnet_lite.build("lite0").eval()
    short = efficientnet_lite.build("lite0", stages=5).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for one, other in zip(short(image)[:3], whole(image)[:3], strict=True):
            assert torch.equal(one, other)
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (short, whole)]
    assert count[0] < count[1] / 3


def test_pretrained_weights_tell_structure_from_nothing() -> None:
    network = efficientnet_lite.build("lite0", stages=5).eval()
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1
    with torch.inference_mode():
        flat, striped = network(torch.full((1, 3, 64, 64), 0.25)), network(stripes)
    for one, other in zip(flat, striped, strict=True):
        assert torch.isfinite(other).all()
        assert (one - other).abs().mean() > 0.05


@pytest.mark.parametrize(("size", "kernel"), [(7, 3), (8, 3), (9, 5), (12, 5)])
def test_padding_is_tensorflows_same(size: int, kernel: int) -> None:
    convolution = SameConv2d(1, 1, kernel, stride=2, bias=False)
    with torch.inference_mode():
        assert convolution(torch.rand(1, 1, size, size)).shape[-1] == -(-size // 2)
        # "Same" at stride 2 begins so that the far side gets the odd pixel: the first tap of an even
        # picture under a kernel of 3 lies on the first pixel.
        convolution.weight.zero_()
        total = max(0, (-(-size // 2) - 1) * 2 + kernel - size)
        convolution.weight[..., total // 2, total // 2] = 1
        image = torch.rand(1, 1, size, size)
        assert torch.equal(convolution(image), image[..., ::2, ::2])
