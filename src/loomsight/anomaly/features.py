"""What good cloth is compared by: the features of a frozen network, at three scales.

EfficientNet-Lite0 as ImageNet left it, up to stride 16. Its convolutions repeat their outermost values at the
border in place of zeros, or every picture's border would be unlike all other cloth. :func:`windows` cuts
good pictures so that each part of the cloth, the selvedges above all, is seen at a border too: on the next
roll the selvedge lies a few pixels further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.backbones import efficientnet_lite
from loomsight.fabric.types import Picture

LEVELS = 3
"""Strides 4, 8 and 16; stride 2 costs four times as much and tells little more."""
STEP = 16
"""Pixels: an exported form of the network looks at pictures whose sides are multiples of it."""
_EDGE = 96  # pixels from either end in which windows begin
_NARROW = 128  # pixels of a window
_SIDES = (_NARROW, 192, 256)  # few: what runs a network keeps some MB for each size that it has seen
_INSIDE, _AT_ENDS = 3, 5  # windows of a picture: anywhere, and from each end
_SOFT = 1.0  # pixels of blur at most: a lens that is slightly out of focus


Levels = Sequence[Float[NDArray[np.float32], "c h w"]]
"""Of one picture, finest first."""


class Features:
    """The frozen network."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = efficientnet_lite.build("lite0", stages=5, border="replicate").eval().to(self.device)
        network.requires_grad_(False)
        self.network: nn.Module = network
        self._other: Callable[[Iterable[Picture]], Iterator[Levels]] | None = None

    def run_by(self, other: Callable[[Iterable[Picture]], Iterator[Levels]]) -> None:
        """Let an exported form of the network give the levels of pictures, with several in flight."""
        self._other = other

    def levels(self, even: Picture) -> list[Float[Tensor, "c h w"]]:
        """Features of an evenly lit picture (:meth:`Light.even`) at each stride, finest first."""
        (levels,) = self.levels_of([even])
        return levels

    def levels_of(self, even: Sequence[Picture]) -> Iterator[list[Float[Tensor, "c h w"]]]:
        """The same of several pictures or tiles, in order."""
        if self._other is not None and not any(side % STEP for one in even for side in one.shape[:2]):
            for levels in self._other(even):
                yield [torch.from_numpy(level).to(self.device) for level in levels]
            return
        for one in even:
            x = torch.from_numpy(np.ascontiguousarray(one)).to(self.device).permute(2, 0, 1)[None]
            yield [level[0] for level in self.batch(x.float() / 255)]

    @torch.no_grad()
    def batch(self, x: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c h2 w2"]]:
        """The same of evenly lit pictures in [0, 1]."""
        levels = self.network(x.contiguous(memory_format=torch.channels_last))
        return list(levels[-LEVELS:])


def windows(picture: Picture, rng: np.random.Generator, most: int = _SIDES[-1]) -> Iterator[Picture]:
    """The whole picture, and parts of it with their borders anywhere, half of these slightly soft.

    Args:
        most: pixels a side of a part, at least :data:`_NARROW`.
    """
    yield picture
    height, width = picture.shape[:2]
    if min(height, width) < _NARROW // 2:
        return
    for _ in range(_INSIDE):
        high, wide = (min(int(rng.choice(_SIDES)), most, side) for side in (height, width))
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        yield _softened(picture[top : top + high, left : left + wide], rng)
    along = 1 if width >= height else 0
    length = picture.shape[along]
    if length < _NARROW + _EDGE:
        return
    for number in range(_AT_ENDS):  # one in each fifth of the margin
        off = int((number + rng.random()) / _AT_ENDS * _EDGE)
        for start in (off, length - off - _NARROW):
            part: Any = [slice(None), slice(None)]
            part[along] = slice(start, start + _NARROW)
            yield _softened(picture[tuple(part)], rng)


def _softened(picture: Picture, rng: np.random.Generator) -> Picture:
    blur = float(rng.uniform(-_SOFT, _SOFT))
    if blur <= 0.2:
        return picture
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.uint8)
