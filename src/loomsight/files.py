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
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of a write below ``path`` into a :class:`StorageError` of one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            "cannot write",
            where=path,
            why="the disk is full" if full else (error.strerror or str(error)).lower(),
            do="free some space, or choose another folder" if full else "check the folder and its permissions",
        ) from error


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
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, UTF-8, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ``OSError`` and ``json.JSONDecodeError`` pass through for the caller to name."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well, and is removed otherwise.

    Args:
        path: the folder to make. An existing empty folder is taken over.
        replace: take the place of an existing folder, which goes only after the new one is whole.

    Raises:
        UsageError: ``path`` exists and ``replace`` is false, or is no folder.
        StorageError: the disk is full or the parent cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UsageError("cannot make a folder", where=path, why="a file of that name exists")
    if path.is_dir() and any(path.iterdir()) and not replace:
        raise UsageError("the folder exists", where=path, do="remove it, or choose another with --out")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".part", dir=path.parent))
    try:
        with storage_errors(path):
            yield work
            work.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".old", dir=path.parent))
                path.replace(old / "was")
                work.replace(path)
                shutil.rmtree(old)
            else:
                work.replace(path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
