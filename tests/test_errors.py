from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loomsight.errors import ImageError, LoomsightError, UsageError


def test_a_message_says_what_where_why_and_what_to_do() -> None:
    error = ImageError("cannot read the picture", where=Path("a/b.png"), why="truncated", do="copy it again")
    assert str(error) == "cannot read the picture: a/b.png: truncated (copy it again)"
    assert (error.what, error.why, error.do) == ("cannot read the picture", "truncated", "copy it again")


def test_what_is_not_known_is_left_out() -> None:
    assert str(LoomsightError("out of memory")) == "out of memory"
    assert str(LoomsightError("stopped", do="go on")) == "stopped (go on)"


def test_a_wrong_argument_and_a_failure_have_their_own_exit_codes() -> None:
    assert UsageError("x").exit_code == 2
    assert ImageError("x").exit_code == LoomsightError("x").exit_code == 3


def test_names_of_every_script_stay_readable() -> None:
    assert str(ImageError("no picture", where="坯布　卷 3/é.png")) == "no picture: 坯布　卷 3/é.png"


def test_a_file_name_cannot_drive_the_terminal() -> None:
    assert (
        str(ImageError("no picture", where="a\x1b[2J\n\udcff.png")) == "no picture: a\\x1b[2J\\n\\udcff.png"
    )


@given(what=st.text(), where=st.text(), why=st.text(), do=st.text())
def test_a_message_is_always_one_line_that_can_be_printed(what: str, where: str, why: str, do: str) -> None:
    line = str(LoomsightError(what, where=where, why=why, do=do))
    assert len(line.splitlines()) <= 1
    line.encode("utf-8")
