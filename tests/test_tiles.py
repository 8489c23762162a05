"""Tiles: an image comes back bit for bit, a score map has no seam and no bias towards any place."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.fabric.tiles import Canvas, Mosaic, Tile, cut, plan_tiles


def stitch(shape, tiles, values):
    """Blend tiles into one array, rounded where the values are whole numbers."""
    canvas = Canvas(shape, tiles)
    for tile, value in zip(tiles, values, strict=True):
        canvas.add(tile, value)
    return (
        canvas.array if np.issubdtype(value.dtype, np.floating) else np.rint(canvas.array).astype(value.dtype)
    )


def score_tiles(image, score, *, tile, overlap, border):
    """Score a picture tile by tile."""
    mosaic = Mosaic(image.shape[:2], tile=tile, overlap=overlap, border=border)
    for each in mosaic.tiles:
        mosaic.add(score(cut(image, each)[None])[0])
    return mosaic.map


@st.composite
def pictures_and_plans(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 140))
    tile = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    overlap = draw(st.integers(0, min(tile) - 1))
    overlap = min(overlap, min(tile) * 7 // 8)
    channels = draw(st.sampled_from([(), (3,)]))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = rng.integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype, endpoint=True)
    return image, plan_tiles(height, width, tile=tile, overlap=overlap), overlap


@settings(max_examples=80, deadline=None)
@given(pictures_and_plans())
def test_the_tiles_of_an_image_stitch_back_to_it_bit_for_bit(case):
    image, tiles, _ = case
    back = stitch(image.shape, tiles, (cut(image, tile) for tile in tiles))
    assert back.dtype == image.dtype
    assert np.array_equal(back, image)


@settings(max_examples=80, deadline=None)
@given(pictures_and_plans())
def test_tiles_cover_the_picture_in_one_size_and_share_the_overlap(case):
    image, tiles, overlap = case
    height, width = image.shape[:2]
    seen = np.zeros((height, width), bool)
    for tile in tiles:
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
        assert cut(image, tile).shape[:2] == (tile.y1 - tile.y0, tile.x1 - tile.x0)
        assert tile.y1 <= height or tile.y0 == 0
        assert tile.x1 <= width or tile.x0 == 0
    assert seen.all()
    columns = sorted({(tile.x0, tile.x1) for tile in tiles})
    assert all(left[1] - right[0] >= overlap for left, right in itertools.pairwise(columns))


def test_a_long_strip_stitches_back_bit_for_bit():
    strip = np.random.default_rng(0).integers(0, 256, (256, 4096), dtype=np.uint8)
    tiles = plan_tiles(256, 4096, tile=(256, 512), overlap=64)
    assert np.array_equal(stitch(strip.shape, tiles, (cut(strip, tile) for tile in tiles)), strip)


def test_a_picture_smaller_than_its_tile_is_mirrored_around():
    image = np.array([[1, 2, 3]], np.uint8)
    assert cut(image, Tile(-1, -3, 2, 7)).tolist() == [[2, 3, 2, 1, 2, 3, 2, 1, 2, 3]] * 3


def local_scores(batch):
    """What a small translation-equivariant network would say: contrast within 9 × 9 pixels."""
    out = []
    for image in batch.astype(np.float32):
        grey = image if image.ndim == 2 else image.mean(axis=2)
        fine, coarse = cv2.blur(grey, (3, 3)), cv2.blur(grey, (9, 9))
        out.append(np.clip(np.abs(fine - coarse) / 128, 0, 1))
    return np.stack(out)


@settings(max_examples=40, deadline=None)
@given(st.integers(17, 130), st.integers(17, 200), st.integers(0, 20), st.sampled_from([(), (3,)]))
def test_a_tiled_score_map_equals_one_made_in_one_piece(height, width, overlap, channels):
    rng = np.random.default_rng(height * 1000 + width)
    image = rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)
    whole = local_scores(image[None])[0]
    tile = (min(48, height), min(64, width))
    border, overlap = min(8, (min(tile) - 1) // 2), min(overlap, max(0, min(tile) - 17))
    tiled = score_tiles(image, local_scores, tile=tile, overlap=overlap, border=border)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_white_noise_scores_the_same_at_every_place():
    rng = np.random.default_rng(3)
    total = np.zeros((64, 480))
    for _ in range(60):
        noise = rng.integers(0, 256, (64, 480), dtype=np.uint8)
        total += score_tiles(noise, local_scores, tile=(96, 112), overlap=16, border=8)
    across = total.mean(axis=0) / 60
    spread = across.std() / across.mean()
    # 60 × 64 values a column, neighbours correlated over nine: about 3 % is chance.
    assert spread < 0.04
    edges = [48, 96, 144, 192, 240, 288, 336, 384, 432]  # where tiles begin or end, or near it
    assert abs(across[edges].mean() / across.mean() - 1) < 0.03


def test_what_a_tile_says_at_its_edge_hardly_counts_inside_the_picture():
    """A network that is wrong within 4 pixels of its tile's edge does not show in the map."""

    def wrong_at_the_edge(batch):
        out = np.zeros(batch.shape[:3], np.float32)
        out[:, :4], out[:, -4:], out[:, :, :4], out[:, :, -4:] = 1, 1, 1, 1
        return out

    image = np.zeros((200, 600), np.uint8)
    assert score_tiles(image, wrong_at_the_edge, tile=128, overlap=40, border=0)[8:-8, 8:-8].max() < 0.05
    assert score_tiles(image, wrong_at_the_edge, tile=128, overlap=40, border=8)[8:-8, 8:-8].max() == 0


def test_a_map_that_differs_from_tile_to_tile_changes_gradually():
    calls = iter(range(100))

    def one_level_per_tile(batch):
        return np.stack([np.full(image.shape[:2], next(calls) % 2, np.float32) for image in batch])

    blended = score_tiles(
        np.zeros((96, 900), np.uint8), one_level_per_tile, tile=(96, 128), overlap=32, border=16
    )
    assert blended.min() == 0
    assert blended.max() == 1
    assert np.abs(np.diff(blended, axis=1)).max() < 0.07


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="overlapping by 64"):
        plan_tiles(100, 100, tile=64, overlap=64)
    with pytest.raises(ValueError, match="no room for a border of 32"):
        score_tiles(np.zeros((64, 64), np.uint8), local_scores, tile=64, overlap=8, border=32)
    tiles = plan_tiles(100, 100, tile=64, overlap=8)[:-1]
    with pytest.raises(ValueError, match="no grid"):
        stitch((100, 100), tiles, [np.zeros((64, 64), np.uint8)] * 3)
