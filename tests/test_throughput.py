"""How fast a line may run: arithmetic, turns, the tile that a machine remembers, the doctor's tables, and
what is said of a gate that does not help."""

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from loomsight import cli
from loomsight.card import GateCard, Runtime
from loomsight.detection import deeplab
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.images import write_png
from loomsight.inspection.line import inspect
from loomsight.learn import ship
from loomsight.learn.saving import save_exports, save_profile
from loomsight.loom import ClothSpec, weave
from loomsight.profile import Profile
from loomsight.runtime import throughput, tilesize
from loomsight.runtime.compiled import Ready, Tiles
from loomsight.runtime.export import Trials, export_network
from loomsight.runtime.gate import GateGraph, GateNetwork, grouped
from loomsight.runtime.graphs import Graph, SegmenterGraph
from loomsight.runtime.throughput import by_turns, metres_per_minute
from loomsight.runtime.tilesize import CANDIDATES, best_tile


def test_metres_per_minute_are_those_of_the_issue() -> None:
    assert metres_per_minute(22.5, width_m=1.8, mm_per_px=0.2) == pytest.approx(30)
    assert metres_per_minute(180, width_m=1.8, mm_per_px=0.1) == pytest.approx(60)


def test_contenders_go_by_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return 1.0

    speeds = by_turns({"a": lambda: work("a"), "b": lambda: work("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert all(speed.best >= speed.median > 0 for speed in speeds.values())


class Slow:
    """A network that is fast with one size of tile alone."""

    runtime, step, depth = "torch", 16, 1

    def __init__(self, fast: tuple[int, int]) -> None:
        self.fast, self.narrowest, self.started = fast, 0, 0

    def start(self, tiles: Tiles) -> Ready:
        self.started += 1
        if tiles.shape[1] <= self.fast[0] and self.narrowest < tiles.shape[2] <= self.fast[1]:
            return Ready((np.zeros(1, np.float32),))
        np.sort(np.random.default_rng(0).random(400_000))
        return Ready((np.zeros(1, np.float32),))


def test_no_tile_is_compiled_twice_while_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO keeps the last four sizes: a fifth that comes by turns would be timed compiling."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept, compiled = deque[tuple[int, ...]](maxlen=4), []

    class Compiling(Slow):
        def start(self, tiles: Tiles) -> Ready:
            if tiles.shape not in kept:
                kept.append(tiles.shape)
                compiled.append(tiles.shape)
            return super().start(tiles)

    best_tile(Compiling((1024, 2048)), shared=80)
    assert len(compiled) == len(set(compiled)) == len(CANDIDATES)


def test_a_tile_is_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = Slow((256, 512))
    assert best_tile(network, shared=80) == (256, 512)
    measured = network.started
    assert measured > 0
    assert best_tile(network, shared=80) == (256, 512)
    assert network.started == measured
    # An exported network measures again where torch did, and torch takes that over.
    network.runtime, network.fast, network.narrowest = "OpenVINO", (512, 1024), 512
    assert best_tile(network, shared=80) == (512, 1024)
    network.runtime = "torch"
    assert best_tile(network, shared=80) == (512, 1024)
    (tmp_path / "loomsight/tiles.json").write_text("[1, 2", encoding="utf-8")
    assert best_tile(network, shared=80) in CANDIDATES
    assert network.started > measured


def test_the_doctor_says_how_fast_a_web_may_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (throughput, tilesize):
        monkeypatch.setattr(module, "_STRIP", (256, 512))  # what it measures on is sixteen times as large
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "--throughput", "--width", "1.8", "--mm-per-px", "0.2", "--json"])
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["engines"]) == [
        "torch", "onnxruntime", "openvino", "openvino-fp16", "openvino-int8", "gated",
    ]  # fmt: skip
    for row in said["engines"].values():
        expected = metres_per_minute(row["median"], width_m=1.8, mm_per_px=0.2)
        rounded = 0.05 + metres_per_minute(0.05, width_m=1.8, mm_per_px=0.2)  # both to one digit
        assert row["metres_per_minute"] == pytest.approx(expected, abs=rounded)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A profile whose segmenter and gate have learned nothing, exported in float32."""
    network = deeplab.build(pretrained=False).eval().requires_grad_(False)
    cloth = weave(ClothSpec(), 192, 224, np.random.default_rng(0)).image
    profile = save_profile(
        tmp_path_factory.mktemp("profiles") / "twill",
        name="twill",
        form="lite",
        weights=network.state_dict(),
        operating_point=OperatingPoint(0.5, 2.0, "megapixel", 3.0, 6.0, 5, False, 1, 0),
        mm_per_px=0.1,
        samples=[cloth, cloth],
    )
    gate = GateCard(channels=3, group=4, threshold=-2.0, near=0.1, worth=0.5, rate=0.02, defects=300)
    tiles = np.stack([cloth[:64, :64]] * 2)
    pairs: list[tuple[str, Graph, Tiles]] = [
        ("segmenter", SegmenterGraph(network), tiles),
        ("gate", GateGraph(GateNetwork(3).eval()), grouped(tiles)),
    ]
    files = [
        ship._card(one, graph.step)
        for name, graph, given in pairs
        for one in export_network(graph, name, Trials(given, None, 0.5), precisions=("fp32",))
    ]
    return save_exports(profile, files, gate)


def test_the_doctor_measures_a_profile(gated: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["doctor", "--throughput", "--profile", str(gated.folder), *more])
        assert left.value.code == 0
    table, _, facts = capsys.readouterr().out.partition("{")
    said = json.loads("{" + facts)
    assert list(said["engines"]) == ["torch", "onnxruntime", "openvino", "gated"]
    assert said["mm_per_px"] == 0.1, "the profile's own scale"
    assert "behind its gate" in table
    assert "All networks of twill, on the good cloth that it keeps" in table
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "--profile", str(gated.folder)])
    assert left.value.code == 2
    assert "--profile goes with --throughput" in capsys.readouterr().err


def test_a_gate_that_torch_leaves_idle_is_said(gated: Profile, tmp_path: Path) -> None:
    """On a PC with a GPU torch is the fastest, and nobody asked for it."""
    write_png(tmp_path / "roll" / "1.png", weave(ClothSpec(), 192, 224, np.random.default_rng(9)).image)

    def notes(runtime: Runtime, gate: bool) -> str:
        return " ".join(inspect(tmp_path / "roll", gated, tmp_path / "out", runtime=runtime, gate=gate).notes)

    assert "torch runs the networks here" in notes("torch", gate=True)
    assert "gate" not in notes("torch", gate=False)
    assert "With the gate the networks looked at" in notes("openvino", gate=True)


def test_the_doctor_refuses_a_web_without_width(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "--throughput", "--width", "0"])
    assert left.value.code == 2
    assert "bad --width: 0: it must be a number above 0" in capsys.readouterr().err
