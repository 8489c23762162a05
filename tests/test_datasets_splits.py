"""Splits: no source on two sides, about the asked shares, and the new-fabric protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomsight.datasets import Item, new_fabric_fold, split
from loomsight.errors import DatasetError, UsageError


def item(number: int, fabric: str, source: str = "", *, good: bool = True) -> Item:
    kind = "good" if good else "defect"
    return Item(
        Path(f"{fabric}/{kind}/{number:04d}.png"), fabric, source or f"{fabric}/{kind}/{number}", good
    )


items_of_any_kind = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.booleans()), min_size=1, max_size=60
).map(lambda rows: [item(at, f, f"s{s}", good=g) for at, (f, s, g) in enumerate(rows)])


@given(items_of_any_kind, st.sampled_from(["source", "fabric"]), st.integers(0, 5))
def test_no_source_and_no_item_stands_on_two_sides(items: list[Item], by: str, seed: int) -> None:
    fractions = {"train": 0.6, "valid": 0.2, "test": 0.2}
    sides = split(items, fractions, np.random.default_rng(seed), by="fabric" if by == "fabric" else "source")
    assert sorted(member.path for side in sides.values() for member in side) == sorted(i.path for i in items)
    for key in {"source", by}:
        values = [{getattr(member, key) for member in side} for side in sides.values()]
        assert sum(map(len, values)) == len(set().union(*values))


def test_shares_hold_in_every_fabric_for_good_and_defective() -> None:
    items = [item(n, f, good=g) for f in ("a", "b") for g in (True, False) for n in range(40)]
    test = split(items, {"train": 0.75, "test": 0.25}, np.random.default_rng(1))["test"]
    for fabric in ("a", "b"):
        for good in (True, False):
            assert sum(i.fabric == fabric and i.good == good for i in test) == 10


def test_the_same_seed_gives_the_same_split_in_any_order() -> None:
    items = [item(n, "a", f"s{n // 3}") for n in range(60)]
    fractions = {"train": 0.5, "test": 0.5}
    first = split(items, fractions, np.random.default_rng(3))
    assert split(items[::-1], fractions, np.random.default_rng(3)) == first
    assert split(items, fractions, np.random.default_rng(4)) != first


def test_bad_fractions() -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        split([item(1, "a")], {"train": 0.5}, np.random.default_rng(0))


def test_new_fabric_fold_shows_the_first_good_ones_and_tests_the_rest() -> None:
    items = [item(n, f, good=g) for f in ("a", "b", "c") for g in (True, False) for n in range(14)]
    fold = new_fabric_fold(items[::-1], "b")
    assert [i.path.stem for i in fold.seen_good] == [f"{n:04d}" for n in range(10)]
    assert all(i.good and i.fabric == "b" for i in fold.seen_good)
    assert len(fold.test) == 4 + 14
    assert {i.fabric for i in fold.known} == {"a", "c"}
    assert len(fold.known) == 56
    assert fold.left_out == ()


def test_new_fabric_fold_leaves_out_what_would_leak() -> None:
    items = [item(n, "b") for n in range(10)]
    window = item(11, "b", "b/good/3", good=False)  # cut from a picture that the learner sees
    copy = item(1, "other name", "b/good/12")  # the new fabric under another name
    fold = new_fabric_fold([*items, item(12, "b"), window, copy, item(2, "other name")], "b")
    assert set(fold.left_out) == {window, copy}
    assert [i.path.stem for i in fold.test] == ["0012"]
    assert [i.path.stem for i in fold.known] == ["0002"]


def test_new_fabric_fold_errors() -> None:
    items = [item(n, "twill") for n in range(3)]
    with pytest.raises(UsageError, match="nearest is 'twill'"):
        new_fabric_fold(items, "twil")
    with pytest.raises(DatasetError, match="there are 3"):
        new_fabric_fold(items, "twill")
