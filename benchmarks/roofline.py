"""What share of this machine does the segmenter use, and what would the next factor need?

    python benchmarks/roofline.py --profile denim

Counted: multiplications and bytes of each pixel, from the networks' own layers (each layer's result is
written once and read once, a byte a number in INT8, four in float32). Measured, by turns in one run: how many
multiplications a second one large convolution reaches in float32 and INT8, how many bytes a second a copy
moves, and how fast the segmenter is on one tile in both. The roof of a network is the lower of the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from loomsight.profile import Profile
from loomsight.runtime.compiled import Compiled, OpenVinoCompiled
from loomsight.runtime.export import Trials, export_network
from loomsight.runtime.gate import GateGraph, GateNetwork, grouped
from loomsight.runtime.graphs import Graph, SegmenterGraph
from loomsight.runtime.throughput import by_turns

TILE = (512, 512)
_WIDE, _SIDE = 256, 128  # channels and pixels a side of the large convolution


class Large(Graph):
    """One convolution that keeps every multiplier busy: 3 × 3, 256 channels in and out."""

    outputs = ("scores",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, _WIDE, 1)
        self.large = nn.Sequential(*(nn.Conv2d(_WIDE, _WIDE, 3, padding=1) for _ in range(4)))

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.large(self.first(tiles.permute(0, 3, 1, 2).float() / 255))
        return (x.mean(1),)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, required=True, help="exported")
    asked = parser.parse_args()
    profile = Profile.open(asked.profile)
    graph = SegmenterGraph(profile.segmenter())
    pixels = np.zeros((1, *TILE, 3), np.uint8)
    macs, numbers = counted(graph, pixels)
    gate_macs, gate_numbers = counted(GateGraph(GateNetwork(3)), grouped(pixels))
    print("| network | multiplications / px | numbers written / px |\n|---|---|---|")
    print(f"| segmenter | {macs:.0f} | {numbers:.1f} |")
    print(f"| gate, colour | {gate_macs:.0f} | {gate_numbers:.2f} |")

    large = Large().eval().requires_grad_(False)
    some = np.random.default_rng(0).integers(0, 256, (4, _SIDE, _SIDE, 3), np.uint8)
    exports = export_network(large, "large", Trials(some, None, 0.5), free=True)
    ready = {
        one.precision: OpenVinoCompiled(one.model, one.weights, step=1, exact=one.precision == "fp32")
        for one in exports
        if one.format == "openvino"
    }
    tile = np.random.default_rng(0).integers(0, 256, (1, *TILE, 3), np.uint8)
    whole = {name: profile.compiled("segmenter", name) for name in ("openvino", "openvino-int8")}  # type: ignore[arg-type]
    source = torch.zeros(128_000_000, dtype=torch.uint8)
    target = torch.empty_like(source)

    def copy() -> float:
        target.copy_(source)
        return 2 * source.numel() / 1e9

    own = 4 * 9 * _WIDE**2 * _SIDE**2 / 1e9
    works: dict[str, Callable[[], float]] = {
        "float32, 10⁹ multiplications / s": _running(ready["fp32"], some[:1], own),
        "INT8, 10⁹ multiplications / s": _running(ready["int8"], some[:1], own),
        "copy, 10⁹ bytes / s": copy,
        "segmenter float32, Mpx / s": _running(whole["openvino"], tile, tile[..., 0].size / 1e6),
        "segmenter INT8, Mpx / s": _running(whole["openvino-int8"], tile, tile[..., 0].size / 1e6),
    }
    speeds = by_turns(works, rounds=7)
    print("| measured | best | median |\n|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed.best:.1f} | {speed.median:.1f} |")
    best = [speed.best for speed in speeds.values()]
    for name, peak, speed, size in (("float32", best[0], best[3], 4), ("INT8", best[1], best[4], 1)):
        by_work, by_bytes = peak * 1e3 / macs, best[2] * 1e3 / (2 * size * numbers)
        print(
            f"{name}: the roof is {min(by_work, by_bytes):.0f} Mpx/s ({by_work:.0f} by multiplications, "
            f"{by_bytes:.0f} by bytes if nothing stayed in the cache); reached {speed:.1f}, "
            f"{speed * macs / 1e3 / peak:.0%} of the multiplications"
        )


def counted(graph: Graph, tile: NDArray[np.uint8]) -> tuple[float, float]:
    """Multiplications, and numbers that layers write, for each pixel of a tile of :data:`TILE`."""
    total, written = 0, 0

    def count(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total, written
        assert isinstance(layer, nn.Conv2d)  # noqa: S101
        per = layer.weight[0].numel()
        total += out.numel() * per
        written += out.numel()

    handles = [one.register_forward_hook(count) for one in graph.modules() if isinstance(one, nn.Conv2d)]
    with torch.no_grad():
        graph.eval()(torch.from_numpy(tile))
    for handle in handles:
        handle.remove()
    pixels = TILE[0] * TILE[1]
    return total / pixels, written / pixels


def _running(compiled: Compiled | None, tiles: Any, amount: float, times: int = 8) -> Callable[[], float]:
    if compiled is None:
        raise SystemExit("the profile is not exported: loomsight export PROFILE")

    def work() -> float:
        flying = [compiled.start(tiles) for _ in range(times)]
        for pending in flying:
            pending.wait()
        return times * amount

    return work


if __name__ == "__main__":
    main()
