"""Engines: a picture in, its score map out, tile by tile at native resolution."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray

from loomsight.detection.deeplab import Segmenter
from loomsight.fabric.flat_field import FlatField
from loomsight.fabric.images import to_rgb
from loomsight.fabric.tiles import score_tiles
from loomsight.fabric.types import Picture, ScoreMap

BORDER = 32  # pixels of context where a tile has a neighbour
OVERLAP = 16
LARGEST = (512, 2048)  # pixels of a tile; a smaller picture is one tile


class Engine(Protocol):
    """What inspects: any runtime behind one call."""

    def score(self, image: Picture) -> ScoreMap:
        """Score a picture of any size.

        Args:
            image: uint8, HW or HWC RGB.

        Returns:
            float32 HW in [0, 1].
        """


class TorchEngine:
    """A segmenter run by torch, on the GPU where there is one; ``camera`` is corrected before it looks."""

    def __init__(self, network: Segmenter, camera: FlatField | None = None) -> None:
        self._camera = camera
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device).eval()
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def score(self, image: Picture) -> ScoreMap:
        """Score a picture: see :class:`Engine`."""
        if self._camera is not None:
            image = self._camera.correct(image)
        # No smaller than a tile with borders on both sides needs; a side that is shorter is mirrored.
        height, width = (max(side, 2 * BORDER + OVERLAP + 1) for side in image.shape[:2])
        tile = (min(height, LARGEST[0]), min(width, LARGEST[1]))
        return score_tiles(to_rgb(image), self._forward, tile=tile, overlap=OVERLAP, border=BORDER, batch=1)

    @torch.inference_mode()
    def _forward(self, tiles: UInt8[NDArray[np.uint8], "b h w 3"]) -> NDArray[np.float32]:
        x = torch.from_numpy(tiles).to(self._device).permute(0, 3, 1, 2).float() / 255
        scores: NDArray[np.float32] = self._network(x)[:, 0].float().sigmoid().cpu().numpy()
        return scores
