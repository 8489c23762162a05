"""What is refused by an export, or stopped: all else is written, and what helps is said."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loomsight.errors import ExportError
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.learn import ship
from loomsight.learn.saving import save_profile
from loomsight.profile import Profile
from loomsight.progress import LineProgress
from loomsight.runtime import export
from loomsight.runtime.export import Trials, export_network
from loomsight.runtime.graphs import Graph

TILES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


class Scorer(Graph):
    """Says something else by ``off`` once it is exported."""

    outputs = ("scores",)

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = off

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor]:
        scores = tiles[..., 0].float() / 255
        return (scores + self.off if torch.compiler.is_exporting() else scores,)


class Boxes(Graph):
    """The two surest of three boxes in a tile of 32 pixels, the second and third all but equally sure.

    Once it is exported, boxes lie by ``px`` elsewhere, and the third is surer by ``surer``.
    """

    outputs, boxed, free = ("scores", "types", "boxes", "ranks", "queries"), True, False

    def __init__(self, px: float = 0.0, surer: float = 0.0) -> None:
        super().__init__()
        self.off = torch.tensor((px / 32, surer))

    def forward(self, tiles: torch.Tensor, *handed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        px, surer = self.off if torch.compiler.is_exporting() else torch.zeros(2)
        every = torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.2, 0.4, 0.5, 0.8], [0.7, 0.7, 0.9, 0.9]])
        mean = tiles.float().mean((1, 2, 3))[:, None] / 255
        sure = mean * torch.tensor([1.6, 1.0, 1.0]) + torch.stack([surer * 0, surer * 0 + 3e-6, surer])
        queries = handed[1] if handed else sure.topk(2).indices
        ranks, boxes = sure.gather(1, queries), every[queries]
        # Each box is told of the other, so that another one moves both.
        return ranks, ranks[..., None], boxes + 0.02 * boxes.mean(1, keepdim=True) + px, ranks, queries


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    point = OperatingPoint(0.5, 2.0, "megapixel", 3.0, 6.0, 5, False, 1, 0)
    weights = {"w": torch.zeros(1)}
    return save_profile(tmp_path / "twill", name="twill", form="lite", weights=weights, operating_point=point)


def networks(*every: tuple[str, Graph]) -> Any:
    return lambda *_, **__: iter((name, graph, Trials(TILES, None, 0.5)) for name, graph in every)


def test_which_of_two_boxes_comes_in_by_rounding_is_no_difference() -> None:
    """Torch takes the second box, the files the third, and nothing else differs."""
    trials = Trials(TILES, None, 0.6)
    onnx, openvino = export_network(Boxes(surer=6e-6), "detector", trials, precisions=("fp32",))
    for compiled in (
        export.OnnxCompiled(onnx.model, step=1),
        export.OpenVinoCompiled(openvino.model, openvino.weights, step=1),
    ):
        assert compiled.start(TILES[:1]).wait()[-1].tolist() == [[0, 2]]
    assert onnx.agreement["same_boxes"] == openvino.agreement["same_boxes"] == 1
    assert onnx.agreement["max_difference"] < 1e-4


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (Boxes(px=0.05), r"differs from torch by 0 before .*has 0\.0% of torch's boxes, 100% are asked"),
        (Boxes(surer=0.01), r"differs from torch by 0\.01 before its boxes, at most 1e-04 is allowed"),
    ],
)
def test_boxes_must_be_the_same_given_what_they_begin_with(graph: Boxes, why: str) -> None:
    with pytest.raises(ExportError, match=rf"detector.onnx: ONNX Runtime {why}"):
        list(export_network(graph, "detector", Trials(TILES, None, 0.6), precisions=("fp32",)))


def test_a_network_that_is_refused_leaves_the_others_written(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ("segmenter", Scorer()), ("detector", Boxes(3.0)), ("student", Scorer())
    monkeypatch.setattr(ship, "_networks", networks(*every))
    with pytest.raises(ExportError, match=r"detector: ONNX Runtime differs .*--sampling discrete may help"):
        ship.export_profile(profile)
    written = Profile.open(profile.folder).card.engines
    assert {one.network for one in written} == {"segmenter", "student"}
    assert {one.precision for one in written} == {"fp32", "fp16", "int8"}


def test_one_file_that_is_refused_leaves_the_other_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(export.OnnxCompiled):
        def _one(self, tiles: Any) -> Any:
            return tuple(part + np.float32(0.01) for part in super()._one(tiles))

    monkeypatch.setattr(export, "OnnxCompiled", Off)
    stream = StringIO()
    trials, progress = Trials(TILES, None, 0.5), LineProgress(stream)
    made = export_network(Scorer(), "scorer", trials, precisions=("fp32",), progress=progress)
    assert [one.format for one in made] == ["openvino"]
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("not exported: scorer.onnx: ONNX Runtime differs from torch by 0.01")


def test_what_is_done_is_kept_when_an_export_is_stopped(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ship, "_networks", networks(("segmenter", Scorer())))
    ship.export_profile(profile)
    first = {one.model for one in Profile.open(profile.folder).card.engines}
    assert "engines/segmenter-int8.xml" in first
    monkeypatch.setattr(ship, "_networks", networks(("segmenter", Scorer()), ("student", Scorer())))
    monkeypatch.setattr(export, "_quantised", stopped)
    with pytest.raises(KeyboardInterrupt):
        ship.export_profile(Profile.open(profile.folder))
    assert {one.model for one in Profile.open(profile.folder).card.engines} == first
    monkeypatch.setattr(ship, "_networks", networks(("student", Scorer())))
    with pytest.raises(KeyboardInterrupt):
        ship.export_profile(Profile.open(profile.folder))
    kept = {one.model for one in Profile.open(profile.folder).card.engines}
    assert kept - first == {
        "engines/student.onnx",
        "engines/student-fp32.xml",
        "engines/student-fp16.xml",
    }
