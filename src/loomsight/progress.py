"""One way to tell how far a job is: a bar on a terminal, plain lines elsewhere.

A job gets a :class:`Progress` and calls :meth:`Progress.track` or :meth:`Progress.say`; which kind it
is has been decided once, by the command line. The default says nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

T = TypeVar("T")


class Progress:
    """The silent one, and the base of the others."""

    def say(self, text: str) -> None:
        """Tell one line: a stage that begins, a finding, a warning."""

    def step(self, label: str, done: int, total: int, note: str = "") -> None:
        """Tell that ``done`` of ``total`` units of ``label`` are finished."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` and tell the progress after each."""
        count = total if total is not None else len(items)  # type: ignore[arg-type]
        for done, item in enumerate(items, 1):
            yield item
            self.step(label, done, count)

    def close(self) -> None:
        """Finish: leave the terminal as it was. ``with progress:`` does it too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LineProgress(Progress):
    """Plain lines on a stream, at most one every ``every`` seconds for each label."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._last: dict[str, float] = {}

    def say(self, text: str) -> None:
        self._write(text)

    def step(self, label: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done < total and now - self._last.setdefault(label, now) < self._every:
            return
        self._last[label] = now
        self._write(f"{label}: {done}/{total}{'  ' + note if note else ''}")

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class BarProgress(Progress):
    """A bar for each label on a terminal, drawn by rich."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(file=sys.stderr),  # the one of now: an exporter's own bars are kept off it
        )
        self._tasks: dict[str, progress.TaskID] = {}
        self._bars.start()

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)

    def step(self, label: str, done: int, total: int, note: str = "") -> None:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, note=note)
        self._bars.update(self._tasks[label], completed=done, total=total, note=note)

    def close(self) -> None:
        self._bars.stop()


def for_stream() -> Progress:
    """The progress that suits standard error: a bar on a terminal, else lines."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()
