"""Normality: what cloth looks like when it is good, and how far a place is from that."""

from __future__ import annotations

from typing import Literal, get_args

from loomsight.errors import UsageError

MethodName = Literal["memory", "prediction", "bars", "student", "fanogan", "ganomaly"]
Residual = Literal["pixels", "features", "frozen"]
"""What a GAN compares of a picture and of what it wove again: see :mod:`loomsight.anomaly.residual`."""
METHODS: tuple[MethodName, ...] = get_args(MethodName)
GANS: tuple[MethodName, ...] = ("fanogan", "ganomaly")


def methods_of(text: str) -> tuple[MethodName, ...]:
    """Methods as they are written, joined by +.

    Raises:
        UsageError: there is no such method, or bars are to be all.
    """
    words = text.lower().split("+")
    unknown = [word for word in words if word not in METHODS]
    if unknown:
        raise UsageError("no such method", where=unknown[0] or text, why=f"there are {', '.join(METHODS)}")
    if set(words) == {"bars"}:
        raise UsageError("bars alone find nothing else", do="put them beside another: prediction+bars")
    return tuple(name for name in METHODS if name in words)


def residuals_of(text: str) -> tuple[Residual, ...]:
    """What GANs compare, as it is written, joined by +.

    Raises:
        UsageError: there is no such measure.
    """
    names: tuple[Residual, ...] = get_args(Residual)
    words = text.lower().split("+")
    unknown = [word for word in words if word not in names]
    if unknown:
        raise UsageError(
            "nothing that can be compared", where=unknown[0] or text, why=f"there are {', '.join(names)}"
        )
    return tuple(name for name in names if name in words)
