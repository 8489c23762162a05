import io
import json

import pytest

from loomsight.progress import BarProgress, JsonProgress, LineProgress, Progress, for_stream


@pytest.mark.parametrize("make", [Progress, LineProgress, BarProgress])
def test_tracking_passes_every_item_on(make: type[Progress]) -> None:
    with make() as progress:
        assert list(progress.track([1, 2, 3], "pictures")) == [1, 2, 3]
        assert list(progress.track(iter("ab"), "tiles", total=2)) == ["a", "b"]
        assert list(progress.track([], "nothing")) == []


def test_lines_are_few_and_the_last_is_always_there() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every=60)
    progress.say("checking 500 pictures")
    for _ in progress.track(range(500), "pictures"):
        pass
    progress.step("learning", 2, 2, "loss 0.10")
    assert stream.getvalue().splitlines() == [
        "checking 500 pictures",
        "pictures: 500/500",
        "learning: 2/2  loss 0.10",
    ]


def test_lines_come_while_a_job_runs() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every=0)
    for _ in progress.track(range(3), "pictures"):
        pass
    assert stream.getvalue().splitlines() == ["pictures: 1/3", "pictures: 2/3", "pictures: 3/3"]


def test_json_lines_can_be_read_by_a_program() -> None:
    stream = io.StringIO()
    progress = JsonProgress(stream)
    progress.say("纹理 known")
    progress.step("learning", 5, 5, "loss 0.1")
    said, step = map(json.loads, stream.getvalue().splitlines())
    assert said == {"say": "纹理 known"}
    assert step == {"stage": "learning", "done": 5, "total": 5, "note": "loss 0.1"}


def test_a_program_gets_json_and_a_log_gets_lines() -> None:
    assert type(for_stream(json_lines=True)) is JsonProgress
    assert type(for_stream()) is LineProgress  # the tests' standard error is no terminal
