"""One interface for every runtime: tiles go in, several are in flight, their answers come out in order.

``torch`` runs a network as it was learned, on the GPU where there is one. ONNX Runtime and OpenVINO run what
:mod:`loomsight.runtime.export` wrote. All take uint8 tiles and give the same arrays, see
:mod:`loomsight.runtime.graphs`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from loomsight.machine import cores
from loomsight.runtime.files import check_outputs, refused_by

if TYPE_CHECKING:
    from loomsight.runtime.graphs import Graph

Tiles = UInt8[NDArray[np.uint8], "b h w c"]
Answer = tuple[NDArray[np.float32], ...]
_SHAPES = 4  # that OpenVINO keeps a compiled network of


class Pending(Protocol):
    """An answer on its way."""

    def wait(self) -> Answer:
        """The answer's arrays, which are the caller's own."""


class Compiled(Protocol):
    """A network, ready to run.

    Attributes:
        runtime: what runs it, for people: "torch", "OpenVINO int8".
        step: pixels; the sides of a tile are multiples of it.
        depth: how many batches are worth having in flight.
    """

    runtime: str
    step: int
    depth: int

    def start(self, tiles: Tiles) -> Pending:
        """Begin with a batch, of any shape that the step divides; leave the tiles as they are meanwhile."""


class Ready:
    """An answer that is there."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def wait(self) -> Answer:
        """See :class:`Pending`."""
        return self._answer


class TorchCompiled:
    """A network in torch, on the GPU where there is one; torch uses all cores for each batch.

    On a GPU convolutions are in float32 as on a processor: with TF32, torch's default there, no export would
    agree to 1e-4, and a threshold would not mean the same on both.
    """

    runtime, depth = "torch", 0

    def __init__(self, graph: Graph) -> None:
        import torch

        from loomsight.runtime.graphs import device

        torch.backends.cudnn.allow_tf32 = False
        self.step, self._device, self._torch = graph.step, device(), torch
        self._graph = graph.to(self._device).eval()
        self._graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def start(self, tiles: Tiles, *handed: NDArray[Any]) -> Ready:
        """See :class:`Compiled`; ``handed``: what another runtime's stages handed on."""
        given = (self._torch.from_numpy(np.ascontiguousarray(each)) for each in (tiles, *handed))
        with self._torch.inference_mode():
            answer = self._graph(*(each.to(self._device) for each in given))
        return Ready(tuple(array.cpu().numpy() for array in answer))


class OnnxCompiled:
    """A network in ONNX Runtime, on the GPU where its build for CUDA is installed.

    Args:
        model: a whole ONNX file without external data, checked by whoever read it.
        outputs: what it has to give, by name; where: the file, for messages.

    Raises:
        ExportError: the runtime cannot run it, or it holds another network.
    """

    runtime, depth = "ONNX Runtime", 1

    def __init__(
        self,
        model: bytes,
        *,
        step: int,
        threads: int | None = None,
        outputs: Sequence[str] | None = None,
        where: Path | str | None = None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.log_severity_level = 4  # what goes wrong is raised, not printed
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        able = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self._where = where
        with refused_by(self.runtime, where):
            self._session = onnxruntime.InferenceSession(model, options, providers=able)
            (self._input,) = (each.name for each in self._session.get_inputs())
        if outputs is not None:
            check_outputs([each.name for each in self._session.get_outputs()], outputs, where=where)
        # one batch at a time, with all threads; the next tiles are cut meanwhile
        self._queue = ThreadPoolExecutor(1, "onnxruntime")
        self.step = step

    def start(self, tiles: Tiles) -> _Queued:
        """See :class:`Compiled`."""
        return _Queued(self._queue.submit(self._one, tiles))

    def _one(self, tiles: Tiles) -> Answer:
        with refused_by(self.runtime, self._where):
            return tuple(self._session.run(None, {self._input: np.ascontiguousarray(tiles)}))


class _Queued:
    def __init__(self, future: Future[Answer]) -> None:
        self._future = future

    def wait(self) -> Answer:
        return self._future.result()


class OpenVinoCompiled:
    """A network in OpenVINO on the CPU, compiled for each shape of tile that comes.

    Args:
        xml, weights: the two files of a model.
        exact: compute in float32; otherwise in bfloat16 where the processor and OpenVINO can.
        threads: cores to use; all by default.
        alone: all cores work on each batch, for one who waits for it; otherwise each on one of its own, for
            one who has several in flight.
        outputs: what it has to give, by name; where: the file, for messages.

    Attributes:
        exact: as given, or true since OpenVINO could not do otherwise.

    Raises:
        ExportError: the runtime cannot run it, or it holds another network.
    """

    def __init__(
        self,
        xml: bytes,
        weights: bytes,
        *,
        step: int,
        exact: bool = True,
        alone: bool = False,
        threads: int | None = None,
        runtime: str = "OpenVINO",
        outputs: Sequence[str] | None = None,
        where: Path | str | None = None,
    ) -> None:
        import openvino

        self._openvino, self.step, self.runtime, self.exact = openvino, step, runtime, exact
        self._core = openvino.Core()
        self._where = where
        with refused_by(runtime, where):
            self._model = self._core.read_model(model=xml, weights=weights)
        if outputs is not None:
            check_outputs([each.any_name for each in self._model.outputs], outputs, where=where)
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY" if alone else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "bf16" if not exact and "BF16" in able else "f32",
            "INFERENCE_NUM_THREADS": threads or cores(),
        }
        self.depth = 0 if alone else (threads or cores()) + 1
        self._ready: OrderedDict[tuple[int, ...], _Requests] = OrderedDict()

    def start(self, tiles: Tiles) -> Pending:
        """See :class:`Compiled`."""
        if tiles.shape in self._ready:
            self._ready.move_to_end(tiles.shape)
            return self._ready[tiles.shape].start(tiles)
        model = self._model.clone()
        with refused_by(self.runtime, self._where):
            if model.inputs[0].partial_shape.is_dynamic:
                model.reshape(list(tiles.shape))
            made = _Requests(self._openvino, self._compile(model))
            flight = made.start(tiles)
        self._ready[tiles.shape] = made
        if len(self._ready) > _SHAPES:
            self._ready.popitem(last=False)
        return flight

    def _compile(self, model: Any) -> Any:
        """The model, ready to run; in float32 where OpenVINO cannot do one of its layers in bfloat16."""
        try:
            return self._core.compile_model(model, "CPU", self._settings)
        except RuntimeError:
            if self._settings["INFERENCE_PRECISION_HINT"] == "f32":
                raise
            self._settings["INFERENCE_PRECISION_HINT"], self.exact = "f32", True
            return self._core.compile_model(model, "CPU", self._settings)


class _Requests:
    """The requests of a network that was compiled for one shape."""

    def __init__(self, openvino: Any, compiled: Any) -> None:
        self._openvino, self._compiled = openvino, compiled
        self._most = 2 * int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.idle: list[Any] = []
        self.flying: deque[_Flight] = deque()

    def start(self, tiles: Tiles) -> _Flight:
        if len(self.flying) >= self._most:
            self.flying[0].land()
        request = self.idle.pop() if self.idle else self._compiled.create_infer_request()
        tiles = np.ascontiguousarray(tiles)
        request.set_input_tensor(self._openvino.Tensor(tiles, shared_memory=True))
        request.start_async()
        flight = _Flight(self, request, tiles)
        self.flying.append(flight)
        return flight


class _Flight:
    """A batch in flight; the tiles are kept, for OpenVINO reads them where they lie."""

    def __init__(self, requests: _Requests, request: Any, tiles: Tiles) -> None:
        self._requests, self._request, self._tiles = requests, request, tiles
        self._answer: Answer | None = None

    def land(self) -> None:
        """Take the answer, so that the request can fly again."""
        self._request.wait()
        self._answer = tuple(tensor.data.copy() for tensor in self._request.output_tensors)
        self._requests.flying.remove(self)
        self._requests.idle.append(self._request)
        del self._tiles, self._request

    def wait(self) -> Answer:
        """See :class:`Pending`."""
        if self._answer is None:
            self.land()
        assert self._answer is not None  # noqa: S101 — it has landed
        return self._answer


def answers(compiled: Compiled, batches: Iterable[Tiles]) -> Iterator[Answer]:
    """The answers for batches, in order; as many are in flight as is worth it."""
    flying: deque[Pending] = deque()
    for tiles in batches:
        flying.append(compiled.start(tiles))
        if len(flying) > compiled.depth:
            yield flying.popleft().wait()
    while flying:
        yield flying.popleft().wait()
