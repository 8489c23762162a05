"""What an inspection looks with: the profile's engine and gate, or an engine of one's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from loomsight.card import Runtime
from loomsight.errors import LoomsightError
from loomsight.fabric.look import Look
from loomsight.fabric.types import Picture, Region, ScoreMap
from loomsight.inspection.sources import Frame, Unread
from loomsight.profile import Profile

if TYPE_CHECKING:
    from loomsight.runtime.engine import SegmenterEngine, UnionEngine
    from loomsight.runtime.gate import GateCount, GatedEngine

Seen = Look | LoomsightError | None
"""What was seen of a picture, or why nothing was."""


class Scorer(Protocol):
    """What an inspection needs of an engine."""

    def score(self, image: Picture) -> ScoreMap:
        """A picture in, its score map out: float32 HW in [0, 1], the picture's size."""


@runtime_checkable
class Namer(Protocol):
    """An engine that tells types apart too."""

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        """The regions of a picture with their types."""


class Looking:
    """The engines of an inspection, and what they see of each picture.

    Args:
        engine: in place of the profile's own.
        gated: with the profile's gate before it; a detector looks at whole pictures, so beside one there is
            no gate.
    """

    def __init__(self, profile: Profile, engine: Scorer | None, runtime: Runtime, *, gated: bool) -> None:
        self.detector = profile.detector("torch" if engine is not None else runtime)
        self.gate: GatedEngine | None = None
        self.idle = ""  # why the gate that there is stays idle
        self._own: SegmenterEngine | UnionEngine | None = None  # takes the next pictures while it works
        if engine is None:
            gated = gated and self.detector is None
            if gated and profile.card.gate is None:
                gated = False
                if any(one.network == "gate" for one in profile.card.engines):
                    self.idle = "it was set for a higher threshold than this promise has"
            elif gated and runtime == "torch":
                gated, self.idle = False, "torch runs the networks here, and it goes with the exported ones"
            self._own = own = profile.engine(runtime, largest="measured")
            if gated:
                self.gate = profile.gated(own)
            engine = own
        self.engine = engine

    def looks(self, frames: Iterable[Frame | Unread]) -> Iterator[tuple[Frame | Unread, Seen]]:
        """Every item with what was seen, in order; frames are drawn ahead."""
        waiting: deque[Frame | Unread] = deque()

        def images() -> Iterator[Picture]:
            for item in frames:
                waiting.append(item)
                if isinstance(item, Frame):
                    yield item.image

        for seen in self._seen(images()):
            while not isinstance(waiting[0], Frame):
                yield waiting.popleft(), None
            yield waiting.popleft(), seen
        while waiting:
            yield waiting.popleft(), None

    def _seen(self, images: Iterable[Picture]) -> Iterator[Look | LoomsightError]:
        if self.gate is not None:
            yield from self.gate.looks(images)
        elif self._own is not None:
            yield from map(Look.whole, self._own.scores(images))
        else:
            for image in images:
                try:
                    yield Look.whole(self.engine.score(image))
                except LoomsightError as error:
                    yield error


def checked(look: Seen, image: Picture) -> Look:
    """What was seen of a picture.

    Raises:
        LoomsightError: nothing that could be used.
    """
    if isinstance(look, LoomsightError):
        raise look
    if look is None or look.shape != image.shape[:2]:
        shape = None if look is None else look.shape
        raise LoomsightError("no score map", why=f"the network gave {shape} for {image.shape[:2]} pixels")
    if look.score is not None and not np.isfinite(look.score).all():
        raise LoomsightError("no score map", why="the network's answer is not a number")
    return look


def said_of_gate(count: GateCount) -> str:
    """What a gate did, in a few sentences."""
    said = f"With the gate the networks looked at {count.rate:.1%} of the cloth; the rest is surely good."
    if count.aside:
        said += (
            f" It stood aside for {count.aside:,} of {count.pictures:,} pictures, which were looked at in "
            "full: they were too small for it, or so much passed just before that it did not pay."
        )
    if not count.audits:
        return (
            f"{said} What it loses was not measured: none of so few pictures behind it was looked at in full."
        )
    audited = f"Pictures behind it looked at in full: {count.audits:,}; the gate would have lost"
    if not count.regions:
        return f"{said} {audited} nothing, for nothing was found in them."
    return f"{said} {audited} {count.lost:,} of {count.regions:,} regions there."
