"""A trial of the trained network on fresh made defects: what it was taught, does it find it?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loomsight.detection.fusion import fuse
from loomsight.evaluation.confusion import pair_types
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.evaluation.regions import RegionCounts, count_regions
from loomsight.fabric.instances import boxes_of
from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import UNKNOWN, Mask, Region, ScoreMap, TrainingTile
from loomsight.learn.detector import LearnedDetector
from loomsight.runtime.engine import TorchDetector, TorchEngine, UnionEngine
from loomsight.synthesis.recipe import Recipe, TileMaker

TRIED = 48  # tiles


@dataclass(frozen=True, slots=True)
class Trial:
    """A tile with a made defect, what the network makes of it, and whether it was found."""

    tile: TrainingTile
    score: ScoreMap
    counts: RegionCounts
    pairs: tuple[tuple[str, str], ...] = ()
    """Of each defect whose type is known, what it is and what it was called."""

    @property
    def peak(self) -> float:
        """The highest score on the defect."""
        return float(self.score[marked(self.tile)].max())

    @property
    def complete(self) -> bool:
        """Whether every defect of the tile was found."""
        return self.counts.found == self.counts.defects


def try_made(
    engine: TorchEngine | UnionEngine,
    maker: TileMaker,
    recipe: Recipe,
    point: OperatingPoint,
    *,
    detector: LearnedDetector | None = None,
    seed: int,
) -> list[Trial]:
    """Run an engine, and the detector beside it, over :data:`TRIED` tiles that their training never saw."""
    tried = []
    boxing = None if detector is None else TorchDetector(detector.network, detector.card.tile)
    for tile in made_tiles(maker, recipe, np.random.default_rng([seed, 3]), TRIED):
        score = engine.score(tile.image)
        counts = count_regions(score, marked(tile), point.threshold, point.grouping)
        regions = find_regions(score, point.threshold, point.grouping)
        if detector is not None and boxing is not None:
            regions = fuse(score, boxing.detect(tile.image), detector.card.fusion)
        tried.append(Trial(tile, score, counts, _pairs(tile, engine.name(tile.image, regions))))
    return tried


def _pairs(tile: TrainingTile, named: Sequence[Region]) -> tuple[tuple[str, str], ...]:
    if tile.instances is None:
        return ()
    boxes, which = boxes_of(tile.instances)
    pairs = pair_types(named, boxes, [tile.types[k - 1] for k in which])
    return tuple(pair for pair in pairs if pair[0] != UNKNOWN)


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
    """Where a tile is defective; a defect that is only boxed fills its box."""
    return np.asarray((tile.target > 0.5) | (tile.weight == 0), np.bool_)


def _first(tiles: Iterable[TrainingTile], count: int) -> list[TrainingTile]:
    return [tile for _, tile in zip(range(count), tiles, strict=False)]
