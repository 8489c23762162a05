"""What can be inspected, as one stream of frames: a folder, a glob, one picture or strip, a video.

A frame is either a picture or a note that it could not be read, in the order of the roll, so that the
ledger closes: received = inspected + skipped + failed. Picture files are decoded on up to four cores. However
long the stream is, only a few pictures are in memory: some being inspected, up to five decoded, two waiting.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2

from loomsight.errors import ImageError
from loomsight.fabric.images import find_images, mostly_lossy, read_image
from loomsight.fabric.types import Picture
from loomsight.machine import cores

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

# FFmpeg, inside OpenCV, writes its own lines on stderr; what is wrong with a file is said once, by this
# program. It is read at the first use of any video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_DECODERS = 4  # pictures decoded at a time, at most: a strip may have hundreds of megapixels
_LOST = 256  # frames in a row that cannot be decoded: then a video has ended

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of the roll.

    Attributes:
        index: its number in the source from 0, unreadable ones counted.
        name: what a person knows it by: its path below the source, or the video's name and frame.
        stem: unique within the source, for files made from it.
        image: uint8, HW or HWC RGB.
    """

    index: int
    name: str
    stem: str
    image: Picture


@dataclass(frozen=True, slots=True)
class Unread:
    """A picture, or ``count`` frames of a video, that could not be read, and why."""

    index: int
    name: str
    error: ImageError
    count: int = 1


class Source:
    """A stream of frames that can be gone through more than once.

    Attributes:
        title: what it is called in reports.
        root: the file or folder that holds it.
        total: how many frames it has, as far as it tells; None when it does not.
        lossy: whether its pictures were compressed so that fine detail is lost; None when unknown.
        notes: what a person should know about it, one sentence each.
    """

    title: str
    root: Path
    total: int | None
    lossy: bool | None = None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Frame | Unread]:
        raise NotImplementedError


class Pictures(Source):
    """Picture files, in the order given.

    Two files of one stem (``left/7.png`` and ``right/7.png``, or ``7.png`` and ``7.jpg``) would overwrite
    each other's score map: they get the stem of their path, ``left_7_png``, and a note says so.
    """

    def __init__(self, paths: list[Path], root: Path, title: str) -> None:
        self.title, self.root, self.total = title, root, len(paths)
        self.lossy = mostly_lossy(paths)
        self._paths = paths
        self._shared = {stem for stem, count in Counter(path.stem for path in paths).items() if count > 1}
        if self._shared:
            some = ", ".join(sorted(self._shared)[:3]) + (", …" if len(self._shared) > 3 else "")
            self.notes = (
                f"several pictures share a name ({some}): "
                "what is written for these carries their folder and suffix",
            )

    def __iter__(self) -> Iterator[Frame | Unread]:
        taken = {path.stem for path in self._paths} - self._shared if self._shared else set()
        for index, (path, image) in enumerate(_decoded(self._paths)):
            name = self._name(path)
            if isinstance(image, ImageError):
                yield Unread(index, name, image)
                continue
            stem = path.stem
            if stem in self._shared:
                stem = plain = name.replace("/", "_").replace(".", "_")
                while stem in taken:
                    stem = f"{plain}_{index}"
                    plain = stem
                taken.add(stem)
            yield Frame(index, name, stem, image)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def _decoded(paths: Iterable[Path]) -> Iterator[tuple[Path, Picture | ImageError]]:
    """Pictures in order, decoded on several cores; one more than decode at a time waits in memory."""
    workers = min(cores(), _DECODERS)
    waiting: deque[tuple[Path, Future[Picture]]] = deque()

    def landed() -> tuple[Path, Picture | ImageError]:
        path, future = waiting.popleft()
        try:
            return path, future.result()
        except ImageError as error:  # where it was raised, and by what, holds the half-decoded picture
            error.__cause__ = error.__context__ = None
            return path, error.with_traceback(None)
        finally:
            del future

    with ThreadPoolExecutor(workers, "decoder") as pool:
        try:
            for path in paths:
                waiting.append((path, pool.submit(read_image, path)))
                if len(waiting) > workers:
                    yield landed()
            while waiting:
                yield landed()
        finally:
            pool.shutdown(cancel_futures=True)


class Video(Source):
    """The frames of a video, one after another; they are taken to follow each other without overlap."""

    def __init__(self, path: Path) -> None:
        self.title, self.root = path.name, path
        capture = _open_video(path)
        # Some containers only estimate it; it says how far the job is, and whether frames are lost.
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = promised if promised > 0 else None
        capture.release()

    def __iter__(self) -> Iterator[Frame | Unread]:
        path, index, lost = self.root, 0, 0
        capture = _open_video(path)
        try:
            while lost < _LOST and not (lost and index + lost == self.total):
                there, frame = capture.read()
                if not there:
                    lost += 1  # one that is damaged, or the end: the next will tell
                    continue
                if lost:
                    yield self._lost(index, lost)
                index, lost = index + lost, 0
                name = f"{path.name}#{index}"
                yield Frame(index, name, f"{path.stem}-{index:06d}", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                index += 1
        finally:
            capture.release()
        if index == 0 or (self.total is not None and index < self.total):
            yield self._lost(index, max(1, (self.total or 0) - index))

    def _lost(self, index: int, count: int) -> Unread:
        path = self.root
        why = f"{count} of {self.total or '?'} frames cannot be decoded: the file is cut off or damaged"
        return Unread(index, f"{path.name}#{index}…", ImageError("cannot read", where=path, why=why), count)


def open_source(source: Path | str) -> Source:
    """Find out what a source is; nothing but a video's header is read.

    Raises:
        UsageError: there is nothing of that name.
        DatasetError: the folder holds no picture.
        ImageError: a video that cannot be decoded at all.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(path)
    paths = find_images(source)
    root = path if path.is_dir() else Path(os.path.commonpath([each.parent for each in paths]))
    return Pictures(paths, root, str(source))


class Prefetched(Generic[T]):
    """Draws from ``items`` in a thread, ``depth`` ahead, so that decoding goes on while the network works.

    A context manager: leaving it stops the thread, whatever happened. An exception of ``items`` is
    raised where the item would have come.
    """

    def __init__(self, items: Iterable[T], depth: int = 2) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def __enter__(self) -> Prefetched[T]:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error, ended = self._queue.get()
            if error is not None:
                raise error
            if ended:
                return
            yield item  # type: ignore[misc]

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None, False)):
                    return
            self._put((None, None, True))
        except BaseException as error:  # handed over to the thread that asked, not swallowed
            self._put((None, error, True))

    def _put(self, entry: tuple[T | None, BaseException | None, bool]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _open_video(path: Path) -> Any:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ImageError(
            "cannot read",
            where=path,
            why="no video that can be decoded",
            do="convert it to MP4 (H.264) or AVI (MJPEG)",
        )
    return capture
