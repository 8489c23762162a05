"""What can go wrong, as one tree.

    LoomsightError            3  could not
    ├── UsageError            2  an argument or a setting is wrong
    ├── ImageError            3  a picture cannot be read
    ├── DatasetError          3  a folder of pictures or labels cannot be used
    ├── WeightsError          3  network weights are missing or not the known file
    ├── CheckpointError       3  a training checkpoint cannot be resumed
    ├── ProfileError          3  a fabric profile is damaged or of another version
    ├── TrainingError         3  a training diverged
    ├── ExportError           3  a network cannot be exported, or an exported file not be used
    └── StorageError          3  a file cannot be written: disk full, no permission

Every message is one line that says what, where, why, and what to do. The number is the exit code of
the command line; 0 is done, 1 means that the cloth failed its policy and is no error.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path


class LoomsightError(Exception):
    """An expected failure, told in one line.

    Args:
        what: what failed, as a short clause.
        where: the file, folder or setting it is about.
        why: the reason, as found.
        do: what the user can do about it.
    """

    exit_code = 3

    def __init__(
        self, what: str, *, where: Path | str | None = None, why: str | None = None, do: str | None = None
    ) -> None:
        self.what, self.where, self.why, self.do = what, where, why, do
        line = " ".join(what.split())
        if where is not None:
            line += f": {where}"
        if why:
            line += f": {' '.join(why.split())}"
        if do:
            line += f" ({' '.join(do.split())})"
        super().__init__("".join(map(_shown, line)))


def _shown(char: str) -> str:
    """A character as one line can show it: a file name may hold line ends and terminal commands."""
    hidden = unicodedata.category(char) in {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
    return char.encode("unicode_escape").decode("ascii") if hidden else char


class UsageError(LoomsightError):
    """An argument or a setting is wrong: nothing was started."""

    exit_code = 2


class ImageError(LoomsightError):
    """A picture cannot be read, or must not be."""


class DatasetError(LoomsightError):
    """A folder of pictures or labels cannot be used."""


class WeightsError(LoomsightError):
    """Network weights are missing, or are not the file whose hash is known."""


class CheckpointError(LoomsightError):
    """A training checkpoint cannot be resumed."""


class ProfileError(LoomsightError):
    """A fabric profile is damaged, incomplete, or of another version."""


class BaseWeightsError(LoomsightError):
    """A base is damaged, incomplete, or of another version, or lacks what is asked of it."""


class TrainingError(LoomsightError):
    """A training diverged or had nothing to learn from."""


class ExportError(LoomsightError):
    """An exported network does not agree with its origin, or its file cannot be used."""


class StorageError(LoomsightError):
    """A file cannot be written."""
