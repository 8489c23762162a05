"""One training loop for every network here; it knows nothing about the network.

A network comes as a :class:`Task`: networks, optimisers, and what one step does with one batch. The loop
adds what all trainings share: batches made ahead, mixed precision, clipping, the learning rate's
schedule, the moving average of the weights, a guard against NaN, validation, early stop, and checkpoints.

    class Segmentation:
        def __init__(self, network):
            self.networks = {"segmenter": network}
            self.optimizers = {"segmenter": torch.optim.AdamW(network.parameters(), lr=1e-3)}

        def step(self, batch, context):
            with context.autocast():
                loss = loss_of(self.networks["segmenter"](batch["image"]), batch["mask"])
            context.update(loss)
            return {"loss": loss}

    history = fit(Segmentation(network), batches, TrainSettings(steps=800), run=Path("runs/denim"))
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loomsight import __version__
from loomsight.errors import CheckpointError, TrainingError
from loomsight.files import storage_errors, write_json, write_text
from loomsight.progress import Progress
from loomsight.training import checkpoint, precision
from loomsight.training.ema import MovingAverage
from loomsight.training.prefetch import prefetched
from loomsight.training.task import Context, History, Task, TrainSettings

__all__ = ["Context", "History", "Task", "TrainSettings", "Validate", "fit", "trained_weights"]

BatchT = TypeVar("BatchT")
Validate = Callable[[Mapping[str, nn.Module]], float]


def fit(
    task: Task[BatchT],
    batches: Callable[[int], BatchT],
    settings: TrainSettings,
    *,
    run: Path | None = None,
    validate: Validate | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
    about: Mapping[str, Any] | None = None,
) -> History:
    """Train ``task``; afterwards its networks hold the result, in evaluation mode.

    The result is the weights' moving average: the one with the best score if there is a validation, else
    the last. A ``run`` folder that holds a checkpoint is resumed, and one that is finished is only
    loaded. On a CPU the same settings, batches and thread count give the same bits, whether or not the
    training was killed and resumed in between. Not so on a GPU, nor with a time budget (``seconds``),
    whose schedule follows the clock; a resumed run continues with the time that it had used.

    Args:
        task: networks, optimisers and step. It may switch its networks' parts to evaluation mode in
            ``step``; the loop calls ``train()`` on them before the first step only.
        batches: makes batch k from k alone, with random numbers of its own seeded by k: it is called from
            several threads. Tensors in dicts, lists and tuples are moved to the device.
        settings: see :class:`TrainSettings`.
        run: folder for settings.json, log.jsonl and checkpoint/; None keeps nothing on disk.
        validate: score of the averaged networks, higher is better; called every ``validate_every`` steps
            and at the end, without gradients.
        progress: told of every step.
        device: default: the GPU if there is one.
        about: what else makes this training what it is (data hash, arm), as JSON values; written to
            settings.json, and a checkpoint with another is refused.

    Raises:
        TrainingError: ``max_skipped`` steps in a row had a non-finite loss or gradient.
        CheckpointError: the run's checkpoint is damaged, or of another configuration.
        StorageError: the run folder cannot be written; the last checkpoint is intact.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    progress = progress or Progress()
    with precision.reproducible(chosen, settings.seed):
        training = _Training(
            task, settings, device=chosen, run=run, validate=validate, about=dict(about or {})
        )
        if training.resume():
            progress.say(f"resumed at step {training.history.steps}: {run}")
        training.write_settings()
        try:
            with prefetched(
                batches,
                start=training.history.steps,
                stop=settings.steps,
                workers=settings.workers,
                device=chosen,
                channels_last=settings.channels_last,
            ) as upcoming:
                while not training.done():
                    training.step(next(upcoming))
                    training.validate_if_due()
                    training.checkpoint_if_due()
                    training.tell(progress)
        finally:
            training.context.restore_lr()
        training.hand_over()
    return training.history


def trained_weights(task: Task[Any]) -> dict[str, Tensor]:
    """A copy of all weights of ``task`` on the CPU, keyed "network.tensor", for a hash or a file."""
    return {
        f"{name}.{key}": value.detach().to("cpu", copy=True)
        for name, network in task.networks.items()
        for key, value in network.state_dict().items()
    }


class _Training:
    """The state of one call of :func:`fit`; its methods are the loop's stages, in their order."""

    def __init__(
        self,
        task: Task[Any],
        settings: TrainSettings,
        *,
        device: torch.device,
        run: Path | None,
        validate: Validate | None,
        about: dict[str, Any],
    ) -> None:
        self.task, self.settings, self.device, self.run = task, settings, device, run
        self.history = History()
        for network in task.networks.values():
            network.to(device).train()
            if settings.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.context = Context(task, settings, device)
        self.average = MovingAverage(task.networks, settings.ema)
        self.best: dict[str, dict[str, Tensor]] = {}
        self.skipped_in_row = 0
        self._validate = validate
        self._pending: list[dict[str, float | Tensor]] = []
        self._configuration = _plain_json(
            {
                "settings": settings.model_dump(exclude={"checkpoint_seconds", "log_every", "workers"}),
                "about": about,
                "optimizers": {name: _hyperparameters(o) for name, o in task.optimizers.items()},
                "validated": validate is not None,
            }
        )
        self._started = self._saved = time.monotonic()

    def done(self) -> bool:
        """Whether the training has come to its end; sets the clock for the next step."""
        history, settings = self.history, self.settings
        if history.stopped_because is None:
            of_steps = history.steps / settings.steps if settings.steps else 0.0
            of_time = self._seconds() / settings.seconds if settings.seconds else 0.0
            self.context.step, self.context.progress = history.steps, min(1.0, max(of_steps, of_time))
            if max(of_steps, of_time) >= 1:
                self._score()
                self._finish("steps" if of_steps >= 1 else "seconds")
        return history.stopped_because is not None

    def step(self, batch: Any) -> None:
        """One step of the task, then of the average; a step with a NaN leaves no trace but a count."""
        self.context.skipped = False
        losses = self.task.step(batch, self.context)
        self.history.steps += 1
        if not self.context.skipped:
            self.skipped_in_row = 0
            self.average.update()
            self._pending.append({k: v.detach() if isinstance(v, Tensor) else v for k, v in losses.items()})
        else:
            self.history.skipped += 1
            self.skipped_in_row += 1
            self._mend_buffers()
        if self.skipped_in_row >= self.settings.max_skipped:
            raise TrainingError(
                "the training diverged",
                where=self.run,
                why=f"{self.skipped_in_row} steps in a row, up to step {self.history.steps}, had a loss or "
                "gradient that is not finite",
                do="lower the learning rate, or train with amp float32",
            )
        if self.history.steps % self.settings.log_every == 0:
            self._log()

    def validate_if_due(self) -> None:
        """Score the average every so many steps, and stop when it has not improved for long enough."""
        if self.history.steps % self.settings.validate_every:
            return
        self._score()
        patience, scores = self.settings.patience, self.history.scores
        if patience and self.history.best:
            since_best = sum(step > self.history.best[0] for step, _ in scores)
            if since_best >= patience:
                self._finish("patience")

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if time.monotonic() - self._saved >= self.settings.checkpoint_seconds:
            self._checkpoint()

    def tell(self, progress: Progress) -> None:
        """Tell how far the training is."""
        last = self.history.losses[-1] if self.history.losses else {}
        note = "  ".join(f"{k} {v:.4g}" for k, v in last.items() if k not in ("step", "seconds", "lr"))
        if self.settings.steps:
            progress.step("training", self.history.steps, self.settings.steps, note)
        elif self.settings.seconds:
            total = math.ceil(self.settings.seconds)
            note = f"{self.history.steps:,} steps  {note}"
            progress.step("training, seconds", min(total, int(self._seconds())), total, note)

    def hand_over(self) -> None:
        """Leave the result in the task's networks."""
        for name, network in self.task.networks.items():
            result = self.best.get(name) or self.average.networks[name].state_dict()
            network.load_state_dict(result)
            network.eval()

    def write_settings(self) -> None:
        """settings.json: the resolved configuration and the versions; log.jsonl up to this step."""
        if self.run is None:
            return
        import numpy as np

        value = {
            **self._configuration,
            "settings": self.settings.model_dump(mode="json"),
            "resolved": {
                "device": str(self.device),
                "amp": precision.resolve(self.settings.amp, self.device),
                "threads": torch.get_num_threads(),
                "parameters": {
                    n: sum(p.numel() for p in m.parameters()) for n, m in self.task.networks.items()
                },
            },
            "versions": {
                "loomsight": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }
        write_json(self.run / "settings.json", value)
        write_text(self.run / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.history.losses))

    def resume(self) -> bool:
        """Take up the run's checkpoint, if there is one."""
        if self.run is None or not (self.run / "checkpoint" / "state.json").exists():
            return False
        folder = self.run / "checkpoint"
        tensors, state = checkpoint.load_checkpoint(folder)
        differs = checkpoint.first_difference(state.get("configuration"), self._configuration)
        if differs:
            raise CheckpointError(
                "cannot resume", where=folder, why=differs, do="train into another folder, or with the same"
            )
        groups = checkpoint.nested(tensors)
        for name, network in self.task.networks.items():
            checkpoint.restore_network(network, groups["network"].get(name, {}), name)
            checkpoint.restore_network(self.average.networks[name], groups["average"].get(name, {}), name)
        for name, optimizer in self.task.optimizers.items():
            checkpoint.restore_optimizer(optimizer, groups.get("optimizer", {}).get(name, {}))
        self.best = groups.get("best", {})
        precision.restore_random(groups["random"], self.device, self.context.generator)
        if state["scaler"]:
            self.context.scaler.load_state_dict(state["scaler"])
        self.average.updates = state["average_updates"]
        self.skipped_in_row = state["skipped_in_row"]
        self._pending = state["pending"]
        history = state["history"]
        history["scores"] = [tuple(pair) for pair in history["scores"]]
        history["best"] = history["best"] and tuple(history["best"])
        self.history = History(**history)
        self._started = time.monotonic() - self.history.seconds
        return True

    def _finish(self, because: Literal["steps", "seconds", "patience"]) -> None:
        self.history.stopped_because, self.history.seconds = because, self._seconds()
        self._log()
        self._checkpoint()

    def _checkpoint(self) -> None:
        if self.run is None:
            return
        self.history.seconds = self._seconds()
        averages = self.average.networks
        tensors = {
            "network": {name: network.state_dict() for name, network in self.task.networks.items()},
            "average": {name: network.state_dict() for name, network in averages.items()},
            "best": self.best,
            "optimizer": {n: checkpoint.optimizer_tensors(o) for n, o in self.task.optimizers.items()},
            "random": precision.random_states(self.device, self.context.generator),
        }
        state = {
            "step": self.history.steps,
            "configuration": self._configuration,
            "history": asdict(self.history),
            "average_updates": self.average.updates,
            "skipped_in_row": self.skipped_in_row,
            "pending": [_finite(losses) for losses in self._pending],
            "scaler": self.context.scaler.state_dict(),
        }
        checkpoint.save_checkpoint(self.run / "checkpoint", checkpoint.flat(tensors), state)
        self._saved = time.monotonic()

    def _score(self) -> None:
        history = self.history
        if self._validate is None or (history.scores and history.scores[-1][0] == history.steps):
            return
        with torch.no_grad():
            score = float(self._validate(self.average.networks))
        if not math.isfinite(score):
            raise TrainingError(
                "the validation score is not a number", where=self.run, why=f"{score} at step {history.steps}"
            )
        history.scores.append((history.steps, score))
        if history.best is None or score > history.best[1]:
            history.best = (history.steps, score)
            self.best = {
                name: {key: value.clone() for key, value in network.state_dict().items()}
                for name, network in self.average.networks.items()
            }

    def _log(self) -> None:
        if not self._pending:
            return
        self.history.seconds = self._seconds()
        steps = [_finite(losses) for losses in self._pending]
        row = {"step": float(self.history.steps), "seconds": round(self.history.seconds, 3)}
        row["lr"] = self.context.lr_factor()
        for name in dict.fromkeys(name for losses in steps for name in losses):
            values = [losses[name] for losses in steps if name in losses]
            row[name] = sum(values) / len(values)
        self._pending = []
        self.history.losses.append(row)
        if self.run is not None:
            path = self.run / "log.jsonl"
            with storage_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _mend_buffers(self) -> None:
        """A NaN in the forward pass stays in batch norm's running statistics: take the average's."""
        for name, network in self.task.networks.items():
            kept = dict(self.average.networks[name].named_buffers())
            for key, buffer in network.named_buffers():
                if buffer.is_floating_point() and not bool(buffer.isfinite().all()):
                    buffer.copy_(kept[key])

    def _seconds(self) -> float:
        return time.monotonic() - self._started


def _finite(losses: Mapping[str, float | Tensor]) -> dict[str, float]:
    """On the host, and without what no log can hold: a metric may be undefined in a step."""
    values = {name: float(value) for name, value in losses.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    groups = [
        {k: v for k, v in group.items() if k != "params"} | {"parameters": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return {"kind": type(optimizer).__name__, "groups": groups}


def _plain_json(value: Any) -> Any:
    """``value`` as JSON gives it back, so that what was read compares equal to what is meant."""
    return json.loads(json.dumps(value, default=float))
