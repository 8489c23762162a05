"""Splits without leaks: what was cut from one picture stays on one side.

Rotated copies, windows of one strip and neighbouring frames look alike, so a score measured across
them says nothing. Every split here moves whole groups of items.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loomsight.datasets.items import Item
from loomsight.errors import DatasetError, UsageError


@dataclass(frozen=True, slots=True)
class Fold:
    """One fabric taken as new, all others as known.

    Attributes:
        fabric: the new fabric.
        known: every item of the other fabrics.
        seen_good: the good items of the new fabric that the learner may see.
        test: all other items of the new fabric.
        left_out: items that share a source with the other side and would leak; in no other list.
    """

    fabric: str
    known: tuple[Item, ...]
    seen_good: tuple[Item, ...]
    test: tuple[Item, ...]
    left_out: tuple[Item, ...] = ()


def new_fabric_fold(items: Sequence[Item], fabric: str, good_seen: int = 10) -> Fold:
    """The new-fabric protocol: learn ``fabric`` from its first ``good_seen`` good pictures alone.

    The good pictures are taken in the order of their paths. Everything else of the fabric is the
    test, everything of the others is known. An item whose source stands on the other side is left
    out: of the test when the learner sees its source, of the known when the fabric holds its source.

    Raises:
        UsageError: no item is of this fabric.
        DatasetError: it has fewer good pictures than that.
    """
    own = sorted((item for item in items if item.fabric == fabric), key=lambda item: item.path)
    if not own:
        near = difflib.get_close_matches(fabric, sorted({item.fabric for item in items}), n=1, cutoff=0.0)
        raise UsageError(
            f"no fabric is called {fabric!r}", do=f"the nearest is {near[0]!r}" if near else None
        )
    good = [item for item in own if item.good]
    if good_seen < 1 or len(good) < good_seen:
        why = f"{good_seen} good pictures are to be seen, there are {len(good)}"
        raise DatasetError("too few good pictures", where=fabric, why=why)
    seen = good[:good_seen]
    chosen = {item.path for item in seen}
    shown, own_sources = {item.source for item in seen}, {item.source for item in own}
    rest = [item for item in own if item.path not in chosen]
    others = [item for item in items if item.fabric != fabric]
    return Fold(
        fabric,
        known=tuple(item for item in others if item.source not in own_sources),
        seen_good=tuple(seen),
        test=tuple(item for item in rest if item.source not in shown),
        left_out=tuple(
            [item for item in rest if item.source in shown]
            + [item for item in others if item.source in own_sources]
        ),
    )


def split(
    items: Sequence[Item],
    fractions: Mapping[str, float],
    rng: np.random.Generator,
    *,
    by: Literal["source", "fabric"] = "source",
) -> dict[str, list[Item]]:
    """Deal the items to named sides in about these fractions, never parting a source.

    By source, each fabric is dealt to all sides, its defective groups apart from its good ones; by
    fabric, a fabric stands on one side only (and fabrics that share a source stand together). The
    same generator state and items give the same split, whatever the order of the items.

    Args:
        fractions: the share of each side, for example ``{"train": 0.8, "test": 0.2}``; positive,
            adding up to 1.

    Raises:
        UsageError: the fractions are not positive or do not add up to 1.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UsageError("bad fractions", why="each must be positive, and all must add up to 1")
    keys: list[Callable[[Item], str]] = [lambda item: f"source {item.source}"]
    if by == "fabric":
        keys.append(lambda item: f"fabric {item.fabric}")
    strata: dict[tuple[str, bool], list[list[Item]]] = defaultdict(list)
    for group in groups(items, keys):
        defective = any(not item.good for item in group)
        strata[("", False) if by == "fabric" else (group[0].fabric, defective)].append(group)
    sides: dict[str, list[Item]] = {side: [] for side in fractions}
    total = 0
    for stratum in sorted(strata):
        dealt = strata[stratum]
        size, given = sum(len(group) for group in dealt), dict.fromkeys(fractions, 0)
        # Large groups first: what is left to even out the shares at the end is small.
        for index in sorted(rng.permutation(len(dealt)), key=lambda index: -len(dealt[index])):
            group = dealt[index]
            # The side that lacks most of its share here; between equals, the one that lacks most overall.
            side = max(
                fractions,
                key=lambda name: (
                    round(fractions[name] * size - given[name], 9),
                    fractions[name] * total - len(sides[name]),
                ),
            )
            sides[side] += group
            given[side] += len(group)
            total += len(group)
    return {side: sorted(members, key=lambda item: item.path) for side, members in sides.items()}


def groups(items: Sequence[Item], keys: Sequence[Callable[[Item], str]]) -> list[list[Item]]:
    """The items in groups: two that agree in any key are together, also by way of a third.

    Groups and their members are ordered by path.
    """
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for item in items:
        first, *others = (find(key(item)) for key in keys)
        for other in others:
            parent[find(other)] = find(first)
    found: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.path):
        found[find(keys[0](item))].append(item)
    return list(found.values())
