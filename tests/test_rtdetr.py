"""RT-DETR: batches of every kind train, several processes never wait, exports sample without GridSample."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from loomsight.detection.rtdetr import (
    Boxes,
    Detector,
    DetectorTask,
    build,
    detection_loss,
    start_from,
    targets,
)
from loomsight.errors import WeightsError
from loomsight.training.loop import TrainSettings, fit

TYPES = ("hole", "float", "unknown")
SIDE = 160


def boxes(*xyxy: tuple[float, float, float, float]) -> Boxes:
    array = np.array(xyxy, np.float32).reshape(-1, 4)
    return targets(array, np.arange(len(array)) % len(TYPES), (SIDE, SIDE))


@pytest.fixture(scope="module")
def network() -> Detector:
    torch.manual_seed(0)
    return build("lite0", TYPES).train()


def spread(count: int) -> Boxes:
    rng = np.random.default_rng(0)
    at = rng.uniform(0, SIDE - 12, (count, 2))
    return boxes(*[(x, y, x + 8, y + 5) for x, y in at])


EDGE_CASES = {
    "no box in the batch": [boxes(), boxes()],
    "a box in one picture": [boxes((20, 20, 40, 44)), boxes()],
    "boxes of one pixel": [boxes((20, 20, 21, 21), (0, 0, 1, 1)), boxes((159, 159, 160, 160))],
    "boxes without extent": [boxes((20, 20, 20, 20)), boxes((160, 160, 160, 160))],
    "boxes at and beyond the border": [boxes((-5, -5, 30, 30), (0, 0, 160, 160)), boxes((150, 0, 190, 160))],
    "300 boxes": [spread(300), boxes()],
    "more boxes than queries": [spread(320), boxes((1, 1, 9, 9))],
}


@pytest.mark.parametrize("case", list(EDGE_CASES))
def test_the_loss_is_finite_and_every_weight_takes_part(case: str, network: Detector) -> None:
    network.zero_grad(set_to_none=True)
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    loss = detection_loss(network, x, EDGE_CASES[case], torch.autocast("cpu", torch.bfloat16))
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    loss.backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "another process would wait for these"
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_targets_lie_within_the_tile_and_have_an_extent() -> None:
    made = targets(np.array([[-9, 3, 2, 3], [158, 150, 300, 300]], np.float32), np.array([0, 1]), (160, 160))
    cx, cy, w, h = (160 * made["boxes"]).T
    assert (w >= 1 - 1e-5).all()
    assert (h >= 1 - 1e-5).all()
    assert (cx - w / 2 >= -1e-4).all()
    assert (cx + w / 2 <= 160 + 1e-4).all()
    assert (cy + h / 2 <= 160 + 1e-4).all()
    assert (cx[1] - w[1] / 2, cx[1] + w[1] / 2) == (pytest.approx(158), pytest.approx(160))


def test_it_learns_where_and_what() -> None:
    """A bright square is a hole, a dark one a float: after a short training both are boxed and named."""
    side = 96
    torch.manual_seed(0)

    def batch(k: int) -> DetectorBatch:
        rng = np.random.default_rng(k)
        image = rng.integers(90, 110, (4, 3, side, side)).astype(np.uint8)
        labels = []
        for picture in image:
            kind, size = int(rng.integers(2)), int(rng.integers(16, 28))
            x, y = (int(value) for value in rng.integers(4, side - 32, 2))
            picture[:, y : y + size, x : x + size] = (250, 10)[kind]
            box = np.array([[x, y, x + size, y + size]], np.float32)
            labels.append(targets(box, np.array([kind]), (side, side)))
        return {"image": torch.from_numpy(image), "labels": labels}

    network = build("lite0", TYPES)
    fit(DetectorTask(network, lr=3e-3), batch, TrainSettings(steps=130, ema=0.95, schedule="constant"))
    right = 0
    for k in range(1000, 1003):
        made = batch(k)
        with torch.inference_mode():
            defect, types, found = network(made["image"].float() / 255)
        for picture, truth in enumerate(made["labels"]):
            best = int(defect[picture].argmax())
            middle, half = truth["boxes"][0, :2], 0.5 * truth["boxes"][0, 2:]
            near = float((found[picture, best] - torch.cat([middle - half, middle + half])).abs().max()) < 0.1
            right += near and int(types[picture, best].argmax()) == int(truth["class_labels"][0])
    assert right >= 9, f"{right} of 12"


def _rank(rank: int, port: int, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    network = DistributedDataParallel(build("lite0", TYPES).train())
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(rank))
    turns = [[boxes((20, 20, 40, 44)), boxes()], [boxes(), boxes()], [boxes(), boxes()]]
    for step in range(3):  # in the first step one process has boxes, in the second the other, then neither
        labels = turns[step] if rank == 0 else turns[(step + 1) % 2 + (step == 2)]
        optimizer.zero_grad()
        detection_loss(network, x, labels).backward()
        optimizer.step()
    total = sum(float(p.detach().abs().sum()) for p in network.parameters() if p.requires_grad)
    Path(results, str(rank)).write_text(repr(total), encoding="utf-8")
    torch.distributed.destroy_process_group()


def test_two_processes_train_on_though_one_has_no_boxes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.spawn(_rank, (port, str(tmp_path)), nprocs=2, join=False)
    deadline = 120.0
    while not context.join(timeout=5):
        deadline -= 5
        assert deadline > 0, "the processes wait for one another"
    one, two = ((tmp_path / str(rank)).read_text(encoding="utf-8") for rank in (0, 1))
    assert one == two, "both have the same weights"


def test_discrete_sampling_reads_the_nearest_cell() -> None:
    torch.manual_seed(3)
    network = build("lite0", TYPES).eval()
    x = torch.rand(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        between, *_ = network(x)
        network.sample("discrete")
        nearest, *_ = network(x)
        network.sample("bilinear")
        again, *_ = network(x)
    assert torch.equal(between, again)
    assert nearest.shape == between.shape
    assert not torch.equal(between, nearest)
    assert float((between - nearest).abs().mean()) < 0.5 * float(between.std()) + 0.05


@pytest.mark.parametrize("form", ["resnet18", "resnet50"])
@pytest.mark.parametrize("by", ["transformers", "its names in memory"])
def test_published_weights_load_but_for_the_types(form: str, by: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = build(form, tuple(f"type {k}" for k in range(80)))  # type: ignore[arg-type]
    path = tmp_path / "model.safetensors"
    if by == "transformers":
        published.network.save_pretrained(tmp_path)
    else:
        safetensors.torch.save_file(
            {k: v.contiguous().clone() for k, v in published.network.state_dict().items()}, path
        )
    network = build(form, TYPES, weights=path)  # type: ignore[arg-type]
    ours, theirs = network.network.state_dict(), published.network.state_dict()
    loaded = [key for key, value in ours.items() if torch.equal(value, theirs[key])]
    assert "model.decoder.layers.0.self_attn.q_proj.weight" in loaded
    fresh = set(ours) - set(loaded)
    assert fresh
    assert all("class_embed" in key or "score_head" in key for key in fresh)
    other = "resnet50" if form == "resnet18" else "resnet18"
    with pytest.raises(WeightsError, match=other):
        build(other, TYPES, weights=path)  # type: ignore[arg-type]


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        build("resnet18", TYPES, weights=tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="safetensors"):
        build("resnet18", TYPES, weights=broken)
    with pytest.raises(WeightsError, match="lite0"):
        build("lite0", TYPES, weights=broken)


def test_a_detector_of_other_types_keeps_what_both_know() -> None:
    torch.manual_seed(2)
    base, fresh = build("lite0", ("float", "hole", "nep")), build("lite0", ("hole", "stain"))
    before = fresh.state_dict()["network.model.enc_score_head.weight"].clone()
    start_from(fresh, base.state_dict(), base.types)
    own, theirs = fresh.state_dict(), base.state_dict()
    head = "network.model.enc_score_head.weight"
    assert torch.equal(own[head][0], theirs[head][0]), "any defect"
    assert torch.equal(own[head][1], theirs[head][2]), "hole"
    assert torch.equal(own[head][2], before[2]), "stain is new"
    key = "network.model.decoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(own[key], theirs[key])
    with pytest.raises(RuntimeError, match="weights"):
        start_from(fresh, {}, ())
