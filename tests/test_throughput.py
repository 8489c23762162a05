"""How fast a line may run: arithmetic, turns, the tile that a machine remembers, and the doctor's table."""

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from loomsight import cli
from loomsight.runtime import throughput, tilesize
from loomsight.runtime.compiled import Ready, Tiles
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


def test_the_doctor_refuses_a_web_without_width(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "--throughput", "--width", "0"])
    assert left.value.code == 2
    assert "bad --width: 0: it must be a number above 0" in capsys.readouterr().err
