"""The segmenter: its two forms, its loss, that training repeats, and that it learns at all."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from loomsight.detection.deeplab import (
    IGNORED,
    DeepLabLite,
    Form,
    SegmenterTask,
    box_loss,
    build,
    segmentation_loss,
    start_from,
)
from loomsight.fabric.types import LabelledPicture, Picture, Region, TrainingTile
from loomsight.learn.segmenter import SegmenterSettings, collate, train_segmenter
from loomsight.loom import ClothSpec, weave
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis.recipe import Material, Recipe
from loomsight.training.loop import TrainSettings, fit

TINY = Recipe(arms=("drawn",), tile=64, batch=3)


@pytest.fixture(scope="module")
def material() -> Material:
    rng = np.random.default_rng(0)
    known = []
    for number in range(4):
        cloth = weave(ClothSpec(structure="satin 5"), 96, 128, rng, defects="random" if number else ())
        known.append(LabelledPicture(cloth.image, cloth.mask, fabric=f"f{number}"))
    return Material([weave(ClothSpec(), 96, 128, rng).image], known)


@pytest.mark.parametrize("form", ["lite", "paper"])
def test_both_forms_go_forward_and_backward_from_random_weights(form: Form) -> None:
    torch.manual_seed(0)
    network = build(form, pretrained=False).train()
    logits = network(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    target = torch.zeros(2, 1, 64, 96)
    target[:, :, 20:30, 20:40] = 1
    loss = segmentation_loss(logits, target, torch.ones_like(target), network.defect_weight)
    loss.backward()  # type: ignore[no-untyped-call]
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learning)
    assert any(bool(p.grad.abs().max() > 0) for p in learning if p.grad is not None)
    assert network.defect_weight == {"lite": 3.0, "paper": 9.0}[form]


def test_the_paper_s_output_has_a_score_for_one_picture_in_evaluation() -> None:
    network = build("paper").eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_the_loss_counts_a_defect_more_and_the_unknown_not_at_all() -> None:
    logits, target, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    plain = segmentation_loss(logits, target, weight, 9.0)
    target[..., 0, 0] = 1
    assert torch.isclose(segmentation_loss(logits, target, weight, 9.0), plain * (15 + 9) / 16)
    weight[..., 0, 0] = 0
    logits[..., 0, 0] = 50
    assert torch.isclose(segmentation_loss(logits, target, weight, 9.0), plain)
    assert segmentation_loss(logits, target, torch.zeros_like(weight), 9.0) == 0


def test_a_box_asks_for_some_of_the_defect_in_each_row_and_column() -> None:
    thread, dot, nothing = (torch.full((1, 1, 20, 20), -20.0) for _ in range(3))
    boxes, weight = [np.array([[4, 6, 14, 16]])], torch.ones(1, 1, 20, 20)
    weight[..., 6:16, 4:14] = 0
    for k in range(10):
        thread[..., 6 + k, 4 + k] = 20  # on the slant, from corner to corner
    dot[..., 10, 8] = 20
    assert box_loss(thread, boxes, weight) < 1e-3
    assert box_loss(nothing, boxes, weight) == pytest.approx(20 * 20)
    assert box_loss(dot, boxes, weight) == pytest.approx(18 * 20)
    assert box_loss(nothing, [np.zeros((0, 4), np.int64)], weight) == 0
    weight[..., 6:16, 8:10] = 1  # known to be good: a defect and its mirror image, and cloth between them
    assert box_loss(nothing, boxes, weight) == pytest.approx(18 * 20)
    many = torch.full((8, 1, 160, 160), -3.0, dtype=torch.float16)  # their sum is no number of 16 bits
    assert box_loss(many, [np.zeros((0, 4), np.int64)] * 8, torch.ones_like(many)) == 0


def test_a_box_that_the_tile_cuts_asks_only_what_must_lie_in_the_tile() -> None:
    nothing, weight = torch.full((1, 1, 20, 20), -20.0), torch.zeros(1, 1, 20, 20)
    assert box_loss(nothing, [np.array([[14, 2, 20, 8]])], weight) == pytest.approx(6 * 20)  # its columns
    assert box_loss(nothing, [np.array([[4, 0, 14, 8]])], weight) == pytest.approx(8 * 20)  # its rows
    assert box_loss(nothing, [np.array([[0, 0, 14, 8]])], weight) == 0


def test_a_segmenter_learns_from_boxes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares without grain in grainy cloth, of which only the boxes are known."""
    rng = np.random.default_rng(0)

    def cloth(x: int, y: int) -> Picture:
        image = rng.integers(90, 160, (96, 96, 1)).astype(np.uint8).repeat(3, axis=2)
        image[y : y + 16, x : x + 16] = 125
        return image

    known = []
    for number in range(6):
        x, y = (int(at) for at in rng.integers(8, 64, 2))
        box = np.array([[x, y, x + 16, y + 16]], np.float32)
        known.append(LabelledPicture(cloth(x, y), None, box, ("hole",), f"boxed {number}"))
    recipe = Recipe(arms=("none",), tile=64, batch=4, stretch=0)
    tests = [(cloth(24, 40), 24, 40), (cloth(50, 12), 50, 12)]

    def inside_and_beside() -> tuple[float, float]:
        settings = SegmenterSettings(ema=0.8)
        network, _ = train_segmenter(Material([], known), recipe, settings, steps=150, seed=1)
        inside, beside = [], []
        for image, x, y in tests:
            score = TorchEngine(network).score(image)
            inside.append(score[y : y + 16, x : x + 16].mean())
            score[y - 4 : y + 20, x - 4 : x + 20] = 0
            beside.append(score.max())
        return float(np.mean(inside)), max(beside)

    inside, beside = inside_and_beside()
    assert inside > 0.5
    assert beside < 0.3
    monkeypatch.setattr("loomsight.detection.deeplab.box_loss", lambda *_: torch.zeros(()))
    assert inside_and_beside()[0] < 0.25, "what the boxes taught is not what it would have said anyway"


def test_tiles_become_a_batch() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tile = TrainingTile(image, np.eye(4, dtype=np.float32), np.ones((4, 4), np.float32))
    batch = collate([tile, tile])
    assert batch["image"].shape == (2, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8
    assert (batch["image"][1, 2].numpy() == image[..., 2]).all()
    assert (batch["target"][0, 0].numpy() == np.eye(4)).all()


def test_the_backbone_stays_as_it_was_and_the_same_seed_gives_the_same_weights(material: Material) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        network, history = train_segmenter(material, TINY, steps=4, seed=seed)
        assert history.steps == 4
        return network.state_dict()

    one, two, other, fresh = weights(1), weights(1), weights(2), build("lite").state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    backbone = [key for key in one if key.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(one[key], fresh[key]) for key in backbone)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_it_learns_what_it_is_shown() -> None:
    torch.manual_seed(0)
    network = build("lite")
    task = SegmenterTask(network)
    image = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    image[..., 24:40, 24:40] = 10
    target = torch.zeros(2, 1, 64, 64)
    target[..., 24:40, 24:40] = 1
    network.train()
    first: float | None = None
    for _ in range(25):
        logits = network(image.float() / 255)
        loss = segmentation_loss(logits, target, torch.ones_like(target), network.defect_weight)
        first = first or loss.item()
        task.optimizers["segmenter"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        task.optimizers["segmenter"].step()
    assert first is not None
    assert loss.item() < 0.4 * first


def test_an_engine_scores_any_size_grey_and_coloured_alike() -> None:
    engine = TorchEngine(build("lite"))
    grey = weave(ClothSpec(grey=True), 40, 150, np.random.default_rng(0)).image
    score = engine.score(grey)
    assert score.shape == (40, 150)
    assert score.dtype == np.float32
    assert ((score >= 0) & (score <= 1)).all()
    assert (engine.score(np.repeat(grey[..., None], 3, axis=2)) == score).all()


def test_naming_types_does_not_change_where_defects_are(material: Material) -> None:
    plain, _ = train_segmenter(material, TINY, steps=4, seed=1)
    named, _ = train_segmenter(material, TINY, steps=4, seed=1, types=("slub", "hole"))
    theirs = named.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in plain.state_dict().items())
    assert any(key.startswith("naming.") for key in theirs)


def test_it_names_what_it_was_shown_and_is_silent_where_it_does_not_know() -> None:
    """Dark squares are holes, bright ones stains; after a few steps the engine says so."""
    types = ("hole", "stain")

    def tile(kind: int, at: int) -> TrainingTile:
        image = np.full((64, 64, 3), 128, np.uint8)
        image[at : at + 16, at : at + 16] = (10, 250)[kind]
        instances = np.zeros((64, 64), np.int16)
        instances[at : at + 16, at : at + 16] = 1
        target = (instances > 0).astype(np.float32)
        return TrainingTile(image, target, np.ones_like(target), "drawn", instances, (types[kind],))

    torch.manual_seed(0)
    network = build("lite", types=types)
    tiles = [tile(kind, at) for kind in (0, 1) for at in (8, 24, 40)]
    fit(SegmenterTask(network), lambda _: collate(tiles, types), TrainSettings(steps=25, ema=0.8))
    engine = TorchEngine(network)
    for kind, name in enumerate(types):
        (found,) = engine.name(tile(kind, 20).image, [Region((20, 20, 36, 36), 256, 16.0, 0.9)])
        assert found.type == name
    fresh = TorchEngine(build("lite", types=types))
    (doubtful,) = fresh.name(np.full((80, 90), 128, np.uint8), [Region((5, 5, 9, 9), 16, 4.0, 0.9)])
    assert doubtful.type in ("unknown", *types)
    (silent,) = TorchEngine(build("lite")).name(tiles[0].image, [Region((5, 5, 9, 9), 16, 4.0, 0.9)])
    assert silent.type == "unknown"


def test_regions_of_any_size_are_named_in_windows_of_few_sizes() -> None:
    """torch keeps a megabyte and more for each size that a network ever saw, and a roll is long."""

    class Seen(DeepLabLite):
        sizes: ClassVar[set[tuple[int, ...]]] = set()
        looks: ClassVar[list[int]] = []

        def with_types(
            self, x: torch.Tensor, places: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            self.sizes.add(tuple(x.shape[-2:]))
            self.looks.append(1)
            return super().with_types(x, places)

    rng = np.random.default_rng(0)
    engine = TorchEngine(Seen(pretrained=False, types=("hole", "stain")))
    image = np.full((600, 700), 128, np.uint8)
    regions = []
    for _ in range(12):
        (y0, x0), (high, wide) = rng.integers(0, 500, 2), rng.integers(3, 120, 2)
        box = (int(x0), int(y0), int(x0 + wide), int(y0 + high))
        regions.append(Region(box, int(high * wide), float(max(high, wide)), 0.9))
    corners = ((0, 0, 600, 3), (690, 590, 700, 600), (0, 0, 700, 600))
    regions += [Region(corner, 30, 9.0, 0.9) for corner in corners]
    assert len(engine.name(image, regions)) == 15
    assert len(Seen.sizes) <= 9
    assert max(max(size) for size in Seen.sizes) <= 512
    before = len(Seen.looks)
    crowd = [Region((300 + 3 * k, 300, 302 + 3 * k, 302), 4, 2.0, 0.9) for k in range(8)]
    engine.name(image, crowd)
    assert len(Seen.looks) - before <= 2  # neighbours are named in one look


def test_unknown_types_and_boxes_without_masks_name_no_pixel() -> None:
    instances = np.zeros((6, 6), np.int16)
    instances[0, :4], instances[3:, 3:] = 1, 2
    target = (instances == 1).astype(np.float32)  # the second is only boxed
    image = np.zeros((6, 6, 3), np.uint8)
    tile = TrainingTile(image, target, 1 - (instances == 2), "real", instances, ("slub", "hole"))
    known = collate([tile], ("hole", "slub"))["types"][0]
    assert known.tolist() == [[1, 1, IGNORED], [IGNORED] * 3, [IGNORED] * 3]
    assert (collate([tile], ("nep",))["types"] == IGNORED).all()


@pytest.mark.parametrize("places", [0, 1, 2])
def test_a_step_with_hardly_a_place_of_a_known_type_is_finite(places: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    target, instances = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.int16)
    target[20, 20 : 20 + 2 * places] = instances[20, 20 : 20 + 2 * places] = 1
    batch = collate(
        [TrainingTile(image, target, np.ones_like(target), "drawn", instances, ("hole",))], ("hole",)
    )
    assert int((batch["types"] != IGNORED).sum()) == places
    network = build("lite", types=("hole",))
    history = fit(SegmenterTask(network), lambda _: batch, TrainSettings(steps=3, amp="float32"))
    assert history.skipped == 0
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


def test_a_base_without_types_starts_a_segmenter_with_them(material: Material) -> None:
    base, _ = train_segmenter(material, TINY, steps=2, seed=1)
    named = build("lite", types=("slub",))
    start_from(named, base.state_dict())
    assert torch.equal(named.state_dict()["head.weight"], base.state_dict()["head.weight"])
    with pytest.raises(RuntimeError, match="head"):
        start_from(named, {key: value for key, value in base.state_dict().items() if "head" not in key})


def test_types_that_a_base_knows_are_known_from_the_start(material: Material) -> None:
    base, _ = train_segmenter(material, TINY, steps=4, seed=1, types=("hole", "slub"))
    x = torch.rand(1, 3, 64, 64)
    places = torch.ones(1, 32, 32, dtype=torch.bool)
    after = build("lite", types=("slub", "tear")).eval()
    start_from(after, base.state_dict(), base.types)
    with torch.no_grad():
        (_, before), (_, now) = (network.eval().with_types(x, places) for network in (base, after))
    assert before is not None
    assert now is not None
    assert torch.allclose(now[:, 0], before[:, 1], atol=1e-5)
    assert not torch.allclose(now[:, 1], before[:, 0], atol=1e-2)
