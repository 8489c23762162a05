"""Patches of good cloth, for networks that learn it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loomsight.fabric.types import Picture
from loomsight.synthesis.recipe import mirror_pad, random_window

_MOST = 64_000_000  # pixels of good cloth that are kept to cut patches from
_LIGHT = 0.06  # by so much at most a patch is brighter, or its contrast larger; and brighter at one side
_SOFT = 1.0  # pixels of blur at most, of half of the patches


class GoodPatches:
    """Batches of patches, float (n, channels, size, size) in [−1, 1]; batch k from k and the seed alone.

    The light that :meth:`loomsight.fabric.light.Light.even` leaves, a lens that is slightly out of focus:
    both are in the patches, so that they are no news on a line. Nothing is mirrored or turned: a twill that
    runs the other way is a defect.

    Args:
        even: evenly lit good pictures, uint8 HWC RGB.
    """

    def __init__(self, even: Sequence[Picture], size: int, count: int, *, seed: int = 0) -> None:
        some = max(1, min(len(even), _MOST // max(1, even[0].shape[0] * even[0].shape[1])))
        chosen = np.unique(np.linspace(0, len(even) - 1, some).astype(int))
        self._pictures = [mirror_pad(even[i], size) for i in chosen]
        areas = np.array([one.shape[0] * one.shape[1] for one in self._pictures], np.float64)
        self._odds = areas / areas.sum()
        self._size, self._count, self._seed = size, count, seed
        grey = all(bool((one[..., :1] == one[..., 1:]).all()) for one in self._pictures)
        self.channels = 1 if grey else 3
        """One where the camera sees no colour."""

    def batch(self, k: int) -> Float[Tensor, "n c s s"]:
        """Batch k."""
        return self.made(k, self.patch)

    def made(
        self, k: int, patch: Callable[[np.random.Generator], Float[NDArray[np.float32], "s s 3"]]
    ) -> Float[Tensor, "n c s s"]:
        """The same of patches that are made from these."""
        rng = np.random.default_rng([self._seed, 7, k])
        patches = np.stack([patch(rng) for _ in range(self._count)])
        return torch.from_numpy(patches[..., : self.channels]).permute(0, 3, 1, 2).contiguous()

    def patch(self, rng: np.random.Generator) -> Float[NDArray[np.float32], "s s 3"]:
        """One patch."""
        picture = self._pictures[int(rng.choice(len(self._pictures), p=self._odds))]
        patch: NDArray[np.float32] = (
            picture[random_window(picture.shape, self._size, rng)].astype(np.float32) / 127.5 - 1
        )
        blur = float(rng.uniform(-_SOFT, _SOFT))
        if blur > 0.2:
            patch = np.asarray(cv2.GaussianBlur(patch, (0, 0), blur), np.float32)
        gain, slope, lift = rng.uniform(-_LIGHT, _LIGHT, 3)
        across = np.linspace(-slope, slope, self._size, dtype=np.float32)
        field = across[:, None] if rng.random() < 0.5 else across[None, :]
        lit = patch * np.float32(1 + gain) + field[..., None] + np.float32(lift)
        return np.asarray(lit.clip(-1, 1), np.float32)
