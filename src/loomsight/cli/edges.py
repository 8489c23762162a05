"""What commands are told of a web's edges: which way it runs, and what is left out at either selvedge."""

from __future__ import annotations

import math
from enum import StrEnum

from loomsight.errors import UsageError


class Along(StrEnum):
    """The axis of a picture that runs along the roll."""

    X = "x"
    Y = "y"


def check_margin(margin: float | None) -> None:
    """Whether a ``--margin`` is one.

    Raises:
        UsageError: it is below 0, or no number.
    """
    if margin is not None and not 0 <= margin < math.inf:
        raise UsageError("bad --margin", where=f"{margin:g}", why="it must be 0 or more")
