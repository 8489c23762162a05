"""What a profile lists of what an inspector taught it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from loomsight.errors import UsageError
from loomsight.fabric.types import Box
from loomsight.progress import Progress

_LESSONS = 64  # about places, the latest, that can be taken back: each takes up to 23 kB of a profile


@dataclass(frozen=True, slots=True)
class Lesson:
    """One place that an inspector judged: xyxy pixels of a picture, a missed defect or a false alarm."""

    picture: Path
    box: tuple[int, int, int, int]
    defect: bool


def new_record(
    before: Sequence[Mapping[str, JsonValue]], what: str, **facts: JsonValue
) -> dict[str, JsonValue]:
    """What the profile lists of a lesson after these."""
    return {"number": 1 + max(numbers_of(before), default=0), "when": _now(), "what": what, **facts}


def number_of(record: Mapping[str, JsonValue]) -> int:
    return int(str(record["number"]))


def numbers_of(records: Iterable[Mapping[str, JsonValue]]) -> list[int]:
    return [number_of(one) for one in records]


def counted(records: Sequence[Mapping[str, JsonValue]], done: str = "") -> str:
    """How many lessons of each kind there are, and what was done with them."""
    pictures = sum(int(str(one["pictures"])) for one in records if one["what"] == "good")
    places = [
        (sum(one["what"] == what for one in records), word)
        for what, word in (("missed", "missed defect"), ("false alarm", "false alarm"))
    ]
    words = [f"{count} {word}{'s' * (count != 1)}" for count, word in places if count]
    told = [f"{' and '.join(words)} {done or 'taught'}"] if words else []
    if pictures:
        told.append(f"{pictures} good picture{'s' * (pictures != 1)} {done or 'added'}")
    return "; ".join(told)


def recorded(
    before: Sequence[Mapping[str, JsonValue]], lessons: Sequence[Lesson]
) -> list[dict[str, JsonValue]]:
    """What the profile lists of new lessons about places."""
    records: list[dict[str, JsonValue]] = []
    for lesson in lessons:
        place: list[JsonValue] = list(lesson.box)
        picture = hashlib.sha256(lesson.picture.read_bytes()).hexdigest()
        what = "missed" if lesson.defect else "false alarm"
        record = new_record(
            [*before, *records], what, picture=str(lesson.picture), place=place, sha256=picture
        )
        if any(_contradict(one, record) for one in records):
            where = f"{lesson.picture}@{','.join(map(str, lesson.box))}"
            raise UsageError("taught as missed and as a false alarm", where=where, do="say which it is")
        records.append(record)
    return records


def overruled(records: Sequence[Mapping[str, JsonValue]], progress: Progress) -> list[dict[str, JsonValue]]:
    """The lessons, each with whether a later one contradicts it; where that is new, it is said."""
    listed = []
    for at, one in enumerate(records):
        later = next((other for other in records[at + 1 :] if _contradict(one, other)), None)
        made = {key: value for key, value in one.items() if key != "overruled"}
        if later is not None:
            made["overruled"] = True
        if made.keys() != one.keys():
            where = f"{one['picture']}@{','.join(map(str, cast(list[JsonValue], one['place'])))}"
            now = "this holds again" if later is None else "now this holds"
            said = f"taught as {one['what']}" if later is None else f"taught as {one['what']} before"
            progress.say(f"note: {where} was {said}, {one['when']}: {now}")
        listed.append(made)
    return listed


def _contradict(one: Mapping[str, JsonValue], other: Mapping[str, JsonValue]) -> bool:
    """Whether two lessons say the opposite of one place."""
    return (
        one["what"] != other["what"]
        and one.get("sha256") == other.get("sha256")
        and "place" in one
        and meet(one["place"], cast(Box, other["place"]))
    )


def settled(records: Sequence[dict[str, JsonValue]]) -> list[int]:
    """The numbers of lessons about places that are too many to be taken back, which their records say."""
    places = [one for one in records if one["what"] != "good" and "final" not in one]
    for one in places[:-_LESSONS]:
        one["final"] = f"{_LESSONS} more lessons were taught since"
    return numbers_of(places[:-_LESSONS])


def meet(one: Any, other: Box) -> bool:
    """Whether two boxes have pixels in common."""
    return bool(
        max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
