"""A sealed folder: files, a card in JSON that lists their hashes, and the hash of the card.

What :mod:`loomsight.profile` and :mod:`loomsight.base` keep is written at once or not at all, may be moved
and copied, and holds no pickled object. Opening it reads every file and compares its hash, so a damaged
copy is noticed before it is used. The hashes find damage, not forgery: whoever can write the folder can
write new hashes too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from loomsight.config import Config
from loomsight.errors import LoomsightError, UsageError
from loomsight.files import check_new_folder, read_json, sha256_file, write_bytes, write_json

_LARGEST_CARD = 16 * 2**20  # bytes; a card is a few kB, and nothing larger is worth parsing

CardT = TypeVar("CardT", bound=BaseModel)


class FileCard(Config):
    """The hash and the size of one file of the folder."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of sealed folder.

    Attributes:
        noun: what it is called in messages: "profile".
        schema: the version of its form; a newer one is refused.
        error: raised when a folder cannot be used.
        made_by: what to give instead; again: how to get an undamaged one.
    """

    noun: str
    schema: int
    error: type[LoomsightError]
    made_by: str
    again: str

    @property
    def card(self) -> str:
        """The card's file name."""
        return f"{self.noun}.json"

    @property
    def seal(self) -> str:
        """The name of the file with the card's hash, in the form that sha256sum -c reads."""
        return f"{self.noun}.sha256"

    def hashes(self, folder: Path) -> dict[str, dict[str, Any]]:
        """What the card says of the files that lie in the folder."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
            for path in files
        }

    def check_target(self, folder: Path, *, replace: bool) -> None:
        """Whether one may be written there, said before hours of work and not after.

        Raises:
            UsageError: a file, or a folder with something in it; with ``replace``, with a file that is not
                of an earlier one: it would be lost.
            StorageError: it cannot be written.
        """
        other = "choose another with --out"
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"cannot write a {self.noun}", where=folder, why="a file of that name exists")
        check_new_folder(folder)
        if not folder.is_dir() or not any(folder.iterdir()):
            return
        if not replace:
            raise UsageError("the folder exists", where=folder, do=f"remove it, or {other}")
        if not (folder / self.card).is_file():
            raise UsageError("not replaced", where=folder, why=f"it is no {self.noun}", do=other)
        try:
            files = set(read_json(folder / self.card)["files"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            why = f"its {self.card} does not say what belongs to it"
            raise UsageError("not replaced", where=folder, why=why, do=f"remove it, or {other}") from None
        self.check_own(folder, files, what="not replaced")

    def check_own(self, folder: Path, files: Collection[str], *, what: str) -> None:
        """Whether a folder has these files, its card and its seal alone.

        Raises:
            UsageError: ``what``, because there is another file.
        """
        own = {*files, self.card, self.seal}
        for path in sorted(folder.rglob("*")):
            if not path.is_dir() and path.relative_to(folder).as_posix() not in own:
                why = f"this file is in the {self.noun}'s folder and not part of it"
                raise UsageError(what, where=path, why=why, do="move it elsewhere")

    def close(self, folder: Path, card: BaseModel) -> None:
        """Write the card and its seal: the last files of a folder."""
        write_json(folder / self.card, card.model_dump(mode="json"))
        write_bytes(folder / self.seal, self._sealed((folder / self.card).read_bytes()))

    def open(self, folder: Path, model: type[CardT]) -> CardT:
        """The card of a folder, which is checked; not its files.

        Raises:
            LoomsightError: of this kind: missing, damaged, or of a newer version.
        """
        if not folder.is_dir():
            why = "it is no folder" if folder.exists() else "it does not exist"
            raise self.error(f"no such {self.noun}", where=folder, why=why, do=self.made_by)
        path = folder / self.card
        if not path.exists() and not (folder / self.seal).exists():
            why = f"it has no {self.card}"
            raise self.error(f"this is no {self.noun}", where=folder, why=why, do=self.made_by)
        with self.read_errors(path):
            for each in (path, folder / self.seal):
                if each.is_symlink() or each.stat().st_size > _LARGEST_CARD:
                    raise self.damaged(each, "it is a link or too large")
            data, seal = path.read_bytes(), (folder / self.seal).read_bytes()
        if seal != self._sealed(data):
            # A newer program may protect its card in another way: its version is the more useful answer.
            self._refuse_newer(path, data)
            raise self.damaged(path, f"its hash is not the one in {self.seal}")
        self._refuse_newer(path, data)
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            why = f"{key}: {first['msg']}"
            raise self.error(f"the {self.noun} cannot be used", where=path, why=why) from error

    def verify(self, folder: Path, files: Mapping[str, FileCard]) -> None:
        """Compare every listed file with its hash.

        Raises:
            LoomsightError: of this kind, with the file's path.
        """
        for name, file in files.items():
            path = self._checked_path(folder, name, file.size)
            with self.read_errors(path):
                if sha256_file(path) != file.sha256:
                    raise self.damaged(path)

    def read(self, folder: Path, name: str, files: Mapping[str, FileCard]) -> bytes:
        """The bytes of one listed file, verified as they are read.

        Raises:
            LoomsightError: of this kind: it is not listed, gone, or has changed.
        """
        if name not in files:
            raise self.error(f"the {self.noun} has no such file", where=folder / name)
        path = self._checked_path(folder, name, files[name].size)
        with self.read_errors(path):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != files[name].sha256:
            raise self.damaged(path)
        return data

    def damaged(
        self, path: Path, why: str = "its content has changed since it was written"
    ) -> LoomsightError:
        """The error of a damaged file."""
        return self.error(f"the {self.noun} is damaged", where=path, why=why, do=self.again)

    @contextmanager
    def read_errors(self, path: Path) -> Iterator[None]:
        """A file that cannot be read as an error of this kind."""
        try:
            yield
        except FileNotFoundError as error:
            raise self.error(
                f"the {self.noun} is incomplete",
                where=error.filename or path,
                why="it is missing",
                do="copy it again",
            ) from error
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise self.error(f"the {self.noun} cannot be read", where=path, why=why) from error

    def _refuse_newer(self, path: Path, data: bytes) -> None:
        try:
            version = json.loads(data)["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.damaged(path, f"it is no {self.noun} card") from error
        if not isinstance(version, int) or version < 1:
            raise self.damaged(path, "it has no schema version")
        if version > self.schema:
            raise self.error(
                f"the {self.noun} is of a newer version",
                where=path,
                why=f"version {version}, this program reads up to {self.schema}",
                do="update loomsight",
            )

    def _checked_path(self, folder: Path, name: str, size: int) -> Path:
        """The path of a listed file, which must be a plain file inside the folder and have its size."""
        parts = PurePosixPath(name).parts
        plain = bool(parts) and "/".join(parts) == name and not {"..", "."} & set(parts) and parts[0] != "/"
        if not plain or any(char in name for char in "\\:\0"):
            raise self.error(
                f"the {self.noun} is refused", where=folder, why=f"it lists {name!r}, which leads out of it"
            )
        path = folder
        for part in parts:
            path /= part
            if path.is_symlink():
                raise self.error(f"the {self.noun} is refused", where=path, why="it is a link")
        if not path.is_file():
            raise self.error(
                f"the {self.noun} is incomplete", where=path, why="it is missing", do="copy it again"
            )
        if path.stat().st_size != size:
            raise self.damaged(path, f"it has {path.stat().st_size} bytes instead of {size}")
        return path

    def _sealed(self, data: bytes) -> bytes:
        return f"{hashlib.sha256(data).hexdigest()}  {self.card}\n".encode()
