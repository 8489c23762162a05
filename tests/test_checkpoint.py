"""Weights and checkpoints on disk."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from loomsight.errors import CheckpointError, StorageError, WeightsError
from loomsight.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(a.state_dict()[key], value) for key, value in b.state_dict().items())


# ── weights ────────────────────────────────────────────────────────────────────────────────────────
def test_weights_come_back_with_their_meta(tmp_path: Path) -> None:
    saved, loaded = network(0), network(1)
    save_weights(tmp_path / "w.safetensors", saved, {"scale": 0.25, "fabrics": ["denim"]})
    assert load_weights(tmp_path / "w.safetensors", loaded) == {"scale": 0.25, "fabrics": ["denim"]}
    assert same(loaded, saved)


def test_the_same_weights_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(tmp_path / name, network(), {"z": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_half_weights_are_half_the_size_and_keep_wide_values(tmp_path: Path) -> None:
    saved, loaded = network(0, width=64), network(1, width=64)
    with torch.no_grad():
        saved[1].running_var.fill_(1e6)  # beyond float16: a statistic
        saved[2].weight[0, 0] = 1e5  # beyond float16: a kernel
    save_weights(tmp_path / "full", saved)
    save_weights(tmp_path / "half", saved, half=True)
    kernel = saved[0].weight.numel()
    assert (tmp_path / "full").stat().st_size - (tmp_path / "half").stat().st_size == pytest.approx(
        2 * kernel, abs=64
    )
    load_weights(tmp_path / "half", loaded)
    assert torch.equal(loaded[1].running_var, saved[1].running_var)
    assert torch.equal(loaded[2].weight, saved[2].weight)
    assert torch.allclose(loaded[0].weight, saved[0].weight, rtol=1e-3)
    assert loaded[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "has unknown 1.bias, 1.num_batches_tracked and 5 more"),
        (nn.Sequential(*network(), nn.Conv2d(1, 1, 1)), "lacks 3.bias, 3.weight"),
        (network(width=4), "0.bias is 8, not 4"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(
    tmp_path: Path, other: nn.Module, says: str
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, network())
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(path, other)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_missing_and_damaged_weights_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        load_weights(path, network())
    save_weights(path, network())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError) as caught:
        load_weights(path, network())
    assert "\n" not in str(caught.value)


# ── checkpoints ────────────────────────────────────────────────────────────────────────────────────
def write(folder: Path, step: int, size: int = 100) -> None:
    save_checkpoint(folder, {"a/b/c": torch.full((size,), float(step))}, {"step": step, "x": [0.1, None]})


def test_a_checkpoint_comes_back_and_replaces_the_one_before(tmp_path: Path) -> None:
    for step in (5, 6, 6):
        write(tmp_path, step)
    (tmp_path / ".tensors-00000007.x.part").write_bytes(b"left by a killed process")
    write(tmp_path, 7)
    tensors, state = load_checkpoint(tmp_path)
    assert state == {"step": 7, "x": [0.1, None]}
    assert tensors["a/b/c"].tolist() == [7.0] * 100
    assert len(list(tmp_path.iterdir())) == 2


def test_half_a_new_checkpoint_leaves_the_previous_one(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "tensors-00000006-0.safetensors").write_bytes(b"half")  # killed before state.json
    assert load_checkpoint(tmp_path)[1]["step"] == 5
    write(tmp_path, 6)
    assert load_checkpoint(tmp_path)[0]["a/b/c"][0] == 6


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 5)
    before = sorted(path.name for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a write beyond this fails, as on a full disk
    try:
        with pytest.raises(StorageError, match="cannot write"):
            write(tmp_path, 6, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert load_checkpoint(tmp_path)[1]["step"] == 5


def flip_a_bit(folder: Path) -> None:
    path = next(folder.glob("tensors-*"))
    data = bytearray(path.read_bytes())
    data[-10] ^= 4
    path.write_bytes(data)


def change_the_step(folder: Path) -> None:
    head = json.loads((folder / "state.json").read_text())
    head["state"]["step"] += 1
    (folder / "state.json").write_text(json.dumps(head))


def cut_the_json(folder: Path) -> None:
    (folder / "state.json").write_bytes((folder / "state.json").read_bytes()[:40])


def lose_the_tensors(folder: Path) -> None:
    next(folder.glob("tensors-*")).unlink()


def write_a_list(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


def age(folder: Path) -> None:
    (folder / "state.json").write_text('{"format": 0}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_bit, "SHA-256 differs"),
        (change_the_step, "SHA-256 differs"),
        (cut_the_json, "damaged"),
        (lose_the_tensors, "damaged"),
        (write_a_list, "damaged"),
        (age, "another version"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    write(tmp_path, 5)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
