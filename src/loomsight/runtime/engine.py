"""Engines: a picture in, its score map or its boxes out, tile by tile at native resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray

from loomsight.anomaly.calibration import UnionPoint
from loomsight.anomaly.normality import Normality
from loomsight.detection.deeplab import Segmenter
from loomsight.detection.joining import TileBoxes, join_tiles
from loomsight.detection.rtdetr import Detector
from loomsight.fabric.flat_field import FlatField
from loomsight.fabric.images import to_rgb
from loomsight.fabric.tiles import Tile, cut, plan_tiles, score_tiles
from loomsight.fabric.types import UNKNOWN, Picture, Region, ScoreMap

BORDER = 32  # pixels of context where a tile has a neighbour
OVERLAP = 16
CERTAIN = 0.5
"""Share of the votes that a type needs; with less it is unknown."""
_NAMED = 512  # pixels of a region's surroundings that its type is read from, at most a side
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
        image = self.corrected(image)
        # No smaller than a tile with borders on both sides needs; a side that is shorter is mirrored.
        height, width = (max(side, 2 * BORDER + OVERLAP + 1) for side in image.shape[:2])
        tile = (min(height, LARGEST[0]), min(width, LARGEST[1]))
        return score_tiles(to_rgb(image), self._forward, tile=tile, overlap=OVERLAP, border=BORDER, batch=1)

    def corrected(self, image: Picture) -> Picture:
        """The picture without the camera's lines."""
        return image if self._camera is None else self._camera.correct(image)

    def name(self, image: Picture, regions: Sequence[Region], *, least: float = 0.0) -> list[Region]:
        """The regions with their types, as far as the network tells any apart and is sure of one.

        Args:
            image: the picture that was scored.
            regions: of its score map; one that has a type keeps it.
            least: a region whose own score is nowhere so high has no type.
        """
        if not self._network.types:
            return list(regions)
        rgb = to_rgb(self.corrected(image))
        return [
            replace(region, type=self._type_of(rgb, region, least)) if region.type == UNKNOWN else region
            for region in regions
        ]

    @torch.inference_mode()
    def _type_of(self, rgb: UInt8[NDArray[np.uint8], "h w 3"], region: Region, least: float) -> str:
        """The type with most weight on the region, weighed by its score; looked at in its surroundings."""
        x0, y0, x1, y1 = region.box
        middle = (y0 + y1) // 2, (x0 + x1) // 2
        sides = [min(high - low + 2 * BORDER, _NAMED) for low, high in ((y0, y1), (x0, x1))]
        spans = [
            (max(0, at - side // 2), min(room, at - side // 2 + side))
            for at, side, room in zip(middle, sides, rgb.shape[:2], strict=True)
        ]
        (top, bottom), (left, right) = spans
        part = np.ascontiguousarray(rgb[top:bottom, left:right])
        low = [max(0, 2 * BORDER - side) for side in part.shape[:2]]
        part = np.pad(part, ((0, low[0]), (0, low[1]), (0, 0)), "symmetric")
        x = torch.from_numpy(part[None]).to(self._device).permute(0, 3, 1, 2).float() / 255
        where, named = self._network.with_types(x)
        if named is None:
            return UNKNOWN
        sure = where.float().sigmoid()
        weight = torch.nn.functional.interpolate(sure, named.shape[-2:], mode="area")[0, 0]
        inside = torch.zeros_like(weight)
        a, b = max(0, y0 - top) // 2, max(0, x0 - left) // 2
        inside[a : (y1 - top + 1) // 2 + 1, b : (x1 - left + 1) // 2 + 1] = 1
        if float(sure[0, 0, max(0, y0 - top) : y1 - top, max(0, x0 - left) : x1 - left].max()) < least:
            return UNKNOWN
        votes = (named[0].float().softmax(0) * weight * inside).sum((1, 2)) / (weight * inside).sum().clamp(
            1e-6
        )
        best = int(votes.argmax())
        return self._network.types[best] if float(votes[best]) >= CERTAIN else UNKNOWN

    @torch.inference_mode()
    def _forward(self, tiles: UInt8[NDArray[np.uint8], "b h w 3"]) -> NDArray[np.float32]:
        x = torch.from_numpy(tiles).to(self._device).permute(0, 3, 1, 2).float() / 255
        scores: NDArray[np.float32] = self._network(x)[:, 0].float().sigmoid().cpu().numpy()
        return scores


class UnionEngine:
    """A segmenter for the defects it knows, and normality for all others: one map."""

    def __init__(self, known: TorchEngine, normality: Normality, point: UnionPoint) -> None:
        self.known, self._normality, self._point = known, normality, point

    def score(self, image: Picture) -> ScoreMap:
        """Score a picture: see :class:`Engine`."""
        strange, calmed = self._normality.look(self.known.corrected(image))
        return self._point.unite(self.known.score(image), strange, calmed)

    def name(self, image: Picture, regions: Sequence[Region]) -> list[Region]:
        """The regions with their types, as :meth:`TorchEngine.name`; what is only strange has none."""
        return self.known.name(image, regions, least=self._point.segmenter)


SHARED = 48
"""Pixels that neighbouring tiles of a detector share at least: what is smaller lies whole in one of them."""
FAINT = 0.02
"""A box with a lower score is not kept: a detector gives a hundred and more for each tile."""
_MOST = 50  # boxes of a tile, the surest


class TorchDetector:
    """A detector run by torch, on the GPU where there is one; ``camera`` is corrected before it looks."""

    def __init__(self, network: Detector, tile: int, camera: FlatField | None = None) -> None:
        self._camera, self._tile = camera, tile
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device).eval()

    def detect(self, image: Picture, *, batch: int = 4) -> list[Region]:
        """Find the defects of a picture of any size.

        Args:
            image: uint8, HW or HWC RGB.

        Returns:
            a region for each defect with a score above :data:`FAINT`, surest first.
        """
        if self._camera is not None:
            image = self._camera.correct(image)
        height, width = image.shape[:2]
        rgb = to_rgb(image)
        tiles = plan_tiles(height, width, tile=self._tile, overlap=SHARED)
        found: list[TileBoxes] = []
        for first in range(0, len(tiles), batch):
            some = tiles[first : first + batch]
            found += self._look(some, np.stack([cut(rgb, tile) for tile in some]), (height, width))
        return join_tiles(found, self._network.types)

    @torch.inference_mode()
    def _look(
        self, tiles: list[Tile], pixels: UInt8[NDArray[np.uint8], "b h w 3"], room: tuple[int, int]
    ) -> list[TileBoxes]:
        x = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255
        defect, types, boxes = self._network(x)
        scores, classes = defect.float().sigmoid(), types.argmax(-1)
        height, width = room
        looked = []
        for tile, own, score, kind in zip(
            tiles, boxes.float().cpu().numpy(), scores.cpu().numpy(), classes.cpu().numpy(), strict=True
        ):
            at = own * self._tile + np.array([tile.x0, tile.y0, tile.x0, tile.y0], np.float32)
            at = at.clip(0, np.array([width, height, width, height], np.float32))
            inside = (at[:, 2] > at[:, 0]) & (at[:, 3] > at[:, 1])
            keep = (score >= FAINT) & inside
            if keep.sum() > _MOST:
                keep &= score >= np.sort(score[keep])[-_MOST]
            looked.append(TileBoxes(tile, at[keep], score[keep], kind[keep]))
        return looked
