import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from loomsight.errors import DatasetError, ImageError, UsageError
from loomsight.fabric.images import write_png
from loomsight.inspection.sources import Frame, Prefetched, Unread, open_source


def picture(value: int, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def film(path: Path, frames: int, *, blue: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    rng = np.random.default_rng(0)
    for number in range(frames):
        frame = rng.integers(0, 60, (48, 64, 3), np.uint8)
        frame[:, : 4 * number] = (200, 0, 0) if blue else 200  # BGR
        writer.write(frame)
    writer.release()
    return path


def test_a_folder_comes_in_the_order_of_people(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_png(tmp_path / f"f{number}.png", picture(number))
    source = open_source(tmp_path)
    frames = list(source)
    assert source.total == 3
    assert [frame.name for frame in frames] == ["f1.png", "f2.png", "f10.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.stem for frame in frames if isinstance(frame, Frame)] == ["f1", "f2", "f10"]
    assert [int(frame.image[0, 0]) for frame in frames if isinstance(frame, Frame)] == [1, 2, 10]
    assert [frame.name for frame in source] == ["f1.png", "f2.png", "f10.png"]  # once more


def test_a_bad_picture_keeps_its_place_and_says_why(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(1))
    (tmp_path / "b.png").write_text("not a picture")
    write_png(tmp_path / "c.png", picture(3))
    first, bad, last = open_source(tmp_path)
    assert (first.index, bad.index, last.index) == (0, 1, 2)
    assert isinstance(bad, Unread)
    assert str(tmp_path / "b.png") in str(bad.error)
    # a half-decoded strip of 100 megapixels must not wait in memory with the line that says why
    assert bad.error.__traceback__ is bad.error.__cause__ is bad.error.__context__ is None


def test_pictures_that_share_a_name_are_told_apart_and_it_is_said(tmp_path: Path) -> None:
    for name in ("left/7.png", "right/7.png", "left/8.png", "left_7_png.png"):
        write_png(tmp_path / name, picture(1))
    source = open_source(str(tmp_path / "**" / "*.png"))
    stems = {frame.name: frame.stem for frame in source if isinstance(frame, Frame)}
    assert stems["left/8.png"] == "8"
    assert stems["right/7.png"] == "right_7_png"
    assert stems["left_7_png.png"] == "left_7_png"
    assert len(set(stems.values())) == 4
    assert "7" in source.notes[0]
    (tmp_path / "left" / "7.png").unlink()
    assert open_source(str(tmp_path / "**" / "*.png")).notes == ()


def test_one_strip_is_one_frame_however_long(tmp_path: Path) -> None:
    write_png(tmp_path / "strip.png", picture(9, (256, 8192)))
    (frame,) = open_source(tmp_path / "strip.png")
    assert isinstance(frame, Frame)
    assert frame.image.shape == (256, 8192)
    assert frame.stem == "strip"


def test_a_video_comes_frame_by_frame_in_rgb(tmp_path: Path) -> None:
    source = open_source(film(tmp_path / "line.avi", 6, blue=1))
    frames = [frame for frame in source if isinstance(frame, Frame)]
    assert source.total == len(frames) == 6
    assert [frame.stem for frame in frames[:2]] == ["line-000000", "line-000001"]
    source.total = 4  # as some containers estimate it
    assert len(list(source)) == 6
    red, _, blue = frames[5].image[:, :16].mean(axis=(0, 1))
    assert blue > 150
    assert red < 60


def test_a_video_that_is_cut_off_says_how_much_is_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = film(tmp_path / "whole.avi", 20).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    frames = list(open_source(tmp_path / "cut.avi"))
    lost = frames[-1]
    assert isinstance(lost, Unread)
    assert len(frames) - 1 + lost.count == 20
    assert "cut off" in str(lost.error)
    assert capfd.readouterr().err == ""  # the decoder does not speak past the program


def test_a_damaged_frame_of_a_video_is_lost_alone_and_the_others_keep_their_place(tmp_path: Path) -> None:
    data = bytearray(film(tmp_path / "whole.avi", 20).read_bytes())
    starts = [
        k for k in range(len(data)) if data[k : k + 4] == b"00dc" and data[k + 8 : k + 10] == b"\xff\xd8"
    ]
    data[starts[7] + 8 : starts[8]] = bytes(starts[8] - starts[7] - 8)
    (tmp_path / "hurt.avi").write_bytes(data)
    frames = list(open_source(tmp_path / "hurt.avi"))
    (lost,) = (frame for frame in frames if isinstance(frame, Unread))
    assert (lost.index, lost.count) == (7, 1)
    assert [frame.index for frame in frames] == list(range(20))


def test_what_is_no_video_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "line.mp4").write_bytes(b"hello" * 100)
    with pytest.raises(ImageError, match=r"line\.mp4.*no video that can be decoded"):
        open_source(tmp_path / "line.mp4")
    assert capfd.readouterr().err == ""


def test_nothing_to_inspect_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no pictures"):
        open_source(tmp_path)
    with pytest.raises(UsageError, match="no picture matches"):
        open_source(str(tmp_path / "*.png"))


def test_prefetching_keeps_the_order_and_runs_only_a_little_ahead() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    with Prefetched(items()) as ahead:
        for number in ahead:
            assert drawn[-1] <= number + 4
    assert drawn == list(range(100))


def test_prefetching_hands_over_what_goes_wrong_where_it_went_wrong() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ImageError("cannot read", where="x.png")

    with Prefetched(items()) as ahead:
        steps = iter(ahead)
        assert next(steps) == 1
        with pytest.raises(ImageError, match=r"x\.png"):
            next(steps)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with Prefetched(iter(range(1_000_000))) as ahead:
        assert next(iter(ahead)) == 0
    assert threading.active_count() == before
