"""How a training computes: in which number format, and with the same bits each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.utils.deterministic
from torch import Tensor

Precision = Literal["auto", "float32", "bf16", "fp16"]


def fast_bf16_on_cpu() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX).

    Without those instructions bfloat16 is emulated and slower than float32.
    """
    ask: Callable[[], dict[str, Any]] = getattr(
        torch.cpu, "get_capabilities", dict
    )  # older torch cannot tell
    capabilities = ask()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve(precision: Precision, device: torch.device) -> Literal["float32", "bf16", "fp16"]:
    """The format that ``"auto"`` means on ``device``; any other is kept as asked."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and fast_bf16_on_cpu() else "float32"


def autocast(
    precision: Literal["float32", "bf16", "fp16"], device: torch.device
) -> AbstractContextManager[object]:
    """The block in which matrix products and convolutions run in ``precision``; weights stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seeded generators for the block, and on a CPU deterministic kernels; the caller's are put back."""
    gpus = [device] if device.type == "cuda" else []
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # filling new memory with NaN would cost time and change no bit
    fill = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        try:
            if not gpus:  # costs nothing on a CPU; a GPU would lose its fastest convolutions
                torch.use_deterministic_algorithms(True, warn_only=True)
                memory.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            memory.fill_uninitialized_memory = fill


def random_states(device: torch.device, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Where the global generators and ``generator`` stand, as tensors."""
    states = {"global": torch.get_rng_state(), f"own on {device.type}": generator.get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: {"state": state} for name, state in states.items()}


def restore_random(
    states: dict[str, dict[str, Tensor]], device: torch.device, generator: torch.Generator
) -> None:
    """Put the generators back; those of a kind of device that is not used now are left as seeded."""
    torch.set_rng_state(states["global"]["state"])
    if f"own on {device.type}" in states:
        generator.set_state(states[f"own on {device.type}"]["state"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"]["state"], device)
