"""Training of the student: the frozen network teaches the teacher, the teacher the other two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.anomaly.cells import for_use
from loomsight.anomaly.features import Features
from loomsight.anomaly.student import Student
from loomsight.fabric.types import Picture
from loomsight.learn.goodpatches import GoodPatches
from loomsight.progress import Progress
from loomsight.synthesis.perlin import perlin_defect
from loomsight.training.loop import TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

PATCH, BATCH = 128, 8
_TEACHING = 0.5  # of the steps or seconds, that the teacher gets; the other two have the rest
_LOOKED_AT = 2  # batches that the frozen network's deviations are read from
_LR = 2e-3
_WHITENED = 16  # batches that the differences on good cloth are read from
_LEAST_VARIANCE = 1e-5  # of the largest


class TeacherTask:
    """The teacher learns to answer like the frozen network, each channel in its own deviations."""

    def __init__(self, made: Student, frozen: Features, patches: Float[Tensor, "n c s s"]) -> None:
        self._made, self._frozen = made, frozen
        self._middle, self._scale = torch.zeros(()), torch.ones(())
        answers = self._target(patches)
        self._middle = answers.mean((0, 2, 3))[:, None, None]
        self._scale = answers.std((0, 2, 3))[:, None, None] + 1e-3
        self.networks: Mapping[str, nn.Module] = {"teacher": made.teacher}
        self.optimizers = {"teacher": torch.optim.AdamW(made.teacher.parameters(), _LR)}

    def _target(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n a s4 s4"]:
        fine, coarse, _ = self._frozen.batch((x.expand(-1, 3, -1, -1) + 1) / 2)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        return (torch.cat((fine, coarse), 1) - self._middle) / self._scale

    def step(self, batch: Float[Tensor, "n c s s"], context: Context) -> dict[str, Tensor]:
        loss = (self._made.teacher(batch) - self._target(batch)).square().mean()
        context.update(loss)
        return {"teacher": loss}


class StudentTask:
    """Student and autoencoder learn from the teacher, on good cloth; the teacher is fixed."""

    def __init__(self, made: Student) -> None:
        self._made = made
        made.teacher.requires_grad_(False)
        self.networks: Mapping[str, nn.Module] = {"student": made.student, "autoencoder": made.autoencoder}
        self.optimizers = {
            name: torch.optim.AdamW(network.parameters(), _LR) for name, network in self.networks.items()
        }

    def step(self, batch: Float[Tensor, "n c s s"], context: Context) -> dict[str, Tensor]:
        answers = self._made.teacher(batch)
        structure = self._made.autoencoder(batch)
        said, same = self._made.student(batch).chunk(2, 1)
        losses = {
            "student": (said - answers).square().mean() + (same - structure.detach()).square().mean(),
            "autoencoder": (structure - answers).square().mean(),
        }
        for name, loss in losses.items():
            context.update(loss, name)
        return losses


def _disturbed(good: GoodPatches, rng: np.random.Generator) -> Float[NDArray[np.float32], "s s 3"]:
    """A good patch, or one through which the same cloth shows turned, enlarged, darker or brighter."""
    patch = good.patch(rng)
    if rng.random() < 0.5:
        return patch
    other = good.patch(rng)
    for _ in range(int(rng.integers(1, 3))):
        other = _changed(other, rng)
        patch = _through(patch, other, rng)
    return patch


def _through(patch: Any, other: Any, rng: np.random.Generator) -> Any:
    """``other`` through blobs of the patch."""
    cloth, foreign = (np.rint((one.clip(-1, 1) + 1) * 127.5).astype(np.uint8) for one in (patch, other))
    shown, _ = perlin_defect(cloth, foreign, rng)
    return shown.astype(np.float32) / 127.5 - 1


def _changed(other: Any, rng: np.random.Generator) -> Any:
    way = int(rng.integers(5))
    if way == 0:
        other = np.ascontiguousarray(np.rot90(other))
    elif way == 1:
        half = other.shape[0] // 2
        other = cv2.resize(np.ascontiguousarray(other[:half, :half]), other.shape[1::-1])
    elif way == 2:
        other = cv2.blur(other, (9, 9))
    elif way == 3:
        other = -other
    return other * np.float32(rng.uniform(0.3, 1.6)) + np.float32(rng.uniform(-0.7, 0.7))


def train_student(
    even: Sequence[Picture],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Student, int]:
    """Train teacher, student and autoencoder on evenly lit good pictures, for so many steps or seconds.

    Returns:
        the student, and how many steps of both halves were done.

    Raises:
        TrainingError: it diverged.
        WeightsError: the frozen network's weights are missing.
    """
    torch.manual_seed(seed)
    good = GoodPatches(even, PATCH, BATCH, seed=seed)
    made = Student(good.channels)
    disturbed: Callable[[int], Tensor] = lambda k: good.made(k, lambda rng: _disturbed(good, rng))  # noqa: E731
    first = torch.cat([good.batch(k) for k in range(_LOOKED_AT)]).to(made.device)
    teaching = fit(
        TeacherTask(made, Features(), first),
        disturbed,
        _settings(steps, seconds, _TEACHING, seed),
        progress=progress,
    )
    learning = fit(
        StudentTask(made), good.batch, _settings(steps, seconds, 1 - _TEACHING, seed), progress=progress
    )
    for_use(made.networks())
    _whiten(made, torch.cat([good.batch(k) for k in range(_WHITENED)]).to(made.device))
    return made, teaching.steps + learning.steps


@torch.no_grad()
def _whiten(made: Student, patches: Float[Tensor, "n c s s"]) -> None:
    """Turn and stretch the answers so that on good cloth differences are of unit variance and uncorrelated.

    A difference counts by how rare it is on good cloth, not by how large the frozen network's numbers are.
    Linear, so it is taken into the last layers and costs nothing.
    """
    said, same = made.student(patches).chunk(2, 1)
    pairs = (made.teacher(patches) - said, made.autoencoder(patches) - same)
    outs = (made.teacher.out, made.autoencoder.out)
    last, turned = made.student.out, []
    for difference, out, rows in zip(pairs, outs, last.weight.chunk(2), strict=True):
        flat = difference.movedim(1, 0).flatten(1).double()
        values, directions = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
        values = values.clamp(min=0) + _LEAST_VARIANCE * values[-1]
        turn = ((directions / values.sqrt()) @ directions.T).float()
        for weight in (out.weight, rows):
            weight.copy_((turn @ weight.flatten(1)).view_as(weight))
        _bias(out).copy_(turn @ _bias(out))
        turned.append(turn)
    for turn, bias in zip(turned, _bias(last).chunk(2), strict=True):
        bias.copy_(turn @ bias)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # noqa: S101 — the layers are made with one
    return layer.bias


def _settings(steps: int | None, seconds: float | None, share: float, seed: int) -> TrainSettings:
    return TrainSettings(
        steps=None if steps is None else max(1, round(steps * share)),
        seconds=None if seconds is None else seconds * share,
        ema=0.99,
        seed=seed,
    )
