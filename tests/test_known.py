"""Pictures of known fabrics: a defect that nobody outlines must not be learned as good cloth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loomsight.datasets import Item
from loomsight.datasets.outlines import Outline
from loomsight.errors import DatasetError
from loomsight.fabric.images import write_png
from loomsight.learn.known import load_known
from loomsight.progress import Progress


def item(folder: Path, name: str, **labels: object) -> Item:
    write_png(folder / f"{name}.png", np.full((40, 60), 90, np.uint8))
    return Item(folder / f"{name}.png", "twill", name, **{"good": False, **labels})  # type: ignore[arg-type]


def test_defects_that_nothing_outlines_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    for name, value in (("mask", 255), ("empty", 0)):
        write_png(tmp_path / "masks" / f"{name}.png", np.full((40, 60), value, np.uint8))
    items = [
        item(tmp_path, "good", good=True),
        item(tmp_path, "masked", mask=tmp_path / "masks/mask.png"),
        item(tmp_path, "boxed", boxes=((1.0, 2.0, 9.0, 9.0),)),
        item(tmp_path, "bare"),
        item(tmp_path, "empty mask", mask=tmp_path / "masks/empty.png"),
        item(tmp_path, "box outside", boxes=((6000.0, 2000.0, 9000.0, 4000.0),)),
    ]
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    assert [picture.source for picture in load_known(items, progress)] == ["good", "masked", "boxed"]
    assert said == ["note: 3 pictures are left out: nothing outlines the defects there"]


def test_a_label_that_does_not_fit_ends_the_learning_or_is_skipped_as_asked(tmp_path: Path) -> None:
    wrong = item(
        tmp_path, "a", boxes=((1.0, 2.0, 9.0, 9.0),), outlines=(Outline(counts=(600,), size=(20, 30)),)
    )
    with pytest.raises(DatasetError, match="the outline does not fit"):
        load_known([wrong], Progress())
    assert load_known([wrong], Progress(), skip=True) == []
