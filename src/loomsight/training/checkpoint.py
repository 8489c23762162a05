"""Weights and checkpoints on disk: safetensors and JSON, nothing pickled, whole or not there.

A checkpoint is a folder::

    checkpoint/
      state.json                  step, history, settings, and the SHA-256 of the tensors' file
      tensors-00000120-0.safetensors

``state.json`` names the tensors' file and is put in place last, by one rename, so a process killed at
any instant leaves either the previous checkpoint or the new one. The file that is no longer named goes
only then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loomsight.errors import CheckpointError, WeightsError
from loomsight.files import read_json, storage_errors, write_bytes, write_json

FORMAT = 1
DO = "remove the folder to train from the start"


# ── weights of one network ─────────────────────────────────────────────────────────────────────────
def save_weights(
    path: Path, module: nn.Module, meta: Mapping[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write a network's state as one safetensors file, atomically; the same weights give the same bytes.

    Args:
        path: the file.
        module: the network; its parameters and persistent buffers are written.
        meta: JSON values to keep beside the weights; :func:`load_weights` returns them.
        half: write matrices and convolution kernels as float16, half the size. Biases and the statistics
            of batch norm stay float32: they are small, and their range is wider than float16's.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    tensors = {key: _plain(value, half=half) for key, value in module.state_dict().items()}
    header = {"loomsight": json.dumps(dict(meta or {}), sort_keys=True, allow_nan=False)}
    write_bytes(path, safetensors.torch.save(tensors, metadata=header))


def load_weights(path: Path, module: nn.Module) -> dict[str, Any]:
    """Load weights written by :func:`save_weights` into ``module``, in the module's own number format.

    Returns:
        The ``meta`` given when they were written.

    Raises:
        WeightsError: the file is missing or damaged, or a tensor is missing, left over or of another shape;
            ``module`` is then unchanged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("loomsight", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise WeightsError("cannot read weights", where=path, why=str(error)) from error
    wrong = _mismatch(tensors, module)
    if wrong:
        raise WeightsError("weights of another network", where=path, why=wrong)
    module.load_state_dict(tensors)
    return dict(meta)


def _plain(value: Tensor, *, half: bool = False) -> Tensor:
    """A copy of ``value`` of its own on the CPU, row-major, as safetensors wants it."""
    plain = value.detach().to("cpu", copy=True).contiguous()
    if half and plain.dtype == torch.float32 and plain.ndim >= 2:
        narrow = plain.half()
        if bool(narrow.isfinite().all()):  # a weight beyond ±65,504 would become infinite
            return narrow
    return plain


def _mismatch(tensors: Mapping[str, Tensor], module: nn.Module) -> str | None:
    """Why ``tensors`` are not the state of ``module``, or None if they are."""
    state = module.state_dict()
    missing, extra = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys())
    found = [f"{text} {_some(keys)}" for text, keys in (("lacks", missing), ("has unknown", extra)) if keys]
    for key in sorted(state.keys() & tensors.keys()):
        if state[key].shape != tensors[key].shape:
            found.append(f"{key} is {_shape(tensors[key])}, not {_shape(state[key])}")
            break
    return "; ".join(found) or None


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _shape(value: Tensor) -> str:
    return "×".join(str(size) for size in value.shape) or "a single number"


# ── checkpoints of a training ──────────────────────────────────────────────────────────────────────
def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; until it is whole, the previous one in ``folder`` stays the one that is read.

    Args:
        folder: the checkpoint's folder, made if needed.
        tensors: everything that is an array.
        state: everything else, as JSON values, with the training's ``"step"``.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the previous checkpoint is intact.
    """
    data = safetensors.torch.save({key: _plain(value) for key, value in tensors.items()})
    names = (f"tensors-{state['step']:08d}-{number}.safetensors" for number in count())
    name = next(name for name in names if not (folder / name).exists())  # never over a file in use
    write_bytes(folder / name, data)
    files = {name: hashlib.sha256(data).hexdigest()}
    head = {"format": FORMAT, "files": files, "sha256": _digest(state)}
    write_json(folder / "state.json", {**head, "state": dict(state)})
    with storage_errors(folder):
        for old in folder.iterdir():  # the previous tensors, and whatever a killed process left
            if old.name not in ("state.json", name):
                old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote.

    Returns:
        The tensors, on the CPU, and the state.

    Raises:
        CheckpointError: a file is missing or damaged (its SHA-256 is checked), or of another version.
    """
    try:
        head = read_json(folder / "state.json")
        if head["format"] != FORMAT:
            raise CheckpointError(
                "cannot resume", where=folder, why="the checkpoint is of another version", do=DO
            )
        ((name, digest),) = head["files"].items()
        data, state = (folder / name).read_bytes(), head["state"]
        for file, damaged in (
            (name, hashlib.sha256(data).hexdigest() != digest),
            ("state.json", _digest(state) != head["sha256"]),
        ):
            if damaged:
                why = "the file is damaged: its SHA-256 differs"
                raise CheckpointError("cannot resume", where=folder / file, why=why, do=DO)
        return safetensors.torch.load(data), state
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(
            "cannot resume", where=folder, why=f"the checkpoint is damaged: {error}", do=DO
        ) from error


def flat(groups: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Tensors keyed "kind/name/key", as a file holds them."""
    return {
        f"{kind}/{name}/{key}": value
        for kind, named in groups.items()
        for name, tensors in named.items()
        for key, value in tensors.items()
    }


def nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What :func:`flat` made flat: by kind, by name, by key."""
    groups: dict[str, dict[str, dict[str, Tensor]]] = {}
    for path, value in tensors.items():
        kind, name, key = path.split("/", 2)
        groups.setdefault(kind, {}).setdefault(name, {})[key] = value
    return groups


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def first_difference(was: Any, now: Any, key: str = "") -> str | None:
    """In words, the first key whose value differs between two JSON values, or None."""
    if was == now:
        return None
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        was, now = dict(enumerate(was)), dict(enumerate(now))
    if isinstance(was, dict) and isinstance(now, dict):
        for name in [*was, *(name for name in now if name not in was)]:
            differs = first_difference(was.get(name), now.get(name), f"{key}.{name}" if key else str(name))
            if differs:
                return differs
    return f"{key} was {was} in the checkpoint and is {now} now"


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The moments of an optimiser (SGD, Adam, AdamW and their like), keyed "number of parameter/name"."""
    return {
        f"{number}/{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took; learning rate and other settings are left as they are.

    Raises:
        CheckpointError: the moments are those of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        number, key = path.split("/")
        if int(number) >= len(parameters) or (value.ndim and value.shape != parameters[int(number)].shape):
            raise CheckpointError(
                "cannot resume", where=path, why="the optimiser's state is of another network", do=DO
            )
        if value.ndim:  # in the memory layout of the parameter, as before: mixed layouts are slow
            value = torch.empty_like(parameters[int(number)], dtype=value.dtype).copy_(value)  # noqa: PLW2901
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_network(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Put a network's state back.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    wrong = _mismatch(tensors, network)
    if wrong:
        raise CheckpointError("cannot resume", where=name, why=f"the checkpoint {wrong}", do=DO)
    network.load_state_dict(dict(tensors))
