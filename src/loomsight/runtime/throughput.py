"""How many pixels a second does this machine inspect? Every engine by turns, in one run.

Machines are noisy: all contenders go round after round, and each has its best round and its median. What
matters for a line is the median; what a processor can do is the best.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from loomsight.fabric.types import Picture
from loomsight.progress import Progress
from loomsight.runtime.compiled import Compiled, OnnxCompiled, OpenVinoCompiled, TorchCompiled
from loomsight.runtime.engine import SegmenterEngine, UnionEngine
from loomsight.runtime.export import Trials, export_network
from loomsight.runtime.gate import OVERHEAD, GatedEngine, GateGraph, GateNetwork, grouped
from loomsight.runtime.graphs import SegmenterGraph

PASSING = 0.02
"""The share of the cloth that a gate is taken to pass where no fabric is known."""
_STRIP = (1024, 2048)  # pixels of what is measured on


@dataclass(frozen=True, slots=True)
class Speed:
    """Megapixels a second."""

    best: float
    median: float


def by_turns(
    contenders: Mapping[str, Callable[[], float]], *, rounds: int, progress: Progress | None = None
) -> dict[str, Speed]:
    """Run all contenders once in each round.

    Args:
        contenders: each does its work and says how many megapixels it was.
        rounds: counted; one more goes before, in which networks are compiled.
    """
    progress = progress or Progress()
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            began = time.perf_counter()
            megapixels = work()
            if number:
                speeds[name].append(megapixels / (time.perf_counter() - began))
        progress.step("rounds", number, rounds)
    return {name: Speed(max(own), statistics.median(own)) for name, own in speeds.items()}


def scoring(
    engine: SegmenterEngine | UnionEngine | GatedEngine, pictures: Sequence[Picture]
) -> Callable[[], float]:
    """The work of scoring pictures."""

    def work() -> float:
        seen = engine.looks(pictures) if isinstance(engine, GatedEngine) else engine.scores(pictures)
        done = sum(int(one.shape[0] * one.shape[1]) for one in seen)
        return done / 1e6

    return work


def of_machine(*, rounds: int = 5, progress: Progress | None = None) -> dict[str, Speed]:
    """What this machine does with the segmenter in every runtime, and with a gate before the fastest.

    The networks have learned nothing: what they would say does not change how long it takes. With the gate it
    is computed from its own speed, for :data:`PASSING` of the cloth.
    """
    from loomsight.detection.deeplab import build

    progress = progress or Progress()
    strip = _noise(*_STRIP)
    network = build("lite", pretrained=False).eval().requires_grad_(False)
    graph = SegmenterGraph(network)
    progress.say("exporting a network that has learned nothing")
    engines: dict[str, Compiled] = {"torch": TorchCompiled(graph)}
    engines |= dict(_exported(graph, "segmenter", np.stack([_noise(160, 160) for _ in range(8)])))
    contenders = {
        name: scoring(SegmenterEngine(compiled, lambda: network, largest="measured"), [strip])
        for name, compiled in engines.items()
    }
    gate = dict(_exported(GateGraph(GateNetwork(1).eval()), "gate", grouped(_noise(320, 320)[None, ..., :1])))
    tiles = grouped(np.ascontiguousarray(strip[None, ..., :1]))

    def gating() -> float:
        flying = [gate["openvino-int8"].start(tiles) for _ in range(8)]
        for pending in flying:
            pending.wait()
        return 8 * tiles.size / 1e6

    speeds = by_turns({**contenders, "gate": gating}, rounds=rounds, progress=progress)
    alone, full = speeds.pop("gate"), speeds["openvino-int8"]
    speeds["gated"] = Speed(
        *(
            1 / (1 / a + PASSING * OVERHEAD / b)
            for a, b in ((alone.best, full.best), (alone.median, full.median))
        )
    )
    return speeds


def metres_per_minute(megapixels_per_second: float, *, width_m: float, mm_per_px: float) -> float:
    """How fast a web of that width may run."""
    rows_per_second = megapixels_per_second * 1e6 / (1000 * width_m / mm_per_px)
    return rows_per_second * mm_per_px / 1000 * 60


def _exported(
    graph: SegmenterGraph | GateGraph, name: str, tiles: UInt8[NDArray[np.uint8], "n h w c"]
) -> Iterator[tuple[str, Compiled]]:
    """A network in each runtime; that it has learned nothing would fail the comparison of INT8."""
    for one in export_network(graph, name, Trials(tiles, None, 0.5), free=True):
        if one.format == "onnx":
            yield "onnxruntime", OnnxCompiled(one.model, step=graph.step)
        else:
            runtime = "openvino" if one.precision == "fp32" else f"openvino-{one.precision}"
            exact = one.exact
            yield (
                runtime,
                OpenVinoCompiled(
                    one.model, one.weights, step=graph.step, exact=exact, runtime=f"OpenVINO {one.precision}"
                ),
            )


def _noise(height: int, width: int) -> UInt8[NDArray[np.uint8], "h w 3"]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
