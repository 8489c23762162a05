"""ResNet: strides by dilation, alignment with the strided network, torchvision's layout, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from loomsight.backbones import resnet
from loomsight.errors import WeightsError


def shaken(depth: Literal[18, 50], output_stride: Literal[8, 16, 32]) -> resnet.ResNet:
    """Random weights whose residual branches are not nothing, as after some training."""
    torch.manual_seed(0)
    network = resnet.build(depth, output_stride=output_stride).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.2, 0.6)
    return network


@pytest.mark.parametrize(
    ("depth", "channels"), [(18, (64, 64, 128, 256, 512)), (50, (64, 256, 512, 1024, 2048))]
)
def test_levels_have_the_stated_channels_and_strides(
    depth: Literal[18, 50], channels: tuple[int, ...]
) -> None:
    network = resnet.build(depth).eval()
    assert network.strides == (2, 4, 8, 8, 8)
    assert network.channels == channels
    with torch.inference_mode():
        levels = network(torch.rand(1, 3, 64, 96))
    for level, wide, stride in zip(levels, channels, network.strides, strict=True):
        assert level.shape == (1, wide, 64 // stride, 96 // stride)
    assert network.source == "random weights"


@pytest.mark.parametrize("depth", [18, 50])
def test_dilation_sees_what_the_strided_network_sees_only_on_a_finer_grid(depth: Literal[18, 50]) -> None:
    dense, strided = shaken(depth, 8), shaken(depth, 32)
    strided.load_state_dict(dense.state_dict())
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        fine, coarse = dense(image), strided(image)
    # Every fourth place of the dilated network is a place of the strided one: the same taps.
    torch.testing.assert_close(fine[4][..., ::4, ::4], coarse[4], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fine[3][..., ::2, ::2], coarse[3], rtol=1e-3, atol=1e-4)


def test_a_state_dict_in_torchvisions_layout_loads_and_its_classifier_is_left_aside(tmp_path: Path) -> None:
    made = shaken(18, 8)
    assert {"conv1.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias"} <= set(
        made.state_dict()
    )
    torch.save(made.state_dict() | {"fc.weight": torch.zeros(2, 2)}, tmp_path / "r18.pth")
    loaded = resnet.build(18, weights=tmp_path / "r18.pth").eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(image)[4], made(image)[4])
    assert loaded.source == "ResNet-18 (r18.pth)"


def test_parameters_are_as_many_as_in_the_paper() -> None:
    # torchvision's counts, 11,689,512 and 25,557,032, less their classifiers of 1,000 classes.
    for depth, count in ((18, 11_689_512 - 513_000), (50, 25_557_032 - 2_049_000)):
        network = resnet.ResNet(depth)  # type: ignore[arg-type]
        assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer3.0.conv1.weight": None}, "no layer3.0.conv1.weight in it"),
        ({"layer5.0.conv1.weight": torch.zeros(1)}, "layer5.0.conv1.weight is no part of the network"),
        ({"bn1.bias": torch.zeros(3)}, "bn1.bias has shape (3,), the network's (64,)"),
    ],
)
def test_a_missing_extra_or_misshapen_parameter_is_named_in_one_line(
    tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    state = resnet.build(18).state_dict() | change
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError) as caught:
        resnet.build(18, weights=tmp_path / "bad.pth")
    assert said in str(caught.value)
    assert "bad.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
