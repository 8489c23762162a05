"""Margins: what lies between them, along either axis."""

from __future__ import annotations

import numpy as np
import pytest

from loomsight.errors import UsageError
from loomsight.fabric.margin import Margin


@pytest.mark.parametrize(("along", "shape"), [("y", (20, 16)), ("x", (16, 30))])
def test_a_margin_is_cut_off_either_selvedge(along: str, shape: tuple[int, int]) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    margin = Margin(0.7 if along == "y" else 0.2, 0.1, along)  # type: ignore[arg-type]
    assert margin.between(image).shape[:2] == shape
    assert margin.between(image[..., 0].astype(np.float32)).shape == shape
    with pytest.raises(UsageError, match=r"a margin of .* mm leaves nothing of the cloth: a\.png"):
        margin.check("a.png", 4)


def test_without_a_scale_a_margin_is_in_pixels() -> None:
    assert Margin(3).between(np.zeros((5, 9), np.uint8)).shape == (5, 3)
    assert str(Margin(3)) == "3 px"
    assert Margin().between(np.zeros((5, 9), np.uint8)).shape == (5, 9)
