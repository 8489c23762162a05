"""Scores as logits: what is one step surer is as far at 0.9999 as at 0.5."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SURE = np.float32(2.0**-24)  # from 0 and 1, float32's step below 1: a logit stays finite


def logits(score: NDArray[np.float32] | float) -> NDArray[Any]:
    """The logits of a score map, or of one score in [0, 1]; between −16.6 and 16.6."""
    from scipy.special import logit

    return np.asarray(logit(np.clip(np.float32(score), _SURE, 1 - _SURE)))
