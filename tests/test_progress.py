import io

import pytest

from loomsight.progress import BarProgress, LineProgress, Progress, for_stream


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


def test_a_log_gets_lines() -> None:
    assert type(for_stream()) is LineProgress  # the tests' standard error is no terminal
