"""What is trained, how, and what the loop lends each of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from loomsight.config import Config
from loomsight.training import precision
from loomsight.training.precision import Precision

BatchT_contra = TypeVar("BatchT_contra", contravariant=True)


class Task(Protocol[BatchT_contra]):
    """What is trained: one network and its optimiser, or several, as in a GAN."""

    @property
    def networks(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...

    def step(self, batch: BatchT_contra, context: Context) -> Mapping[str, float | Tensor]:
        """Compute the losses of ``batch``, call ``context.update`` for each, return scalars to log."""


class TrainSettings(Config):
    """How long, how fast and how carefully to train."""

    steps: PositiveInt | None = None  # stop after so many steps …
    seconds: PositiveFloat | None = None  # … or after so much time, whichever comes first
    schedule: Literal["constant", "cosine"] = "cosine"  # of the learning rate, over the steps or seconds
    warmup: NonNegativeInt = 20  # steps in which the learning rate rises to its full value
    clip_norm: PositiveFloat | None = 1.0  # of each optimiser's gradient
    ema: float = Field(0.999, ge=0, lt=1)  # decay of the weights' moving average; 0 takes the last weights
    amp: Precision = "auto"
    channels_last: bool = True  # convolutions are faster so, on CPU and GPU
    validate_every: PositiveInt = 200  # steps
    patience: PositiveInt | None = None  # validations in a row without a better score, then stop
    max_skipped: PositiveInt = 10  # steps in a row with a non-finite loss or gradient, then give up
    checkpoint_seconds: NonNegativeFloat = 60.0  # between checkpoints; 0 writes one after each step
    log_every: PositiveInt = 20  # steps
    workers: PositiveInt = 2  # threads that make batches
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.steps is None and self.seconds is None:
            raise ValueError("give steps or seconds, or the training never ends")
        return self


@dataclass
class History:
    """What happened in a training.

    Attributes:
        steps: steps done, skipped ones included.
        seconds: time used, over all resumptions.
        losses: for every ``log_every`` steps: step, seconds, lr, and the mean of each scalar of the task.
        scores: (step, score) of each validation.
        best: the (step, score) whose weights were kept, if there was a validation.
        skipped: steps left out because a loss or a gradient was not finite.
        stopped_because: ``"steps"``, ``"seconds"`` or ``"patience"``; None while training.
    """

    steps: int = 0
    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None
    skipped: int = 0
    stopped_because: Literal["steps", "seconds", "patience"] | None = None


class Context:
    """What the loop lends a task's step.

    Attributes:
        step: number of this step, from 0.
        progress: fraction of the training that is done, in [0, 1].
        device: where the networks and the batch are.
        generator: for a step's own randomness (noise, time steps); checkpointed.
    """

    def __init__(self, task: Task[Any], settings: TrainSettings, device: torch.device) -> None:
        self.step, self.progress, self.device = 0, 0.0, device
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.skipped = False  # whether an update of this step was
        self._settings = settings
        self._optimizers = dict(task.optimizers)
        self._precision = precision.resolve(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._precision == "fp16")
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self._optimizers.items()
        }
        self._base = {n: [float(g["lr"]) for g in o.param_groups] for n, o in self._optimizers.items()}

    def autocast(self) -> AbstractContextManager[object]:
        """The block for the forward pass and the loss: bfloat16 or float16 where that is faster."""
        return precision.autocast(self._precision, self.device)

    def lr_factor(self) -> float:
        """The schedule at this step: the factor on each optimiser's own learning rate."""
        rising = min(1.0, (self.step + 1) / (self._settings.warmup + 1))
        if self._settings.schedule == "constant":
            return rising
        return rising * 0.5 * (1 + math.cos(math.pi * self.progress))

    def update(self, loss: Tensor, optimizer: str | None = None) -> bool:
        """Move one optimiser's parameters down the gradient of ``loss``.

        Clears the gradients of these parameters first, so a generator's loss may pass through a
        discriminator without a trace in the discriminator's next update.

        Args:
            loss: a scalar.
            optimizer: its name among the task's optimisers; may be left out where there is one.

        Returns:
            Whether the parameters moved: False if the loss or the gradient was not finite.
        """
        if optimizer is None:
            (optimizer,) = self._optimizers
        chosen, parameters = self._optimizers[optimizer], self._parameters[optimizer]
        factor = self.lr_factor()
        for group, base in zip(chosen.param_groups, self._base[optimizer], strict=True):
            group["lr"] = base * factor
        chosen.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(chosen)
        norm = nn.utils.clip_grad_norm_(parameters, self._settings.clip_norm or math.inf)
        # The guard needs both numbers on the host: the one wait for the GPU in a step.
        loss_value, norm_value = torch.stack((loss.detach().float(), norm.float())).tolist()
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        if finite:
            self.scaler.step(chosen)
        elif not (self.scaler.is_enabled() and math.isfinite(loss_value) and self.scaler.get_scale() > 1):
            self.skipped = True  # a float16 overflow is no fault: the scaler answers it below
        self.scaler.update()
        return finite

    def restore_lr(self) -> None:
        """Give the optimisers their own learning rates back."""
        for name, optimizer in self._optimizers.items():
            for group, base in zip(optimizer.param_groups, self._base[name], strict=True):
                group["lr"] = base
