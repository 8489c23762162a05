"""The segmenter: its two forms, its loss, that training repeats, and that it learns at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loomsight.detection.deeplab import Form, SegmenterTask, build, segmentation_loss
from loomsight.fabric.types import LabelledPicture, TrainingTile
from loomsight.learn.segmenter import collate, train_segmenter
from loomsight.loom import ClothSpec, weave
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis.recipe import Material, Recipe

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
