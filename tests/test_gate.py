"""The gate: what it passes is looked at as a whole picture would be, no region is cut off, and it counts."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomsight.errors import DatasetError
from loomsight.fabric.images import to_grey
from loomsight.fabric.light import Light
from loomsight.fabric.regions import Grouping, find_regions
from loomsight.fabric.tiles import Mosaic, Tile, cut, plan_tiles, tile_side
from loomsight.fabric.types import Box, Mask, Picture, Region, ScoreMap
from loomsight.inspection.looking import said_of_gate
from loomsight.learn.gate import (
    GateThresholds,
    Window,
    _window,
    gate_thresholds,
    learn_gate,
    same_blocks,
)
from loomsight.loom import ClothSpec, weave
from loomsight.runtime.compiled import Answer, Ready, Tiles, TorchCompiled
from loomsight.runtime.engine import SegmenterEngine
from loomsight.runtime.gate import (
    AUDIT,
    BLOCK,
    CELL,
    GatedEngine,
    GateGraph,
    GateNetwork,
    block_logits,
    grouped,
)

POINT = (0.5, Grouping(4, 5))


class Dark:
    """An engine that finds what is dark; it keeps how many pixels it looked at."""

    reach = 0

    def __init__(self, level: int = 128) -> None:
        self.level, self.pixels = level, 0

    def score(self, image: Picture) -> ScoreMap:
        self.pixels += image.shape[0] * image.shape[1]
        return np.asarray(np.clip((self.level - to_grey(image).astype(np.float32)) / 100, 0, 1))

    def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]:
        yield from map(self.score, images)

    def score_where(
        self, image: Picture, boxes: Sequence[tuple[int, int, int, int]]
    ) -> tuple[ScoreMap, Mask]:
        """Tiles of 200 pixels a side, those that the boxes touch."""
        known = np.zeros(image.shape[:2], np.bool_)
        for x0, y0, x1, y1 in boxes:
            rows, columns = (slice(a // 200 * 200, -(-b // 200) * 200) for a, b in ((y0, y1), (x0, x1)))
            known[rows, columns] = True
        self.pixels += int(known.sum())
        return np.asarray(Dark(self.level).score(image) * known), known

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
        for image, tiles in jobs:
            yield [self.score(cut(image, tile)) for tile in tiles]

    def bars(self, image: Picture, threshold: float) -> list[Box]:
        """A box around the rows that are darker than the picture by 30 grey levels."""
        rows = np.flatnonzero(image.mean(1) < image.mean() - 30)
        return [(0, int(rows[0]), image.shape[1], int(rows[-1]) + 1)] if len(rows) else []

    def corrected(self, image: Picture) -> Picture:
        return image

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        return list(regions)


class Gate:
    """A gate that fires where a cell is dark on average."""

    runtime, step, depth = "test", CELL, 2

    def start(self, tiles: Tiles) -> Ready:
        tiles = tiles.reshape(1, tiles.shape[1], -1, 1)
        _, height, width, _ = tiles.shape
        assert height % CELL == 0
        assert width % CELL == 0
        cells = tiles[0, :, :, 0].reshape(height // CELL, CELL, -1, CELL).mean((1, 3))
        answer: Answer = ((128 - cells.astype(np.float32))[None],)
        return Ready(answer)


def gated(full: Dark, **more: float) -> GatedEngine:
    return GatedEngine(Gate(), 0.0, 0.3, 1, full, point=POINT, **more)  # type: ignore[arg-type]


def good(height: int = 768, width: int = 1024) -> Picture:
    return np.full((height, width), 200, np.uint8)


AUDITED = 9
"""The picture that is looked at in full."""


def test_good_cloth_costs_the_networks_nothing_and_has_no_region() -> None:
    """All of it but the tenth picture, which is an audit: of a single strip, too."""
    full = Dark()
    looks = list(gated(full).looks([good()] * 12))
    assert full.pixels == 768 * 1024
    assert [look.score is None for look in looks] == [number != AUDITED for number in range(12)]
    assert looks[1].highest == 0
    assert looks[1].regions(0.5) == []
    assert not looks[1].dense().any()
    (strip,) = gated(full).looks([good(4096, 512)])
    assert strip.score is None
    assert full.pixels == 768 * 1024


@pytest.mark.parametrize("place", [(0, 0, 40, 40), (288, 480, 352, 544), (728, 984, 768, 1024)])
def test_a_defect_is_found_where_and_as_it_would_be_without_a_gate(place: tuple[int, int, int, int]) -> None:
    image = good()
    top, left, bottom, right = place
    image[top:bottom, left:right] = 0
    full = Dark()
    (look,) = gated(full).looks([image])
    assert look.regions(0.5, Grouping(4)) == find_regions(Dark().score(image), 0.5, Grouping(4))
    assert not look.complete
    assert full.pixels < 768 * 1024 * 1.4


def test_a_bar_that_the_gate_cannot_see_is_looked_at_all_the_same() -> None:
    image = good()
    image[300:308] = 0
    engine = gated(Dark())
    assert not engine.passed(image).any()
    (look,) = engine.looks([image])
    assert look.regions(0.5, Grouping(4)) == find_regions(Dark().score(image), 0.5, Grouping(4))
    assert not look.complete
    assert engine.count.looked == 200 * 1024
    audited = gated(Dark())
    list(audited.looks([*[good()] * AUDITED, image]))
    assert (audited.count.regions, audited.count.lost) == (1, 0)


def test_a_region_is_followed_into_blocks_that_the_gate_did_not_pass() -> None:
    image = good()
    image[380:388, 100:900] = 0  # thin: only the blot below makes its cell dark
    image[384:416, 480:512] = 0
    engine = gated(Dark())
    (look,) = engine.looks([image])
    assert engine.passed(image).sum() == 1
    assert look.regions(0.5) == find_regions(Dark().score(image), 0.5)


def test_a_region_is_followed_along_its_faint_stretch_to_its_next_piece() -> None:
    image = good()
    image[380:388, 100:900] = 100  # faint: a score of .28
    image[380:388, 850:900] = 0
    image[384:416, 480:512] = 0  # the blot whose block passes
    point = 0.5, Grouping(4, 5, faint=0.25)
    engine = GatedEngine(Gate(), 0.0, 0.3, 1, Dark(), point=point)  # type: ignore[arg-type]
    (look,) = engine.looks([image])
    assert engine.passed(image).sum() == 1
    (region,) = look.regions(*point)
    assert (region.box, [region]) == ((480, 380, 900, 416), find_regions(Dark().score(image), *point))


@settings(max_examples=25, deadline=None)
@given(st.integers(192, 500), st.integers(192, 500), st.integers(0, 2**32 - 1))
def test_pictures_of_any_size_give_the_regions_of_the_whole(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = good(height, width)
    for _ in range(3):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        image[y : y + 40, x : x + 40] = 0
    (look,) = gated(Dark()).looks([image])
    passed = gated(Dark()).passed(image)
    for region in find_regions(Dark().score(image), 0.5):
        x0, y0, x1, y1 = region.box
        if passed[y0 // BLOCK : (y1 - 1) // BLOCK + 1, x0 // BLOCK : (x1 - 1) // BLOCK + 1].all():
            assert region in look.regions(0.5)


def test_a_small_picture_is_looked_at_in_full() -> None:
    image = good(150, 400)
    image[20:30, 20:30] = 0
    asked: list[int] = []

    class Asked(Gate):
        def start(self, tiles: Tiles) -> Ready:
            asked.append(1)
            return super().start(tiles)

    engine = GatedEngine(Asked(), 0.0, 0.3, 1, Dark(), point=POINT)
    small, large, again = engine.looks([image, good(), image])
    assert (small.complete, large.score, again.complete) == (True, None, True)
    assert len(small.regions(0.5)) == 1
    assert len(asked) == 1  # of a picture that it cannot spare the networks
    count = engine.count
    assert (count.pictures, count.aside, count.looked) == (3, 2, 2 * 150 * 400)
    assert "It stood aside for 2 of 3 pictures" in said_of_gate(count)
    assert "What it loses was not measured" in said_of_gate(count)


def test_audits_count_what_the_gate_would_have_lost() -> None:
    image = good()
    image[100:104, 100:130] = 0  # too small for the gate
    image[300:340, 300:340] = 0
    engine = gated(Dark())
    list(engine.looks([image] * (AUDIT + AUDITED + 1)))
    count = engine.count
    assert (count.audits, count.regions, count.lost) == (2, 4, 2)
    assert count.pixels == (AUDIT + AUDITED + 1) * 768 * 1024
    # two audits, and of the others the tile of 200 pixels with the second spot, in which its block lies
    assert count.looked == 2 * 768 * 1024 + (AUDIT + AUDITED - 1) * 200 * 200
    assert said_of_gate(count).startswith(
        f"With the gate the networks looked at {count.rate:.1%} of the cloth"
    )


def test_audits_count_what_the_quick_look_would_have_lost_too() -> None:
    """A line that shows in a whole picture, and in a small window does not."""

    class FarSighted(Dark):
        def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
            for scores in super().jobs(jobs):
                yield [score * np.float32(0.1) for score in scores]

    image = good()
    image[300:340, 300:340] = 0
    engine = gated(FarSighted())
    looks = list(engine.looks([image] * 12))
    assert [len(look.regions(0.5)) for look in looks] == [int(n == AUDITED) for n in range(12)]
    assert (engine.count.regions, engine.count.lost) == (1, 1)


def test_a_gate_stands_aside_where_it_does_not_pay_and_comes_back() -> None:
    """A bad head of a roll, a good middle, a bad tail: networks never see much more than without a gate."""
    full, bad = Dark(), good() // 4
    engine = gated(full, worth=0.5)
    roll = [bad] * 40 + [good()] * 200 + [bad] * 60
    looks = list(engine.looks(roll))
    whole = np.array([look.complete for look in looks])
    assert whole[:40].all()
    assert whole[40:140].mean() < 0.8
    assert not whole[150:240].any() or whole[150:240].sum() == 1  # an audit
    assert whole[240:].all()
    assert full.pixels < sum(map(np.size, roll)) * 0.75
    count = engine.count
    assert count.pictures == 300
    assert 100 < count.aside < 200
    assert f"It stood aside for {count.aside:,} of 300 pictures" in said_of_gate(count)


class Camera(Dark):
    """An engine whose camera darkens by half; it refuses what was corrected before."""

    def score(self, image: Picture) -> ScoreMap:
        return super().score(self.corrected(image))

    def score_where(
        self, image: Picture, boxes: Sequence[tuple[int, int, int, int]]
    ) -> tuple[ScoreMap, Mask]:
        whole = Dark().score(image)
        return whole, np.ones(whole.shape, np.bool_)

    def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
        yield from Dark().jobs(jobs)

    def corrected(self, image: Picture) -> Picture:
        assert image.max() < 200, "corrected twice"
        return np.asarray(image * 2, np.uint8)


def test_a_picture_is_corrected_once_in_an_audit_as_behind_the_gate() -> None:
    image = good() // 2
    image[300:340, 300:340] = 0
    *_, gated_look, audit = gated(Camera()).looks([image] * (AUDITED + 1))
    assert audit.complete
    assert audit.regions(0.5) == gated_look.regions(0.5)
    assert len(audit.regions(0.5)) == 1


def test_a_gate_that_stands_aside_is_hardly_asked_and_pictures_go_through_in_streams() -> None:
    asked, streams = [], []

    class Asked(Gate):
        def start(self, tiles: Tiles) -> Ready:
            asked.append(1)
            return super().start(tiles)

    class Streamed(Dark):
        def scores(self, images: Iterable[Picture]) -> Iterator[ScoreMap]:
            streams.append(0)
            for image in images:
                streams[-1] += 1
                yield self.score(image)

    engine = GatedEngine(Asked(), 0.0, 0.3, 1, Streamed(), point=POINT, worth=0.3)
    assert len(list(engine.looks([good() // 4] * 100))) == 100
    assert engine.count.aside == 100 - len(asked)
    assert len(asked) < 25
    assert set(streams[1:-1]) <= {1, 9}  # an audit, and those between two that it is asked for


def test_a_block_passes_with_any_of_its_cells() -> None:
    cells = np.full((9, 5), -2, np.float32)
    cells[8, 4] = cells[0, 0] = 1
    assert block_logits(cells).tolist() == [[1, -2], [-2, -2], [-2, 1]]


def test_its_network_gives_a_logit_for_each_cell() -> None:
    network = GateNetwork(1).eval().requires_grad_(False)
    (cells,) = TorchCompiled(GateGraph(network)).start(grouped(np.zeros((2, 96, 160, 1), np.uint8))).wait()
    assert cells.shape == (2, 3, 5)


def test_pixels_are_grouped_as_the_gate_was_learned() -> None:
    """A gate of an earlier profile takes them one by one."""
    shapes = []

    class Shaped(Gate):
        def start(self, tiles: Tiles) -> Ready:
            shapes.append(tiles.shape)
            return super().start(tiles)

    for group in (4, 1):
        GatedEngine(Shaped(), 0.0, 0.3, 1, Dark(), point=POINT, group=group).passed(good(768, 1024))  # type: ignore[arg-type]
    assert shapes == [(1, 768, 256, 4), (1, 768, 1024, 1)]
    image = np.arange(2 * 8 * 3, dtype=np.uint8).reshape(2, 8, 3)
    assert grouped(image)[1, 1].tolist() == image[1, 4:8].ravel().tolist()


def test_it_learns_from_the_engine_where_something_is_found() -> None:
    spec = ClothSpec(structure="plain", warp_colour=(200, 200, 200), weft_colour=(190, 190, 190))
    rng = np.random.default_rng(1)
    cloth = [np.maximum(to_grey(weave(spec, 256, 256, rng).image), 140) for _ in range(3)]
    dark = Dark(139)
    learned = learn_gate(dark, cloth, 0.1, seconds=12, seed=0)
    assert learned.channels == 1
    assert [image is cloth[0] for image in learned.apart] == [True]
    spotted, fresh = [], []
    for seed in range(2, 6):
        image = np.maximum(to_grey(weave(spec, 256, 256, np.random.default_rng(seed)).image), 140)
        fresh.append(image)
        spotted.append(image.copy())
        spotted[-1][100:120, 60:90] = 20
    gate = TorchCompiled(GateGraph(learned.network))
    found = gate_thresholds(gate, 1, dark, learned.held, (0.1, Grouping(4, 5)))
    assert found.defects > 130
    assert found.near <= 0.1
    engine = GatedEngine(gate, found.cell, found.near, 1, dark, point=(0.1, Grouping(4, 5)))
    assert all(engine.passed(image)[0, 0] for image in spotted)
    looks = list(engine.looks([*fresh, *spotted]))
    assert [len(look.regions(0.1, Grouping(4))) for look in looks] == [0] * 4 + [1] * 4


def test_two_forms_of_a_gate_are_compared_by_what_passes() -> None:
    class Rough(Gate):
        def start(self, tiles: Tiles) -> Ready:
            (cells,) = super().start(tiles).wait()
            return Ready((cells + 30,))

    image = good(256, 512)
    image[:32, :32] = 60
    image[:32, 160:192] = 150  # dark for the rough one alone
    window = Window(image, np.zeros(image.shape, np.uint8), Dark().score(image))
    assert same_blocks(Gate(), Gate(), 1, [window], 0.0) == 1
    assert same_blocks(Gate(), Rough(), 1, [window, window], 0.0) == 7 / 8


def test_too_few_defects_promise_nothing() -> None:
    held = [Window(good(), np.zeros(good().shape[:2], np.uint8), Dark().score(good()))]
    found = gate_thresholds(Gate(), 1, Dark(), held, (0.5, Grouping(4, 5)))
    assert (found.cell, found.near, found.defects) == (-np.inf, 0.0, 0)


def test_thresholds_are_set_on_each_drawn_defect_that_is_found_and_on_nothing_else() -> None:
    """Two of three that were drawn are found; a dark place that nobody drew is a false alarm."""
    image, drawn = good(), np.zeros(good().shape[:2], np.uint8)
    for number, (y, x) in enumerate(((40, 40), (200, 300), (60, 200)), 1):
        drawn[y : y + 12, x : x + 12] = number
    image[42:52, 38:50] = image[205:215, 305:315] = image[20:30, 100:110] = 0
    window = Window(image, drawn, Dark().score(image))
    found = gate_thresholds(Gate(), 1, Dark(), [window] * 70, (0.5, Grouping(4, 5)))
    assert found.defects == 140
    assert np.isfinite(found.cell)


def test_a_defect_is_kept_by_one_block_that_passes_both() -> None:
    """The block that the gate is surest of says nothing at a quick look: the other has to pass."""

    class Narrow(Dark):
        def jobs(self, jobs: Iterable[tuple[Picture, Sequence[Tile]]]) -> Iterator[list[ScoreMap]]:
            for image, tiles in jobs:
                yield [self.score(cut(image, tile)) * (tile.x0 > 0) for tile in tiles]

    image, drawn = good(), np.zeros(good().shape[:2], np.uint8)
    image[32:64, 96:128] = 0
    image[32:64, 128:144] = 0
    drawn[32:64, 96:144] = 1
    held = [Window(image, drawn, Dark().score(image))] * 240
    found = gate_thresholds(Gate(), 1, Narrow(), held, (0.5, Grouping(4, 5)))
    assert found.cell == 28  # half of its cell is dark
    looks = GatedEngine(Gate(), found.cell, found.near, 1, Narrow(), point=POINT).looks([image])
    assert [len(look.regions(*POINT)) for look in looks] == [1]


def test_thresholds_are_lowered_as_far_as_no_more_good_cloth_passes() -> None:
    """Defects are half dark; of the cloth one cell is nearly so, the others are not."""
    image, drawn = good(), np.zeros(good().shape[:2], np.uint8)
    image[32:64, 32:64] = 60
    drawn[32:64, 32:64] = 1
    held, point = [Window(image, drawn, Dark().score(image))] * 140, (0.5, Grouping(4, 5))
    set_on_defects = gate_thresholds(Gate(), 1, Dark(), held, point)
    assert (set_on_defects.cell, set_on_defects.near) == (68, 0.5)
    cloth = good(2048, 2048)
    cloth[320:352, 320:352] = 90
    cloth[1320:1352, 1320:1352] = 100

    def with_cloth(cloth: Picture) -> GateThresholds:
        without = Window(cloth, np.zeros(cloth.shape[:2], np.uint8), Dark().score(cloth))
        return gate_thresholds(Gate(), 1, Dark(), [*held, without], point)

    lowered = with_cloth(cloth)
    assert 38 < lowered.cell < 38.001
    assert 0.38 < lowered.near < 0.38001
    assert GatedEngine(Gate(), lowered.cell, lowered.near, 1, Dark(), point=POINT).passed(cloth).sum() == 0
    # of so little cloth it is not known how little passes
    assert with_cloth(cloth[:1024, :1024]) == set_on_defects


def test_pictures_that_are_too_small_for_a_gate_are_refused() -> None:
    with pytest.raises(DatasetError, match="160 × 160"):
        learn_gate(Dark(), [good(100, 400)], 0.5, seconds=1)


def test_single_places_are_looked_at_in_smaller_tiles_than_whole_pictures() -> None:
    """So a gate that stands aside costs nothing: whole pictures have the tile that is fastest for them."""
    shapes = []

    class Whole:
        runtime, step, depth = "test", 16, 2

        def start(self, tiles: Tiles) -> Ready:
            shapes.append(tiles.shape[1:3])
            return Ready((np.zeros(tiles.shape[:3], np.float32),))

    engine = SegmenterEngine(Whole(), lambda: pytest.fail("not asked"), largest=(1024, 1024))
    engine.score(good(1024, 1024))
    engine.score_where(good(1024, 1024), [(100, 100, 120, 120)])
    assert shapes[0] == (1024, 1024)
    assert len(shapes) > 1
    assert all(max(shape) <= 512 for shape in shapes[1:])


# --- what it stands on -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(700, 900), (512, 512), (1500, 400)])
def test_a_mosaic_of_some_tiles_is_the_whole_one_where_it_is_known(size: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).random(size, np.float32)
    whole = Mosaic(size, tile=(256, 320), overlap=16, border=32)
    for tile in whole.tiles:
        whole.add(cut(scores, tile))
    some = Mosaic(size, tile=(256, 320), overlap=16, border=32)
    box = (300, 280, 340, 330)
    needed = some.covering([box])
    assert 0 < len(needed) < len(some.tiles)
    for number in needed:
        some.put(number, cut(scores, some.tiles[number]))
    score, known = some.partial(needed)
    assert (known == some.known(needed)).all()
    assert known[280:330, 300:340].all()
    assert np.allclose(score[known], whole.map[known], atol=1e-5)
    assert not score[~known].any()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([256, 512, 1024]))
def test_the_side_of_a_tile_is_a_multiple_and_fits(length: int, largest: int) -> None:
    side = tile_side(length, largest, step=16, shared=80)
    assert side % 16 == 0
    assert side <= largest or side - length < 16
    tiles = plan_tiles(length, length, tile=side, overlap=min(80, side - 1))
    if side <= length:
        assert all(tile.y1 <= length for tile in tiles)
    else:
        assert len(tiles) == 1
        assert side - length < 16


def test_parts_are_evened_as_the_whole_picture_is() -> None:
    cloth = weave(ClothSpec(), 400, 600, np.random.default_rng(3)).image
    lamp = np.linspace(0.7, 1.2, 600)[None, :, None]
    image = (cloth * lamp).clip(0, 255).astype(np.uint8)
    light = Light.of([cloth])
    whole = light.even(image).astype(int)
    boxes = [(0, 0, 192, 192), (208, 400, 400, 592)]
    for (top, left, bottom, right), part in zip(boxes, light.even_at(image, boxes), strict=True):
        assert (
            np.abs(part.astype(int) - whole[top:bottom, left:right]).mean() < 4
        )  # of a contrast that is stretched


@pytest.mark.parametrize("grey", [True, False])
def test_no_defect_is_drawn_on_a_lamp_beside_the_cloth(grey: bool) -> None:
    rng = np.random.default_rng(0)
    image = weave(ClothSpec(structure="twill 2/2", grey=True), 128, 400, rng).image.copy()
    image[:, :200] = 255
    image = to_grey(image) if grey else image
    before, beside_it = image.copy(), 0
    for _ in range(20):
        shown, drawn = _window([image], (128, 300), rng)
        lamp = (to_grey(shown) == 255).mean(axis=0) > 0.5
        assert not drawn[:, lamp].any()
        beside_it += int(drawn.any())
    assert beside_it > 5
    assert (image == before).all()
