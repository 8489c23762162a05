"""Files that are either whole or not there: atomic writes, folders that appear at once, hashes.

A write goes to a hidden temporary name beside its target, is flushed to disk and then renamed, so a
reader, a power cut or a full disk never meets half a file. A failed write leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loomsight.errors import StorageError, UsageError


@contextmanager
def storage_errors(path: Path, *, below: Path | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of a write to ``path`` into a :class:`StorageError` of one line.

    Args:
        path: what is written, for the message.
        below: turn only errors about files in this folder, and a full disk; others pass.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and below is not None and not _is_about(error, below):
            raise
        raise StorageError(
            "cannot write",
            where=path,
            why=_reason(error),
            do="free some space, or choose another folder" if full else "check the path and its permissions",
        ) from error


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):  # the system names only the first of the two
        return "a file is where its folder should be"
    return (error.strerror or str(error)).lower()


def _is_about(error: OSError, folder: Path) -> bool:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(Path(name).is_relative_to(folder) for name in names)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:  # Ctrl-C too: nothing half-written stays
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically.

    Bytes of a file name that are no UTF-8 are written as ``\\udcXX``, which JSON reads back as they were.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, UTF-8, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ``OSError`` and ``json.JSONDecodeError`` pass through for the caller to name."""
    return json.loads(path.read_text(encoding="utf-8"))


RESULTS, RESULTS_BEGIN = "regions.json", '{"loomsight": "inspection"'
"""A file that the results of an inspection have, and how it begins."""


def written_by_us(folder: Path) -> bool:
    """Whether a folder is what this program wrote: the results of an inspection, a profile or a base."""
    if (folder / RESULTS).is_file():
        with (folder / RESULTS).open("rb") as file:
            return file.read(len(RESULTS_BEGIN)) == RESULTS_BEGIN.encode()
    return any((folder / f"{kind}.sha256").is_file() for kind in ("profile", "base"))


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well, and is removed otherwise.

    Args:
        path: the folder to make, or a link to it. An existing empty folder is taken over.
        replace: take the place of an existing folder, which goes only after the new one is whole.

    Raises:
        UsageError: ``path`` exists and ``replace`` is false, or is no folder.
        StorageError: the disk is full or the parent cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UsageError("cannot make a folder", where=path, why="a file of that name exists")
    with storage_errors(path):
        existed = path.is_dir()
        taken = existed and any(path.iterdir())
        if taken and not replace:
            raise UsageError("the folder exists", where=path, do="remove it, or choose another with --out")
        goal = path.resolve()  # a link stays one, and "." has a name
        goal.parent.mkdir(parents=True, exist_ok=True)
        stays = existed and (not taken or _has_to_stay(goal))
        home = goal if stays else goal.parent
        work = Path(tempfile.mkdtemp(prefix=f".{goal.name[:60]}.", suffix=".part", dir=home))
    try:
        with storage_errors(path, below=work):
            yield work
        with storage_errors(path):
            if stays:
                _move_in(work, goal)
            elif taken:
                work.chmod(0o755)
                _take_place(work, goal)
            else:
                work.chmod(0o755)
                work.replace(goal)
    except BaseException:  # Ctrl-C too: nothing half-written stays
        shutil.rmtree(work, ignore_errors=True)
        raise


def _has_to_stay(path: Path) -> bool:
    """A mounted volume cannot be renamed, and who stands in a folder would find it gone."""
    return path.is_mount() or Path.cwd().is_relative_to(path)


def check_new_folder(path: Path) -> None:
    """Whether :func:`new_folder` can write there, said before hours of work and not after.

    Raises:
        StorageError: the nearest folder above it cannot be written, or is a file.
    """
    with storage_errors(path):
        home = path.resolve()
        if home.is_dir() and any(home.iterdir()) and not _has_to_stay(home):
            home = home.parent
        while not home.exists():
            home = home.parent
        Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=home)).rmdir()


def _take_place(work: Path, path: Path) -> None:
    """Put the folder ``work`` where ``path`` is; the old folder goes last, and comes back on failure."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".old", dir=path.parent))
    try:
        path.replace(aside / "was")
    except BaseException:  # Ctrl-C too: what was there comes back
        aside.rmdir()
        raise
    try:
        work.replace(path)
    except BaseException:  # Ctrl-C too: what was there comes back
        (aside / "was").replace(path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _move_in(work: Path, path: Path) -> None:
    """Put what is in the folder ``work``, which lies in ``path``, in place of all else there."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".old", dir=path))
    moves = [(child, aside / child.name) for child in path.iterdir() if child not in (work, aside)]
    moves += [(child, path / child.name) for child in sorted(work.iterdir())]
    done: list[tuple[Path, Path]] = []
    try:
        for move in moves:
            done.append(move)
            move[0].replace(move[1])
    except BaseException:  # Ctrl-C too: what was there comes back
        for was, now in reversed(done):
            if not (was.exists() or was.is_symlink()):
                now.replace(was)
        aside.rmdir()
        raise
    work.rmdir()
    shutil.rmtree(aside, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
