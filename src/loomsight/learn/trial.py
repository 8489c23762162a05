"""A trial of the trained network on fresh made defects: what it was taught, does it find it?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from loomsight.detection.deeplab import Segmenter
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.types import Mask, ScoreMap, TrainingTile
from loomsight.runtime.engine import TorchEngine
from loomsight.synthesis.recipe import Recipe, TileMaker

TRIED = 48  # tiles


@dataclass(frozen=True, slots=True)
class Trial:
    """A tile with a made defect, what the network makes of it, and whether it was found."""

    tile: TrainingTile
    score: ScoreMap
    counts: RegionCounts

    @property
    def peak(self) -> float:
        """The highest score on the defect."""
        return float(self.score[marked(self.tile)].max())

    @property
    def complete(self) -> bool:
        """Whether every defect of the tile was found."""
        return self.counts.found == self.counts.defects


def try_made(
    network: Segmenter, maker: TileMaker, recipe: Recipe, point: OperatingPoint, *, seed: int
) -> list[Trial]:
    """Run a network over :data:`TRIED` tiles that its training never saw."""
    engine, tried = TorchEngine(network), []
    for tile in made_tiles(maker, recipe, np.random.default_rng([seed, 3]), TRIED):
        score = engine.score(tile.image)
        counts = count_regions(
            score, marked(tile), point.threshold, min_area=point.min_area, merge_gap=point.merge_gap
        )
        tried.append(Trial(tile, score, counts))
    return tried


def made_tiles(maker: TileMaker, recipe: Recipe, rng: np.random.Generator, count: int) -> list[TrainingTile]:
    """Tiles with a defect: made ones, or where the recipe makes none, those of known fabrics."""
    if not recipe.source_only:
        # Arm by arm, so that each is seen; a defect too faint to have a mask shows nothing.
        made = (maker.synthetic(rng, recipe.arms[k % len(recipe.arms)]) for k in range(3 * count))
        return _first((tile for tile in made if marked(tile).any()), count)
    start = int(rng.integers(2**31))
    known = (tile for k in range(count) for tile in maker.batch(start + k))
    return _first((tile for tile in known if marked(tile).any()), count)


def marked(tile: TrainingTile) -> Mask:
    """Where a tile is defective."""
    return np.asarray(tile.target > 0.5, np.bool_)


def _first(tiles: Iterable[TrainingTile], count: int) -> list[TrainingTile]:
    return [tile for _, tile in zip(range(count), tiles, strict=False)]
