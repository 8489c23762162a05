"""Where a picture shows cloth, and that no defect is made beside it."""

from __future__ import annotations

import numpy as np
import pytest

from loomsight.fabric.types import LabelledPicture, Picture
from loomsight.fabric.woven import beside, cloth_within
from loomsight.loom import ClothSpec, weave
from loomsight.synthesis.augment import photometric
from loomsight.synthesis.recipe import Material, Recipe, TileMaker, strongest_places

SIDE = 128


def selvedge(white: int, *, upright: bool = True) -> Picture:
    """Cloth of 128 × 400 pixels with a lamp behind, beside its selvedge; or turned."""
    image = weave(ClothSpec(structure="twill 2/2", grey=True), SIDE, 400, np.random.default_rng(0)).image
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    image[:, :white] = 255
    return image if upright else np.ascontiguousarray(image.transpose(1, 0, 2))


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("white", [0, 60, 200, 350])
def test_the_cloth_beside_a_lamp_is_found(white: int, upright: bool) -> None:
    rows, columns = cloth_within(beside(selvedge(white, upright=upright)), 32) or (None, None)
    across, along = (columns, rows) if upright else (rows, columns)
    assert along == slice(0, SIDE)
    assert across is not None
    assert across.stop == 400
    assert abs(across.start - white) <= 8


def test_no_cloth_and_a_sliver_of_it_are_none() -> None:
    assert cloth_within(beside(selvedge(400)), 32) is None
    assert cloth_within(beside(selvedge(380)), 32) is None


@pytest.mark.parametrize("arm", ["drawn", "paste", "poisson", "perlin"])
def test_no_defect_is_made_beside_the_cloth(arm: str) -> None:
    rng = np.random.default_rng(1)
    known = weave(ClothSpec(structure="twill 2/2", grey=True), 160, 200, rng, defects="random")
    material = Material([selvedge(200)], [LabelledPicture(known.image, known.mask, fabric="other")])
    maker = TileMaker(Recipe(arms=(arm,), tile=SIDE, most=8, another=0.9), material)
    beside_it = 0
    for _ in range(40):
        tile = maker.synthetic(rng)
        assert tile.instances is not None
        white = (tile.image == 255).mean(axis=(0, 2)) > 0.5
        assert not (tile.instances[:, white] > 0).any()
        assert not white.all()
        beside_it += int(white.any())
    assert beside_it > 5


def test_cloth_too_fine_to_show_its_threads_gets_defects() -> None:
    even = np.full((SIDE, 200, 3), 120, np.uint8)
    maker = TileMaker(Recipe(tile=SIDE, stretch=0), Material([even], []), seed=0)
    tile = maker.synthetic(np.random.default_rng(0))
    assert tile.instances is not None
    assert tile.instances.any()


def test_a_bright_cloth_is_not_burnt_out_by_a_stronger_lamp() -> None:
    rng = np.random.default_rng(0)
    cloth = np.clip(selvedge(40).astype(np.float32) * 0.4 + 150, 0, 255).astype(np.uint8)
    cloth[:, :40] = 255
    for _ in range(60):
        lit = photometric(cloth, rng)
        assert (lit[:, 60:] == 255).mean() < 0.1


def test_good_tiles_show_the_places_that_could_be_taken_for_defects() -> None:
    rng = np.random.default_rng(0)
    even = np.clip(rng.normal(150, 6, (1200, 1200, 1)), 0, 255).astype(np.uint8)
    picture = np.repeat(even, 3, axis=2)
    specks = [(200, 300), (700, 250), (900, 1000), (620, 640)]
    for row, column in specks:  # that the cloth has by nature
        picture[row - 2 : row + 2, column - 2 : column + 2] = 60
    found = strongest_places([picture], [beside(picture)])
    assert len(found) == 8, "five of a megapixel"
    assert all(np.abs(found - (0, *at)).max(axis=1).min() <= 2 for at in specks)
    maker = TileMaker(Recipe(tile=96, stretch=0, synthetic=0.0, good=1.0, batch=8), Material([picture], []))
    tiles = [tile for k in range(20) for tile in maker.batch(k)]
    assert all(tile.target.max() == 0 for tile in tiles)
    shown = np.mean([tile.image.min() < 100 for tile in tiles])
    assert 0.15 < shown < 0.4, "a quarter of them; one in thirteen by chance"


def test_the_edge_of_the_cloth_is_no_place_of_its_own() -> None:
    bordered = selvedge(200)
    bordered[60:64, 300:304] = 8
    (place,) = strongest_places([bordered], [beside(bordered)]).tolist()
    assert np.abs(np.subtract(place, (0, 62, 302))).max() < 3


def test_where_nothing_is_woven_there_are_no_places() -> None:
    white = np.full((200, 200, 3), 255, np.uint8)
    assert strongest_places([white], [beside(white)]).shape == (0, 3)
    assert strongest_places([], []).shape == (0, 3)
