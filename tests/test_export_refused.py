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
    """Two boxes a tile of 32 pixels, that lie by ``px`` elsewhere once they are exported."""

    outputs, boxed, free = ("scores", "types", "boxes"), True, False

    def __init__(self, px: float) -> None:
        super().__init__()
        self.px = px

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = tiles.float().mean((1, 2, 3))[:, None] / 255
        scores = torch.cat([mean, 0.5 * mean], 1)
        boxes = mean[..., None] * torch.tensor([[[0.2, 0.2, 1.2, 1.2], [0.4, 0.8, 1.0, 1.6]]])
        return scores, scores[..., None], boxes + (self.px / 32 if torch.compiler.is_exporting() else 0)


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    point = OperatingPoint(0.5, 2.0, "megapixel", 3.0, 6.0, 5, False, 1, 0)
    weights = {"w": torch.zeros(1)}
    return Profile.save(tmp_path / "twill", name="twill", form="lite", weights=weights, operating_point=point)


def networks(*every: tuple[str, Graph]) -> Any:
    return lambda *_, **__: iter((name, graph, Trials(TILES, None, 0.5)) for name, graph in every)


@pytest.mark.parametrize(("px", "same"), [(0.05, True), (0.5, False)])
def test_boxes_are_compared_in_pixels_of_the_tile(px: float, same: bool) -> None:
    """A twentieth of a pixel is 1.6e-3 of this tile, and nothing that anybody sees."""
    trials = Trials(TILES, None, 0.3)
    if same:
        for one in export_network(Boxes(px), "detector", trials, precisions=("fp32",)):
            assert one.agreement == {"same_boxes": 1.0, "area": 1.0, "ap_change": 0.0}
    else:
        with pytest.raises(ExportError, match=r"ONNX Runtime has 0\.0% of torch's boxes to 0\.1 px"):
            list(export_network(Boxes(px), "detector", trials, precisions=("fp32",)))


def test_a_network_that_is_refused_leaves_the_others_written(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ("segmenter", Scorer()), ("detector", Boxes(3.0)), ("student", Scorer())
    monkeypatch.setattr(ship, "_networks", networks(*every))
    with pytest.raises(ExportError, match=r"detector: ONNX Runtime has .*--sampling discrete may help"):
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
