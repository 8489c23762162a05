"""Stage 1: what it makes has the shape it should, obeys code and class, and leaves the cloth alone."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from loomsight.fabric.types import LabelledPicture, Picture
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.multistage import Stage1
from loomsight.synthesis.patches import SHAPES, PatchMaker
from loomsight.synthesis.texture_gan import (
    Batch,
    CodeProjection,
    TextureDiscriminator,
    TextureGanSettings,
    TextureGenerator,
    build_generator,
    make_batch,
    mismatched,
    train_texture_gan,
)
from loomsight.training.loop import History

CODE = 24
TINY = TextureGanSettings(
    code_size=CODE, code_dims=4, noise=8, widths=(24, 24, 16, 16), judge=(8, 16, 24, 24), batch=8
)


def code_of(fabric: int, picture: int = 0) -> NDArray[np.float32]:
    own = np.random.default_rng([fabric, 1]).normal(size=CODE)
    return (own + 0.15 * np.random.default_rng([fabric, picture, 2]).normal(size=CODE)).astype(np.float32)


@cache
def patches() -> PatchMaker:
    """Two woven fabrics, one of them dark."""
    rng = np.random.default_rng(3)
    known = []
    for fabric in ("one", "two"):
        image = weave(ClothSpec.random(rng), 128, 160, rng).image
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        known.append(LabelledPicture(image, np.zeros(image.shape[:2], bool), fabric=fabric))
    return PatchMaker(known, {"one": code_of(1), "two": code_of(2)}, size=64)


@cache
def trained() -> tuple[TextureGenerator, History]:
    return train_texture_gan(patches(), TINY, steps=20, seed=0)


def painting(mask_at: tuple[slice, slice] | None = np.s_[20:36, 24:30]) -> TextureGenerator:
    """A generator that has learned to paint one bright, coloured spot, or nothing."""

    class Painter(TextureGenerator):
        def forward(self, z: torch.Tensor, codes: torch.Tensor, shapes: torch.Tensor) -> torch.Tensor:
            side = 16 * z.shape[-1]
            made = torch.zeros(len(z), 5, side, side)
            if mask_at is not None:
                made[:, 0, *mask_at], made[:, 1, *mask_at], made[:, 4, *mask_at] = 0.9, 0.5, 1.0
            return made

    return Painter(TINY)


def cloth(count: int = 4, side: int = 128, *, grey: bool = False) -> list[Picture]:
    rng = np.random.default_rng(0)
    shape = (side, side, 1 if grey else 3)
    windows = [rng.integers(60, 120, shape).astype(np.uint8) for _ in range(count)]
    return [np.ascontiguousarray(np.broadcast_to(w, (side, side, 3))) for w in windows]


# --- the networks


@pytest.mark.parametrize("cells", [2, 4, 6, 8])
def test_a_patch_has_sixteen_pixels_a_cell(cells: int) -> None:
    stage1 = Stage1(build_generator(TINY))
    codes = np.stack([code_of(1), code_of(2)])
    edits, masks = stage1.generate(codes, [0, 3], np.random.default_rng(0), cells=cells)
    assert edits.shape == (2, 4, 16 * cells, 16 * cells)
    assert masks.shape == (2, 16 * cells, 16 * cells)
    assert np.abs(edits).max() <= 1
    assert edits[:, 3].min() >= 0
    assert 0 <= masks.min() <= masks.max() <= 1


def test_a_large_patch_is_made_as_a_small_one_is() -> None:
    generator = build_generator(TINY).eval()
    z = torch.randn(1, 8, 10, 10, generator=torch.Generator().manual_seed(0))
    codes, shapes = torch.zeros(1, 4), torch.tensor([1])
    with torch.no_grad():
        whole = generator(z, codes, shapes)
        part = generator(z[:, :, 1:9, 1:9], codes, shapes)
    # Away from the border, which padding reaches, cell by cell the same.
    torch.testing.assert_close(whole[..., 64:96, 64:96], part[..., 48:80, 48:80], rtol=0, atol=1e-4)


def test_the_default_networks_are_small() -> None:
    generator = build_generator(TextureGanSettings())
    assert sum(v.numel() for v in generator.state_dict().values()) * 2 < 3e6  # bytes in half precision


def test_a_code_of_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="24"):
        Stage1(build_generator(TINY)).generate(np.zeros((1, 23), np.float32), [0], np.random.default_rng(0))


def test_the_discriminator_uses_code_and_class() -> None:
    torch.manual_seed(0)
    judge = TextureDiscriminator(TINY).eval()
    both = torch.rand(2, 4, 64, 64)
    codes, shapes = torch.randn(2, 4), torch.tensor([0, 1])
    with torch.no_grad():
        as_is = judge(both, codes, shapes)
        assert not torch.allclose(as_is, judge(both, codes.flip(0), shapes))
        assert not torch.allclose(as_is, judge(both, codes, shapes.flip(0)))


# --- the projection of codes


def test_projected_codes_are_nearest_to_their_own_fabric() -> None:
    fabrics = range(12)
    project = CodeProjection(CODE, 8).fit(np.stack([code_of(f) for f in fabrics]))
    known = project(torch.from_numpy(np.stack([code_of(f) for f in fabrics])))
    again = project(torch.from_numpy(np.stack([code_of(f, 1) for f in fabrics])))
    nearest = torch.cdist(again, known).argmin(1)
    assert (nearest == torch.arange(12)).float().mean() >= 0.9
    assert 0.3 < float(known.std(0).mean()) < 1.5


def test_unused_numbers_are_zero_and_far_codes_are_brought_back() -> None:
    project = CodeProjection(CODE, 8).fit(np.stack([code_of(f) for f in range(5)]))
    known = project(torch.from_numpy(np.stack([code_of(f) for f in range(5)])))
    assert torch.count_nonzero(known[:, 4:]) == 0  # five codes span four dimensions
    far = project(torch.from_numpy(1000 * code_of(7)[None]))
    assert float(far.abs().max()) <= 1.5 * float(known.abs().max())


@pytest.mark.parametrize("count", [1, 2])
def test_a_fabric_or_two_are_projected_at_random(count: int) -> None:
    project = CodeProjection(CODE, 8).fit(np.stack([code_of(f) for f in range(count)]))
    one, other = project(torch.from_numpy(np.stack([code_of(0), code_of(9)])))
    assert float((one - other).abs().max()) > 0.1


def test_the_projection_travels_with_the_weights() -> None:
    generator, _ = trained()
    again = build_generator(generator.settings)
    again.load_state_dict(generator.state_dict())
    again.eval()
    made = [Stage1(g).generate(code_of(1)[None], [2], np.random.default_rng(0)) for g in (generator, again)]
    np.testing.assert_allclose(made[0][0], made[1][0], atol=1e-4)


# --- training


def batch_of(count: int = 8) -> Batch:
    return make_batch(patches(), 0, count, seed=0)


def test_mismatched_pairs_are_real_patches_under_a_strange_code_or_mask() -> None:
    batch = batch_of(16)
    mixed, rows = mismatched(batch)
    assert len(rows) >= 4
    strange_code = (mixed["code"] != batch["code"][rows]).any(1)
    strange_mask = (mixed["both"][:, 3] != batch["both"][rows, 3]).flatten(1).any(1)
    assert strange_code.any()
    assert strange_mask.any()
    assert torch.equal(strange_code, ~strange_mask)  # one thing is wrong with each
    torch.testing.assert_close(mixed["both"][:, :3], batch["both"][rows, :3])
    same = {**batch, "code": batch["code"][:1].expand(16, -1)}
    by_mask, _ = mismatched(same)
    assert len(by_mask["shape"]) == 4  # there is no other fabric to mistake it for


def test_a_training_is_deterministic_and_finite() -> None:
    generator, history = trained()
    again, _ = train_texture_gan(patches(), TINY, steps=20, seed=0)
    for one, two in zip(generator.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert history.skipped == 0
    assert all(np.isfinite(v) for row in history.losses for v in row.values())
    assert not generator.training


def test_code_and_class_change_what_is_made() -> None:
    stage1 = Stage1(trained()[0])

    def made(fabric: int, shape: int) -> NDArray[np.float32]:
        return stage1.generate(code_of(fabric)[None], [shape], np.random.default_rng(0))[0]

    assert np.array_equal(made(1, 0), made(1, 0))
    assert np.abs(made(1, 0) - made(2, 0)).max() > 0.01
    assert np.abs(made(1, 0) - made(1, 2)).max() > 0.01


# --- pasting


@pytest.mark.parametrize("grey", [False, True])
def test_outside_the_masks_border_the_cloth_is_untouched(grey: bool) -> None:
    windows = cloth(12, grey=grey)
    samples = Stage1(painting()).make(windows, code_of(1), np.random.default_rng(0))
    assert len(samples) == 12
    for window, sample in zip(windows, samples, strict=True):
        assert sample.cloth is window
        assert sample.origin == "stage1"
        assert sample.mask.sum() >= 30
        near = cv2.dilate(sample.mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        np.testing.assert_array_equal(sample.image[~near], window[~near])
        inside = sample.image[sample.mask].astype(int)
        assert inside[:, 0].mean() > window[sample.mask][:, 0].mean() + 15
        if grey:
            assert (sample.image[..., :1] == sample.image).all()
        else:
            assert (inside[:, 0] - inside[:, 2]).mean() > 10  # its colour came along
    assert {s.shape for s in samples} <= set(range(len(SHAPES)))
    places = {tuple(np.argwhere(s.mask)[0]) for s in samples}
    assert len(places) > 8


def test_the_same_seed_makes_the_same_samples() -> None:
    stage1 = Stage1(trained()[0])
    first, again = (stage1.make(cloth(), code_of(1), np.random.default_rng(4)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)


def test_nothing_generated_is_a_failed_sample_and_the_cloth_as_it_was() -> None:
    windows = cloth()
    for sample in Stage1(painting(None)).make(windows, code_of(1), np.random.default_rng(0)):
        assert not sample.mask.any()
        np.testing.assert_array_equal(sample.image, sample.cloth)


def test_new_noise_is_near_that_of_known_defects_of_its_class() -> None:
    generator = build_generator(TINY)
    shapes, random = torch.tensor([2, 2, 2, 2, 0]), torch.Generator().manual_seed(0)
    assert 0.5 < float(generator.noise(shapes, random).std()) < 1.5  # nothing is known yet: N(0, 1)
    maps = torch.stack([torch.full((8, 4, 4), 10.0 + k) for k in range(4)])
    generator.remember(maps, torch.tensor([2, 2, 2, 2]), torch.full((4,), 0.3))
    z = generator.noise(shapes, random)
    assert 6 < float(z[:4].min()) < float(z[:4].max()) < 17
    assert float(z[4].abs().max()) < 6  # of another class nothing is known
    assert generator.noise(shapes, random, 8).shape == (5, 8, 8, 8)


def test_a_training_remembers_known_defects_of_every_class_it_met() -> None:
    assert trained()[0].met.sum() > 100
    assert trained()[0].latents.abs().max() > 0
    assert 0.02 < trained()[0].strengths[trained()[0].met > 8].median() < 1
