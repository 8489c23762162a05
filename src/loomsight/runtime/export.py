"""From torch to files that need no torch: ONNX, and OpenVINO in float32, float16 and INT8.

1. torch writes an ONNX file, in one piece, whose tiles may have any size that the network's step divides.
2. OpenVINO reads that file; what it would not recognise as a clamp is made one.
3. NNCF quantises it to INT8, with good and made pictures of the fabric to read the ranges from; the steps of
   the input are the camera's grey levels. Layers whose difference is taken stay in float: it is small beside
   them. Where the regions are not the same then, the first layers stay in float, and where that is not
   enough, those that cost most go back to it too, one by one.
4. **Nothing is handed over before it was run** on tiles of the fabric and agrees with torch: float32 to
   1e-4 everywhere, a detector stage by stage; float16 and INT8 by the regions that a mill would see, and by
   their pixel AP.

References: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference*, CVPR 2018; NNCF's accuracy-aware quantisation.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from loomsight.errors import ExportError
from loomsight.evaluation.pixels import average_precision
from loomsight.fabric.regions import EVERY_PIXEL, Grouping, label_regions
from loomsight.fabric.types import ScoreMap
from loomsight.progress import Progress
from loomsight.runtime.compiled import Compiled, OnnxCompiled, OpenVinoCompiled, TorchCompiled, answers
from loomsight.runtime.files import check_onnx

if TYPE_CHECKING:
    from loomsight.runtime.graphs import Graph

Precision = Literal["fp32", "fp16", "int8"]
OPSET = 18
EXACT = 1e-4
"""By so much at most a float32 file may differ from torch, anywhere."""
SAME_AREA, SAME_AP = 0.99, 0.01
"""The share of the regions' area that must be found again, and the most that pixel AP may change."""
SAME_BOXES = 0.99
"""The share of a float32 detector's boxes that must be so where it reads the nearest cell: of some points
rounding decides which that is. The regions that a mill would see must be the same besides."""
_AT_ONCE = 8  # tiles
_ANSWER = 3  # outputs of a detector that are its answer; what its stages hand on follows
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_FIRST = 2  # layers that stay in float where the first try is not good enough
_MOST_LAYERS, _RANKED = 10, 16  # that go back to float at most; tiles by which it is told which cost most


Tiles = UInt8[NDArray[np.uint8], "n h w c"]


@dataclass(frozen=True, slots=True)
class Exported:
    """One file, or an OpenVINO pair, that was run and agrees.

    Attributes:
        network: "segmenter", "detector", "features", "student" or "gate".
        format: "onnx" or "openvino"; precision: of its weights.
        model, weights: the bytes; an ONNX file has no second part.
        agreement: what the comparison with torch showed.
        exact: whether OpenVINO has to compute in float32 what is no INT8, for it to agree.
    """

    network: str
    format: Literal["onnx", "openvino"]
    precision: Precision
    model: bytes
    weights: bytes
    agreement: dict[str, float]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Trials:
    """What a file is tried on, before it is written.

    Attributes:
        tiles: uint8 tiles of the fabric, good and with made defects, all of one size.
        masks: where these are defective, or None where nothing is labelled.
        threshold: the score from which on a pixel counts.
        grouping: what is one region.
    """

    tiles: Tiles
    masks: NDArray[np.bool_] | None
    threshold: float
    grouping: Grouping = EVERY_PIXEL


def export_network(
    graph: Graph,
    name: str,
    trials: Trials,
    *,
    precisions: Sequence[Precision] = ("fp32", "fp16", "int8"),
    progress: Progress | None = None,
    free: bool = False,
) -> Iterator[Exported]:
    """A network's files, each as soon as it is tried.

    Args:
        graph: the network with its pre- and post-processing.
        name: of the network.
        precisions: of OpenVINO's files; ONNX is float32.
        progress: told what is not written, and why: INT8 may not agree with every network; and what is tried
            in its place, for minutes; and which file is made.
        free: whoever takes the files sets a threshold of its own for each.

    Raises:
        ExportError: no float32 file agrees with torch: there is none.
    """
    progress = progress or Progress()

    def tell(done: int, what: str) -> None:
        progress.step(f"{name} exported", done, 1 + len(precisions), f"now {what}")

    tell(0, "ONNX")
    told = _Answers(graph, trials)
    onnx = to_onnx(graph, trials.tiles[: 2 if graph.free else 1])
    step = graph.step
    refused: list[ExportError] = []

    def same(file: str, compiled: Callable[[], Compiled]) -> dict[str, float] | None:
        try:
            return told.exactly(compiled(), file)
        except ExportError as error:
            refused.append(error)
            return None

    file = f"{name}.onnx"
    agreed = same(file, lambda: OnnxCompiled(onnx, step=step, where=file))
    if agreed is not None:
        yield Exported(name, "onnx", "fp32", onnx, b"", agreed)
    tell(1, "OpenVINO")
    model = to_openvino(onnx)
    if "fp32" in precisions:
        xml, weights = _files(model)
        pair = f"{name}-fp32.xml"
        agreed = same(pair, lambda: OpenVinoCompiled(xml, weights, step=step, where=pair))
        if agreed is not None:
            yield Exported(name, "openvino", "fp32", xml, weights, agreed)
    if len(refused) == 1 + ("fp32" in precisions):
        raise refused[0]
    for error in refused:
        progress.say(str(error))
    # What float32 does not say, less would not.
    for precision in [one for one in precisions if one != "fp32" and agreed is not None]:
        tell(1 + precisions.index(precision), f"OpenVINO in {precision}")
        less = _with_less(precision, model, told, name, step=step, free=free, progress=progress)
        if less is not None:
            yield less


def _with_less(
    precision: Precision,
    model: Any,
    told: _Answers,
    name: str,
    *,
    step: int,
    free: bool,
    progress: Progress,
) -> Exported | None:
    """An OpenVINO pair in less than float32; None, and a word why, where none agrees."""
    what, agreement = f"{name} in {precision}", dict[str, float]()
    for tried, make in _ways(precision, model, told, progress):
        if tried:
            progress.say(f"{what}: {_words(agreement)}; {tried}")
        files = make()
        if files is None:
            break
        # What is left in float may be computed in bfloat16, if that changes nothing.
        for exact in (False, True):
            compiled = OpenVinoCompiled(*files, step=step, exact=exact)
            agreement = told.alike(compiled)
            if free or alike(agreement):
                return Exported(name, "openvino", precision, *files, agreement, compiled.exact)
            if compiled.exact:
                break
    progress.say(f"{what} is not written: {_words(agreement)}")
    return None


def to_onnx(graph: Graph, tiles: Tiles) -> bytes:
    """The network as an ONNX file, opset 18, without external data.

    Args:
        graph: with its weights.
        tiles: an example of what it takes. Where the graph is free other sizes and numbers will do as well,
            otherwise only one tile of this size.
    """
    import onnx
    import torch

    plain = graph.to("cpu").eval()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            plain,
            (torch.from_numpy(np.ascontiguousarray(tiles)),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["tiles"],
            output_names=list(graph.outputs),
            external_data=False,
            verbose=False,
        )
        assert program is not None  # noqa: S101 — it is None only when a path was given
        model = program.model_proto
    if graph.free:
        height, width = tiles.shape[1:3]
        for end in (*model.graph.input, *model.graph.output):
            batch, *dims = end.type.tensor_type.shape.dim
            batch.dim_param = "batch"
            rows, columns = dims[:2] if end.name == "tiles" else dims[-2:]
            rows.dim_param = f"height/{height // rows.dim_value}"
            columns.dim_param = f"width/{width // columns.dim_value}"
    del model.graph.value_info[:]  # they know the example's size only
    model.doc_string, model.producer_name, model.producer_version = "", "loomsight", ""
    for node in model.graph.node:  # where each step stands in the source, on the machine that exported
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=False)
    data: bytes = model.SerializeToString()
    check_onnx(data)
    return data


def to_openvino(onnx: bytes) -> Any:
    """OpenVINO's model of an ONNX file, with what quantising would not recognise put right.

    Weights that are reshaped on the way are made constants, or their convolutions stay in float. ONNX's Clip
    comes in as the lesser of the greater; it is a clamp again, which is fused with its convolution.
    """
    import openvino
    from openvino import opset13
    from openvino.passes import ConstantFolding, Manager

    model = openvino.Core().read_model(model=onnx)
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    for greater in [op for op in model.get_ordered_ops() if op.get_type_name() == "Maximum"]:
        for taker in list(greater.output(0).get_target_inputs()):
            lesser = taker.get_node()
            least, most = _constant(greater), _constant(lesser)
            if lesser.get_type_name() != "Minimum" or least is None or most is None:
                continue
            data = next(end.get_source_output() for end in greater.inputs() if _value(end) is None)
            clamp = opset13.clamp(data, least, most)
            clamp.set_friendly_name(lesser.get_friendly_name())
            lesser.output(0).replace(clamp.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _constant(op: Any) -> float | None:
    """The one number among an operation's inputs."""
    values = [value for value in map(_value, op.inputs()) if value is not None]
    return values[0] if len(values) == 1 else None


def _value(end: Any) -> float | None:
    """The number that an input is, also where it is spread over a shape."""
    node = end.get_source_output().get_node()
    while node.get_type_name() == "Broadcast":
        node = node.input(0).get_source_output().get_node()
    if node.get_type_name() != "Constant":
        return None
    data = np.asarray(node.data)
    return float(data.reshape(-1)[0]) if data.size and (data == data.reshape(-1)[0]).all() else None


def _ways(
    precision: Precision, model: Any, told: _Answers, progress: Progress
) -> Iterator[tuple[str, Callable[[], tuple[bytes, bytes] | None]]]:
    """What makes the files of a precision, the quickest first, and what is told before it."""
    if precision == "fp16":
        yield "", lambda: _files(model, half=True)
        return
    apart, first = _subtracted(model), _first_layers(model)
    both = [*apart, *(name for name in first if name not in apart)]
    yield "", lambda: _files(_quantised(model, told, apart))
    yield f"the first {len(first)} layers stay in float now", lambda: _files(_quantised(model, told, both))
    minutes = "layers go back to float one by one now, which takes minutes; Ctrl-C keeps what is written"
    yield minutes, lambda: _with_care(model, told, both, progress)


def _quantised(model: Any, told: _Answers, in_float: list[str]) -> Any:
    with _quiet():
        nncf = _nncf()
        made = nncf.quantize(
            model,
            told.samples(nncf),
            subset_size=len(told.trials.tiles),
            ignored_scope=nncf.IgnoredScope(names=in_float),
            advanced_parameters=_how(nncf),
        )
    return _by_grey_levels(made)


def _first_layers(model: Any) -> list[str]:
    """The convolutions that see the camera's grey levels first: a faint defect is a few of these."""
    every = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _CONVOLUTIONS]
    return every[:_FIRST]


def _subtracted(model: Any) -> list[str]:
    """Where convolutions are subtracted from one another, as a student's from its teacher's, and these."""
    found = dict[str, None]()  # each once, in order
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Subtract":
            one, other = (_convolution(end.get_source_output().get_node()) for end in op.inputs())
            if one is not None and other is not None:
                found |= dict.fromkeys((one, other, op.get_friendly_name()))
    return list(found)


def _convolution(node: Any) -> str | None:
    """The convolution that a number comes from, with its bias, a share of its channels, or enlarged."""
    while node.get_type_name() in ("Add", "Split", "VariadicSplit", "Slice", "StridedSlice", "Interpolate"):
        node = node.input_value(0).get_node()
    return node.get_friendly_name() if node.get_type_name() in _CONVOLUTIONS else None


def _with_care(
    model: Any, told: _Answers, in_float: list[str], progress: Progress
) -> tuple[bytes, bytes] | None:
    """Layer by layer back to float, beside those that are, until the regions are the same.

    None where NNCF cannot go through the network: it has weights that layers share.
    """
    tried = count(1)

    def validate(compiled: Any, tiles: Any) -> tuple[float, None]:
        said = [tuple(compiled(each).values()) for each in tiles]
        found = told.compare([np.concatenate(parts) for parts in zip(*said, strict=True)])
        number = next(tried)  # how many it will be NNCF does not tell
        progress.step("layers tried", number, number + 1, f"area {found['area']:.1%}")
        return min(found["area"], 1 - found["ap_change"]), None

    nncf = _nncf()
    with _quiet(), suppress(nncf.errors.InternalError):
        samples = told.samples(nncf)
        made = nncf.quantize_with_accuracy_control(
            model,
            samples,
            samples,
            validate,
            max_drop=min(1 - SAME_AREA, SAME_AP),
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(told.trials.tiles),
            ignored_scope=nncf.IgnoredScope(names=in_float),
            advanced_quantization_parameters=_how(nncf),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                max_num_iterations=_MOST_LAYERS, ranking_subset_size=_RANKED
            ),
        )
        return _files(made)
    return None


def _how(nncf: Any) -> Any:
    """Weights in half of INT8's range: without VNNI, sums of 16 bits would overflow.

    Activations in all the range that they have: the highest are the defects, and an average of each tile's
    highest would cut them off.
    """
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )


def _by_grey_levels(model: Any) -> Any:
    """Make the steps of a quantised input the camera's grey levels: nothing is lost then.

    NNCF spreads its 256 steps over the range that it saw. They are about as wide as a grey level there, and
    beat with it: of some fabrics that was all that INT8 lost.
    """
    from openvino import opset13

    for quantiser in model.get_ordered_ops():
        if quantiser.get_type_name() != "FakeQuantize":
            continue
        level = _grey_level(quantiser.input_value(0).get_node())
        if level is None or round(level[1], 3) not in (127, 128):  # an INT8 is -128 to 127
            continue
        for place, steps in enumerate((-128, 127, -128, 127), 1):
            bound = quantiser.input(place)
            shape = bound.get_source_output().get_node().data.shape
            bound.replace_source_output(
                opset13.constant(np.full(shape, steps * level[0], np.float32)).output(0)
            )
    return model


def _grey_level(node: Any) -> tuple[float, float] | None:
    """How much a number grows with each level of the camera, and the level at which it is 0.

    None where it is made of the camera's levels by anything but sums and products with constants.
    """
    kind, number = node.get_type_name(), _constant(node)
    if kind == "Parameter":
        return 1.0, 0.0
    before = _grey_level(node.input_value(0).get_node()) if node.inputs() else None
    if before is None or kind in ("Transpose", "Convert"):
        return before
    step, zero = before
    if number is not None and kind in ("Multiply", "Divide"):
        return (step * number if kind == "Multiply" else step / number), zero
    if number is not None and kind in ("Add", "Subtract"):
        return step, zero + (number if kind == "Subtract" else -number) / step
    return None


def _nncf() -> Any:
    # It would send statistics of its use to its makers; this is the switch that its own tests use.
    os.environ["NNCF_CI"] = "1"
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def _files(model: Any, *, half: bool = False) -> tuple[bytes, bytes]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


class _Answers:
    """What torch says of the trials, and how far others are from that."""

    def __init__(self, graph: Graph, trials: Trials) -> None:
        self.trials, self._graph = trials, graph
        self._said = self._all(TorchCompiled(graph))

    @cached_property
    def _maps(self) -> NDArray[np.float32]:
        return self._as_maps(self._said)

    @cached_property
    def _regions(self) -> list[NDArray[np.int32]]:
        return [self._parts(one) for one in self._maps]

    def exactly(self, other: Compiled, file: str) -> dict[str, float]:
        """The largest difference anywhere; as a share of numbers above 1, or of what is usual where that is.

        Of a detector that of what its stages hand on, the share of boxes that are the same given that, and
        how alike the regions are.

        Raises:
            ExportError: the difference is more than :data:`EXACT`, or too few boxes are the same.
        """
        answer = self._all(other)
        if self._graph.boxed:
            return self._stage_by_stage(answer, other.runtime, file)
        largest = max(float(_off(a, b).max(initial=0.0)) for a, b in zip(self._said, answer, strict=True))
        if not largest <= EXACT:
            why = f"{other.runtime} differs from torch by {largest:.2g}, at most {EXACT:.0e} is allowed"
            raise ExportError("not exported", where=file, why=why)
        return {"max_difference": largest}

    def _stage_by_stage(self, answer: list[NDArray[Any]], runtime: str, file: str) -> dict[str, float]:
        """Each stage of torch's goes on from what the other's handed on."""
        again, tiles = TorchCompiled(self._graph), self.trials.tiles
        said = [
            again.start(*(part[at : at + 1] for part in (tiles, *answer[_ANSWER:]))).wait()
            for at in range(len(tiles))
        ]
        off = [_off(np.concatenate(a), b) for a, b in zip(zip(*said, strict=True), answer, strict=True)]
        boxes = np.max([each.reshape(*each.shape[:2], -1).max(-1) for each in off[:_ANSWER]], axis=0)
        # Nothing else is as sure as what the decoder begins with: the ranks are those of torch's own choice.
        ranks = _off(self._said[_ANSWER], answer[_ANSWER])
        handed = float(np.max([each.max() for each in (ranks, *off[_ANSWER:])]))
        share, asked = float((boxes <= EXACT).mean()), SAME_BOXES if self._graph.rounded else 1.0
        agreement = self.compare(answer)
        if not handed <= EXACT or share < asked or not alike(agreement):
            why = (
                f"{runtime} differs from torch by {handed:.2g} before its boxes, at most {EXACT:.0e} is "
                f"allowed, and has {share:.1%} of torch's boxes, {asked:.0%} are asked; {_words(agreement)}"
            )
            raise ExportError("not exported", where=file, why=why)
        return {"max_difference": handed, "same_boxes": round(share, 5), **agreement}

    def alike(self, other: Compiled) -> dict[str, float]:
        """How much of the regions' area the other finds too, and by how much pixel AP changes."""
        return self.compare(self._all(other))

    def compare(self, answer: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """The same, of a whole answer for all tiles."""
        maps = self._as_maps(answer)
        found = whole = 0.0
        for own, score in zip(self._regions, maps, strict=True):
            other = self._parts(score)
            for a, b in ((own, other), (other, own)):
                sizes = np.bincount(a.ravel(), minlength=1)
                met = np.unique(a[b > 0])
                whole += sizes[1:].sum()
                found += sizes[met[met > 0]].sum()
        area = found / whole if whole else 1.0
        masks, change = self.trials.masks, 0.0
        if masks is not None and masks.any():
            change = abs(_ap(self._maps, masks) - _ap(maps, masks))
        return {"area": round(float(area), 5), "ap_change": round(change, 5)}

    def samples(self, nncf: Any) -> Any:
        """The trials as NNCF reads its data, one tile at a time."""
        return nncf.Dataset([tile[None] for tile in self.trials.tiles])

    def _as_maps(self, answer: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        if len(answer) == 1:
            return answer[0]
        return _painted(answer, self.trials.tiles.shape[1:3])

    def _parts(self, score: ScoreMap) -> NDArray[np.int32]:
        return label_regions(score, self.trials.threshold, self.trials.grouping)[1]

    def _all(self, network: Compiled) -> list[NDArray[np.float32]]:
        tiles, many = self.trials.tiles, _AT_ONCE if self._graph.free else 1
        batches = [tiles[at : at + many] for at in range(0, len(tiles), many)]
        return [np.concatenate(parts) for parts in zip(*answers(network, batches), strict=True)]


def _off(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    # A score is in [0, 1]; features have no unit: rounding is in proportion to all that was added up.
    off: NDArray[np.float64] = np.abs(ours - theirs) / np.maximum(np.abs(ours), max(1, _usual(ours)))
    return off


def _usual(numbers: NDArray[np.float32]) -> float:
    """Their root mean square."""
    return float(np.sqrt(np.mean(np.square(numbers, dtype=np.float64))))


def _ap(scores: NDArray[np.float32], masks: NDArray[np.bool_]) -> float:
    return average_precision(scores.ravel().astype(np.float64), masks.ravel())


def _painted(answer: Sequence[NDArray[np.float32]], size: tuple[int, int]) -> NDArray[np.float32]:
    """A detector's boxes as score maps: of each pixel the surest box that it lies in."""
    scores, _, boxes = answer[:_ANSWER]
    height, width = size
    maps = np.zeros((len(scores), height, width), np.float32)
    corners = np.rint(boxes * np.array([width, height, width, height], np.float32)).astype(int).clip(0)
    for painted, own, at in zip(maps, scores, corners, strict=True):
        for number in np.argsort(own):
            x0, y0, x1, y1 = at[number]
            painted[y0:y1, x0:x1] = own[number]
    return maps


def alike(agreement: dict[str, float]) -> bool:
    """Whether the regions are the same, as far as is asked."""
    return agreement["area"] >= SAME_AREA and agreement["ap_change"] <= SAME_AP


def _words(agreement: dict[str, float]) -> str:
    return (
        f"{agreement['area']:.1%} of the regions' area is the same, {SAME_AREA:.0%} is asked; "
        f"pixel AP changes by {agreement['ap_change']:.3f}, at most {SAME_AP} is allowed"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the chatter of exporters: progress bars, hints about libraries that are not wanted."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "nncf", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
