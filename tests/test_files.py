import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from loomsight.errors import StorageError, UsageError
from loomsight.files import (
    check_new_folder,
    new_folder,
    read_json,
    sha256_file,
    storage_errors,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_halfway(folder: Path, *, replace: bool = False) -> None:
    with new_folder(folder, replace=replace) as work:
        (work / "half").write_text("1")
        raise KeyboardInterrupt


def test_a_file_is_written_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a.bin", b"cloth")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"cloth"
    assert names(tmp_path / "new") == ["a.bin"]


def test_a_refused_value_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"threshold": 0.5})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"threshold": float("nan")})
    assert read_json(tmp_path / "a.json") == {"threshold": 0.5}
    assert names(tmp_path) == ["a.json"]


def test_file_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", ["布\udcff.png"])
    assert read_json(tmp_path / "a.json") == ["布\udcff.png"]


def test_a_target_that_is_a_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot write: .*/a: is a directory"):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_told_in_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(StorageError, match="cannot write: /dev/full: the disk is full") as caught,
        storage_errors(full),
        full.open("wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert caught.value.exit_code == 3


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "profile") as work:
        (work / "a").write_text("1")
        assert not (tmp_path / "deep" / "profile").exists()
    assert names(tmp_path / "deep" / "profile") == ["a"]
    assert names(tmp_path / "deep") == ["profile"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop_halfway(tmp_path / "profile")
    assert names(tmp_path) == []


def test_a_folder_with_results_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "profile"
    write_text(out / "old", "1")
    with pytest.raises(UsageError, match="the folder exists"), new_folder(out):
        pass
    with pytest.raises(KeyboardInterrupt):
        stop_halfway(out, replace=True)
    assert names(out) == ["old"]
    with new_folder(out, replace=True) as work:
        (work / "new").write_text("2")
    assert names(out) == ["new"]
    assert names(tmp_path) == ["profile"]


def test_an_empty_folder_stays_the_same_folder(tmp_path: Path) -> None:
    """A mounted volume cannot be renamed, so results must move into it."""
    out = tmp_path / "volume"
    out.mkdir()
    before = out.stat().st_ino
    with new_folder(out) as work:
        (work / "a").write_text("1")
        (work / "maps").mkdir()
    assert (out.stat().st_ino, names(out)) == (before, ["a", "maps"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(KeyboardInterrupt):
        stop_halfway(empty)
    assert names(empty) == []


def test_results_in_a_mounted_volume_or_where_somebody_stands_are_replaced_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "volume"
    write_text(out / "maps" / "old.png", "1")
    write_text(out / "report", "1")
    before = out.stat().st_ino
    for stands, folder in ((False, out), (True, Path()), (True, out)):
        monkeypatch.setattr(Path, "is_mount", lambda _, mounted=not stands: mounted)
        if stands:
            monkeypatch.chdir(out)
        with pytest.raises(KeyboardInterrupt):
            stop_halfway(folder, replace=True)
        assert "report" in names(out)
        with new_folder(folder, replace=True) as work:
            (work / "report").write_text("2")
            (work / "maps").mkdir()
        assert (out.stat().st_ino, names(out), names(out / "maps")) == (before, ["maps", "report"], [])
        assert (out / "report").read_text() == "2"


def test_what_lay_in_a_volume_comes_back_when_the_new_cannot_move_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "volume"
    write_text(out / "a", "old")
    write_text(out / "b", "old")
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    move = Path.replace

    def refuse_b(path: Path, to: Path) -> Path:
        if path.name == "b" and path.read_text() == "new":
            raise PermissionError(13, "Permission denied", str(path))
        return move(path, to)

    monkeypatch.setattr(Path, "replace", refuse_b)
    with pytest.raises(StorageError, match="permission denied"), new_folder(out, replace=True) as work:
        _write(work, "abc")
    assert {name: (out / name).read_text() for name in names(out)} == {"a": "old", "b": "old"}


def _write(folder: Path, names: str) -> None:
    for name in names:
        (folder / name).write_text("new")


def test_a_folder_that_cannot_be_made_is_said_beforehand_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free in (tmp_path / "deep" / "new", tmp_path):
        check_new_folder(free)
    assert names(tmp_path) == []
    write_text(tmp_path / "picture.png", "x")
    with pytest.raises(StorageError, match="a file is where its folder should be"):
        check_new_folder(tmp_path / "picture.png" / "profile")
    make = tempfile.mkdtemp

    def refuse(*, dir: Path, prefix: str, suffix: str) -> str:  # noqa: A002
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied", str(dir))
        return make(dir=dir, prefix=prefix, suffix=suffix)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StorageError, match=r"cannot write: .*/deep/new: permission denied"):
        check_new_folder(tmp_path / "deep" / "new")


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write_text(tmp_path / "disk" / "twill-v3" / "old", "1")
    (tmp_path / "twill").symlink_to(tmp_path / "disk" / "twill-v3")
    with new_folder(tmp_path / "twill", replace=True) as work:
        (work / "new").write_text("2")
    assert (tmp_path / "twill").is_symlink()
    assert names(tmp_path / "disk" / "twill-v3") == ["new"]
    assert (names(tmp_path), names(tmp_path / "disk")) == (["disk", "twill"], ["twill-v3"])


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "profile", "x")
    with pytest.raises(UsageError, match="a file of that name exists"), new_folder(tmp_path / "profile"):
        pass
    with (
        pytest.raises(StorageError, match="a file is where its folder should be"),
        new_folder(tmp_path / "profile" / "below"),
    ):
        pass


def test_only_failures_of_writing_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out"):
        (tmp_path / "no such picture.png").read_bytes()
    with pytest.raises(StorageError, match="cannot write"), new_folder(tmp_path / "out") as work:
        (work / "no" / "folder").write_bytes(b"")
    with pytest.raises(StorageError, match="the disk is full"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_killed_write_never_shows_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    code = (
        "import sys; from pathlib import Path; from loomsight.files import write_bytes\n"
        "n = 0\n"
        "while True:\n"
        "    n = (n + 1) % 250; write_bytes(Path(sys.argv[1]), bytes([n]) * 3_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(target)]) as process:
        while not target.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    data = target.read_bytes()
    assert len(data) == 3_000_000
    assert len(set(data)) == 1


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == expected
