"""What good cloth looks like, learned beside the segmenter; one threshold for the union of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from loomsight.anomaly import MethodName, Residual
from loomsight.anomaly.bars import MOST
from loomsight.anomaly.calibration import UnionPoint, calibrate_union
from loomsight.anomaly.memory import Memory, MemorySettings
from loomsight.anomaly.method import Method
from loomsight.anomaly.normality import Normality
from loomsight.anomaly.prediction import Prediction
from loomsight.card import NormalityCard
from loomsight.evaluation.operating_point import AlarmRate, OperatingPoint
from loomsight.fabric.regions import Grouping
from loomsight.fabric.types import Picture, ScoreMap
from loomsight.learn.cloth import Doubt, GoodCloth
from loomsight.progress import Progress

FEW_STEPS: Mapping[str, int] = {"student": 500, "fanogan": 1000, "ganomaly": 500}
"""Training steps that each was measured with (docs/benchmarks.md): with fewer it finds less."""
_CALLED = {"student": "the student", "fanogan": "f-AnoGAN", "ganomaly": "GANomaly"}
NO_BARS = (
    "the promise is so strict that bars, bands of cloth a shade off, are not reported: allow more false "
    "alarms, or give more good cloth"
)


@dataclass
class LearnedNormality:
    """A normality, how strange it finds the good cloth that was held back, and its place in the union."""

    normality: Normality
    strange: list[ScoreMap]
    calmed: list[NDArray[np.float32] | None]
    doubts: list[Doubt] = field(default_factory=list)
    union: UnionPoint | None = None
    sees_bars: bool = True  # whether the promise lets bars be reported, if any are looked for

    @classmethod
    def of(
        cls,
        normality: Normality,
        judge: Sequence[Picture],
        progress: Progress,
        doubts: Sequence[Doubt] = (),
    ) -> Self:
        """With a look at the cloth held back."""
        looks = [normality.look(image) for image in progress.track(judge, "strangeness", len(judge))]
        return cls(
            normality, [strange for strange, _ in looks], [calmed for _, calmed in looks], list(doubts)
        )

    @property
    def card(self) -> NormalityCard:
        """What a profile says of it; only after :meth:`unite`."""
        if self.union is None:
            raise RuntimeError("not united yet")
        return NormalityCard(methods=self.normality.methods, union=self.union)

    def unite(
        self,
        point: OperatingPoint,
        maps: Sequence[ScoreMap],
        rate: AlarmRate,
    ) -> tuple[OperatingPoint, list[ScoreMap]]:
        """Set the union with a segmenter.

        Args:
            point: the segmenter's own operating point; maps: its maps of the cloth held back.

        Returns:
            the union's operating point, and its maps.
        """
        self.union, united, together = calibrate_union(
            maps, self.strange, rate, Grouping(point.min_area, point.merge_gap), calmed=self.calmed
        )
        if "bars" in self.normality.methods:
            surest = np.full((1, 1), expit(MOST), np.float32)
            self.sees_bars = bool(self.union.unite(np.zeros_like(surest), surest) >= united.threshold)
        return united, together


def fitting(
    name: MethodName,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    budget_mb: float | None = None,
    residuals: Sequence[Residual] | None = None,
    progress: Progress | None = None,
    doubt: Callable[[Doubt], None] = lambda _: None,
) -> Callable[[Sequence[Picture]], Method]:
    """What learns a method from evenly lit good pictures.

    Args:
        steps, seconds: of training, whichever ends first; a memory looks at pictures for so many seconds, and
            a prediction needs neither.
        budget_mb: of what a memory takes while it learns, 512 if None.
        residuals: what a GAN compares, pixels and its own features if None.
        doubt: told of a network that had fewer than :data:`FEW_STEPS`.
    """
    if name == "memory":
        settings = MemorySettings() if budget_mb is None else MemorySettings(budget_mb=budget_mb)
        return partial(Memory.fit, settings=settings, seconds=seconds, seed=seed, progress=progress)
    if name == "prediction":
        return partial(Prediction.fit, seed=seed)
    from loomsight.learn.adversarial import train_fanogan, train_ganomaly  # torch's training code, if needed
    from loomsight.learn.distillation import train_student

    train: Mapping[str, Callable[..., tuple[Method, int]]] = {
        "fanogan": train_fanogan,
        "ganomaly": train_ganomaly,
        "student": train_student,
    }

    def learn(even: Sequence[Picture]) -> Method:
        given = {} if residuals is None or name == "student" else {"residuals": residuals}
        made, done = train[name](even, steps=steps, seconds=seconds, seed=seed, progress=progress, **given)
        if done < FEW_STEPS[name]:
            text = (
                f"only {done} training steps of {_CALLED[name]} were done, {FEW_STEPS[name]} make a sure one"
            )
            doubt(Doubt("short", f"{text}: give more --minutes"))
        return made

    return learn


def learn_normality(
    cloth: GoodCloth,
    methods: Sequence[MethodName],
    *,
    seconds: float,
    steps: int | None = None,
    seed: int = 0,
    budget_mb: float | None = None,
    residuals: Sequence[Residual] | None = None,
    progress: Progress | None = None,
) -> LearnedNormality:
    """Learn what good cloth looks like, in about so many seconds or steps, and look at what was held back.

    Args:
        budget_mb, residuals: see :func:`fitting`.
    """
    progress = progress or Progress()
    trained = [name for name in methods if name not in ("prediction", "bars")]  # these two take no time
    share = seconds / max(1, len(trained))
    doubts: list[Doubt] = []
    fits = [
        fitting(
            name,
            steps=steps,
            seconds=share,
            seed=seed,
            budget_mb=budget_mb,
            residuals=residuals,
            progress=progress,
            doubt=doubts.append,
        )
        for name in methods
        if name != "bars"
    ]
    normality = Normality.fit(cloth.learn, held=cloth.judge, methods=fits, bars="bars" in methods)
    return LearnedNormality.of(normality, cloth.judge, progress, doubts)
