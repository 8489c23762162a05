"""What is asked of an exported file before any runtime reads it: whole, and nothing of it lies elsewhere.

Runtimes follow the paths that a file names. A file of a profile was compared with its hash before it comes
here; this finds what even its author must not have put in, and says in one line what a runtime cannot run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from loomsight.errors import ExportError

_REASON = 120  # characters of a runtime's reason, the last: the first are of its own source
_AGAIN = "run 'loomsight export' again, or inspect with --engine torch"


def check_onnx(data: bytes, *, where: Path | None = None) -> None:
    """Refuse an ONNX file that is not whole, or whose data lies in other files.

    Raises:
        ExportError: with the reason.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ExportError("file refused", where=where, why="it is no whole ONNX file") from error
    nodes = chain(model.graph.node, *(function.node for function in model.functions))
    tensors = chain(_initial(model.graph), _within(nodes))
    outside = [tensor.name for tensor in tensors if tensor.data_location == tensor.EXTERNAL]
    if outside:
        raise ExportError("file refused", where=where, why=f"the data of {outside[0]} lies in another file")
    if not model.graph.node:
        raise ExportError("file refused", where=where, why="it holds no network")


def _initial(graph: Any) -> Iterator[Any]:
    """The tensors that a graph begins with."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _within(nodes: Iterable[Any]) -> Iterator[Any]:
    """The tensors that nodes carry, those of the graphs within them too."""
    for attribute in chain.from_iterable(node.attribute for node in nodes):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _initial(inner)
            yield from _within(inner.node)


def check_openvino(model: bytes, weights: bytes, *, where: Path | None = None) -> None:
    """Refuse an OpenVINO model that is not whole, or that reads beyond its weights.

    Raises:
        ExportError: with the reason.
    """
    try:
        if b"<!DOCTYPE" in model or b"<!ENTITY" in model:
            raise ExportError("file refused", where=where, why="an OpenVINO model declares no entities")
        tree = ElementTree.fromstring(model)  # noqa: S314 — without entities there is nothing to expand
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # no XML, or in no known letters
        raise ExportError("file refused", where=where, why="it is no whole OpenVINO model") from error
    if tree.tag != "net":
        raise ExportError("file refused", where=where, why="it is no OpenVINO model")
    for data in tree.iter("data"):
        try:
            offset, size = int(data.get("offset", "0")), int(data.get("size", "0"))
        except ValueError as error:
            raise ExportError("file refused", where=where, why="it reads from nowhere") from error
        if "size" in data.attrib and not 0 <= offset <= offset + size <= len(weights):
            raise ExportError("file refused", where=where, why="it reads beyond its weights")


@contextmanager
def refused_by(runtime: str, where: Path | str | None) -> Iterator[None]:
    """Turn what a runtime raises of a file into one line.

    Raises:
        ExportError: with the last of the reasons that the runtime gives.
    """
    try:
        yield
    except (ExportError, MemoryError):  # the second is no fault of the file
        raise
    except Exception as error:  # each runtime has a dozen of its own
        lines = [type(error).__name__, *(line.strip() for line in str(error).splitlines())]
        reason = [line for line in lines if line][-1]
        short = reason if len(reason) <= _REASON else f"… {reason[-_REASON:].partition(' ')[2]}"
        raise ExportError(
            "file refused", where=where, why=f"{runtime} cannot run it: {short}", do=_AGAIN
        ) from error


def check_outputs(found: Sequence[str], wanted: Sequence[str], *, where: Path | str | None) -> None:
    """Refuse a file that gives something else than its network does.

    Raises:
        ExportError: with what it gives.
    """
    if list(found) != list(wanted):
        why = f"it holds another network: it gives {', '.join(found)}, not {', '.join(wanted)}"
        raise ExportError("file refused", where=where, why=why, do=_AGAIN)
