"""The training loop: it learns, keeps the best, survives NaN, a kill and a wrong restart."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loomsight.errors import CheckpointError, StorageError, TrainingError, UsageError
from loomsight.progress import Progress
from loomsight.training.ema import MovingAverage
from loomsight.training.loop import Context, TrainSettings, fit, trained_weights
from loomsight.training.precision import autocast, resolve
from loomsight.training.prefetch import prefetched

CPU = torch.device("cpu")
Batch = dict[str, Tensor]


class Brightness:
    """Learn where a picture is bright, with dropout and batch norm in the way."""

    def __init__(self, lr: float = 3e-2, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.network = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Conv2d(8, 1, 1),
            )
        self.networks = {"segmenter": self.network}
        self.optimizers = {"segmenter": kind(self.network.parameters(), lr=lr)}  # type: ignore[call-arg]
        self.seen: list[float] = []

    def step(self, batch: Batch, context: Context) -> Mapping[str, float | Tensor]:
        self.seen.append(self.optimizers["segmenter"].param_groups[0]["lr"])
        noise = torch.rand((), generator=context.generator, device=context.device) * 0.01
        with context.autocast():
            logits = self.network(batch["image"] + noise)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch["mask"])
        context.update(loss)
        return {"loss": loss, "undefined": float("nan")}


def batches(number: int) -> Batch:
    image = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    return {"image": image, "mask": (image.mean(1, keepdim=True) > 0.5).float()}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**({"steps": 60, "amp": "float32", "warmup": 5} | changes))


def digest(weights: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(weights[key].numpy().tobytes() for key in sorted(weights))).hexdigest()


def accuracy(networks: Mapping[str, nn.Module]) -> float:
    batch = batches(10_000)
    found = networks["segmenter"](batch["image"]) > 0
    return float((found == batch["mask"].bool()).float().mean())


def test_it_learns_and_tells_how(tmp_path: Path) -> None:
    task = Brightness()
    history = fit(
        task,
        batches,
        settings(steps=150),
        run=tmp_path / "run",
        validate=accuracy,
        device="cpu",
        about={"data": "abc"},
    )
    assert (history.steps, history.stopped_because, history.skipped) == (150, "steps", 0)
    assert history.losses[-1]["loss"] < 0.6 * history.losses[0]["loss"]
    assert accuracy(task.networks) > 0.9
    assert not task.network.training
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.losses
    told = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert told["settings"]["steps"] == 150
    assert told["settings"]["seed"] == 0
    assert told["about"] == {"data": "abc"}
    assert told["versions"]["torch"] == torch.__version__


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_generator() -> None:
    digests = []
    for seed in (1, 1, 2):
        task = Brightness()
        torch.manual_seed(99)
        before = torch.get_rng_state()
        fit(task, batches, settings(steps=12, seed=seed), device="cpu")
        assert torch.equal(torch.get_rng_state(), before)
        digests.append(digest(trained_weights(task)))
    assert digests[0] == digests[1] != digests[2]


# ── schedule and end ───────────────────────────────────────────────────────────────────────────────
def test_the_learning_rate_rises_then_stays_or_falls_to_nothing() -> None:
    constant, cosine = Brightness(lr=0.01), Brightness(lr=0.01)
    for task, schedule in ((constant, "constant"), (cosine, "cosine")):
        fit(task, batches, settings(steps=40, warmup=3, schedule=schedule), device="cpu")
        rates = [*task.seen[1:]]  # each step sees the rate of the one before it
        assert rates[0] == pytest.approx(0.0025, rel=0.02)
        assert task.optimizers["segmenter"].param_groups[0]["lr"] == 0.01
    assert constant.seen[4:] == pytest.approx([0.01] * 36)
    assert cosine.seen[-1] < 0.0002
    assert cosine.seen[20] == pytest.approx(0.005, rel=0.1)


def test_a_time_budget_ends_the_training_and_its_schedule() -> None:
    task = Brightness(lr=0.01)
    started = time.monotonic()
    history = fit(task, batches, TrainSettings(seconds=0.6, amp="float32", warmup=0), device="cpu")
    assert history.stopped_because == "seconds"
    assert 0.6 <= history.seconds <= time.monotonic() - started < 3
    assert task.seen[-1] < 0.002


def test_a_training_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="give steps or seconds"):
        TrainSettings.parse({"schedule": "constant"})


def test_it_stops_when_no_better_and_keeps_the_best() -> None:
    scores = iter([0.5, 0.9, 0.8, 0.9, 0.7])
    kept: list[str] = []

    def validate(networks: Mapping[str, nn.Module]) -> float:
        assert not networks["segmenter"].training
        assert not torch.is_grad_enabled()
        kept.append(digest({f"segmenter.{k}": v for k, v in networks["segmenter"].state_dict().items()}))
        return next(scores)

    task = Brightness()
    history = fit(
        task, batches, settings(steps=500, validate_every=10, patience=2), validate=validate, device="cpu"
    )
    assert history.stopped_because == "patience"
    assert history.scores == [(10, 0.5), (20, 0.9), (30, 0.8), (40, 0.9)]
    assert history.best == (20, 0.9)
    assert digest(trained_weights(task)) == kept[1]


def test_progress_is_told_of_every_step() -> None:
    class Record(Progress):
        def __init__(self) -> None:
            self.steps: list[tuple[int, int, str]] = []

        def step(self, label: str, done: int, total: int, note: str = "") -> None:
            self.steps.append((done, total, note))

    record = Record()
    fit(Brightness(), batches, settings(steps=25), progress=record, device="cpu")
    assert [done for done, _, _ in record.steps] == list(range(1, 26))
    assert record.steps[-1][2].startswith("loss 0.")


def test_a_training_by_the_clock_tells_seconds_and_says_so() -> None:
    told: list[tuple[str, int, int, str]] = []

    class Record(Progress):
        def step(self, label: str, done: int, total: int, note: str = "") -> None:
            told.append((label, done, total, note))

    history = fit(Brightness(), batches, TrainSettings(seconds=0.6, amp="float32"), progress=Record())
    label, _, total, note = told[-1]
    assert (label, total) == ("training, seconds", 1)
    assert note.startswith(f"{history.steps:,} steps")


# ── moving average ─────────────────────────────────────────────────────────────────────────────────
def test_the_average_follows_quickly_at_first_and_slowly_later() -> None:
    network = nn.BatchNorm1d(2)
    average = MovingAverage({"n": network}, 0.5)
    with torch.no_grad():
        network.weight.fill_(2.0)
        network.running_mean.fill_(4.0)  # type: ignore[union-attr, operator]
        network.num_batches_tracked.fill_(9)  # type: ignore[union-attr, operator]
    average.update()  # decay 2/11
    state = average.networks["n"].state_dict()
    assert state["weight"][0].item() == pytest.approx(1 + 9 / 11)
    assert state["running_mean"][0].item() == pytest.approx(4 * 9 / 11)
    assert state["num_batches_tracked"].item() == 9
    for _ in range(100):
        average.update()
    assert state["weight"][0].item() == pytest.approx(2.0)


def test_the_average_of_a_short_training_is_trained() -> None:
    averaged, last = Brightness(), Brightness()
    fit(averaged, batches, settings(steps=80, schedule="constant"), device="cpu")
    fit(last, batches, settings(steps=80, schedule="constant", ema=0), device="cpu")
    assert digest(trained_weights(averaged)) != digest(trained_weights(last))
    assert accuracy(averaged.networks) > 0.8


# ── NaN ────────────────────────────────────────────────────────────────────────────────────────────
def spoilt(*numbers: int) -> Callable[[int], Batch]:
    def make(number: int) -> Batch:
        batch = batches(number)
        if number in numbers:
            batch["image"][0, 0, 0, 0] = torch.nan
        return batch

    return make


def test_a_nan_is_skipped_and_leaves_no_trace() -> None:
    task = Brightness()
    history = fit(task, spoilt(3, 20, 21), settings(steps=60), device="cpu")
    assert (history.skipped, history.steps) == (3, 60)
    assert all(bool(value.isfinite().all()) for value in trained_weights(task).values())
    assert accuracy(task.networks) > 0.7


def test_nothing_but_nan_ends_in_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        fit(Brightness(), spoilt(*range(5, 99)), settings(max_skipped=4), run=tmp_path, device="cpu")
    assert "4 steps in a row, up to step 9" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_score_that_is_no_number_is_told() -> None:
    with pytest.raises(TrainingError, match="score is not a number"):
        fit(Brightness(), batches, settings(steps=2), validate=lambda _: float("nan"), device="cpu")


# ── two networks ───────────────────────────────────────────────────────────────────────────────────
class Gan:
    """Two networks that take turns: the loop must keep their gradients apart."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.generator, self.discriminator = nn.Linear(4, 2), nn.Linear(2, 1)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.Adam(self.generator.parameters(), lr=1e-2, betas=(0.5, 0.9)),
            "discriminator": torch.optim.SGD(self.discriminator.parameters(), lr=1e-2, momentum=0.9),
        }

    def step(self, batch: Tensor, context: Context) -> Mapping[str, float | Tensor]:
        fake = self.generator(torch.randn(len(batch), 4, generator=context.generator))
        real, false = self.discriminator(batch), self.discriminator(fake.detach())
        judge = F.softplus(-real).mean() + F.softplus(false).mean()
        before = self.generator.weight.detach().clone()
        context.update(judge, "discriminator")
        assert torch.equal(self.generator.weight, before)
        make = F.softplus(-self.discriminator(fake)).mean()
        kept = self.discriminator.weight.detach().clone()
        context.update(make, "generator")
        assert torch.equal(self.discriminator.weight, kept)
        return {"judge": judge, "make": make}


def points(number: int) -> Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(number)) + 3


def test_two_networks_take_turns_and_resume(tmp_path: Path) -> None:
    through, parted = Gan(), Gan()
    once = fit(through, points, settings(), device="cpu")
    assert {"judge", "make"} <= once.losses[-1].keys()

    def broken(number: int) -> Tensor:
        if number == 31:
            raise OSError("the camera's disk is gone")
        return points(number)

    with pytest.raises(OSError, match="disk is gone"):
        fit(parted, broken, settings(checkpoint_seconds=0), run=tmp_path, device="cpu")
    again = Gan()
    resumed = fit(again, points, settings(checkpoint_seconds=0), run=tmp_path, device="cpu")
    assert digest(trained_weights(again)) == digest(trained_weights(through))
    assert [row["judge"] for row in resumed.losses] == [row["judge"] for row in once.losses]


# ── killed and resumed ─────────────────────────────────────────────────────────────────────────────
KILLED = {"steps": 120, "checkpoint_seconds": 0, "validate_every": 35, "log_every": 7}


def train_in_process(run: Path) -> None:
    torch.set_num_threads(1)
    fit(Brightness(), batches, settings(**KILLED), run=run, validate=accuracy, device="cpu")


def state_of(run: Path) -> dict[str, Any]:
    """What the run's checkpoint holds beside tensors; step 0 before there is one."""
    path = run / "checkpoint" / "state.json"
    return json.loads(path.read_text())["state"] if path.exists() else {"step": 0}


def tensors_of(run: Path) -> str:
    """The hash over networks, average, best weights, the optimiser's moments and generators."""
    (tensors,) = (run / "checkpoint").glob("tensors-*")
    return hashlib.sha256(tensors.read_bytes()).hexdigest()


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["loomsight.training.loop", "torch._dynamo"])  # slow imports, once
    through, killed = tmp_path / "through", tmp_path / "killed"

    def start(run: Path) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=train_in_process, args=(run,))
        process.start()
        return process

    whole = start(through)
    chance, steps = random.Random(), []  # noqa: S311 - other moments in every run of the test
    for _ in range(6):
        process, target = start(killed), state_of(killed)["step"] + chance.randint(1, 12)
        while process.is_alive() and state_of(killed)["step"] < target:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))  # somewhere in a step, or in the writing of a checkpoint
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        steps.append(state_of(killed)["step"])
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] < KILLED["steps"]

    for process in (whole, start(killed)):
        process.join(60)
        assert process.exitcode == 0
    assert tensors_of(killed) == tensors_of(through), f"killed at {steps}"
    resumed, expected = state_of(killed), state_of(through)
    assert resumed["step"] == KILLED["steps"]
    assert resumed["history"]["scores"] == expected["history"]["scores"]
    losses = [[row["step"], row["loss"]] for row in resumed["history"]["losses"]]
    assert losses == [[row["step"], row["loss"]] for row in expected["history"]["losses"]]
    lines = (killed / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [step for step, _ in losses]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_finished_run_is_only_loaded(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    first, again = Brightness(kind=kind), Brightness(kind=kind)
    history = fit(first, batches, settings(steps=9), run=tmp_path, validate=accuracy, device="cpu")

    def never(number: int) -> Batch:
        raise AssertionError(f"batch {number} was asked for")

    assert fit(again, never, settings(steps=9), run=tmp_path, validate=accuracy, device="cpu") == history
    assert digest(trained_weights(again)) == digest(trained_weights(first))


@pytest.mark.parametrize(
    ("changes", "lr", "about", "says"),
    [
        ({"seed": 5}, 0.03, "a", "settings.seed was 0 in the checkpoint and is 5 now"),
        ({"steps": 12}, 0.03, "a", "settings.steps was 9 in the checkpoint and is 12 now"),
        ({}, 0.5, "a", "optimizers.segmenter.groups.0.lr was 0.03 in the checkpoint and is 0.5 now"),
        ({}, 0.03, "b", "about.data was a in the checkpoint and is b now"),
    ],
)
def test_another_configuration_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], lr: float, about: str, says: str
) -> None:
    fit(
        Brightness(),
        batches,
        settings(steps=9),
        run=tmp_path,
        device="cpu",
        about={"data": "a"},
    )
    with pytest.raises(CheckpointError, match=says):
        fit(
            Brightness(lr),
            batches,
            settings(**({"steps": 9} | changes)),
            run=tmp_path,
            device="cpu",
            about={"data": about},
        )


def test_another_network_is_refused(tmp_path: Path) -> None:
    fit(Brightness(), batches, settings(steps=3), run=tmp_path, device="cpu")
    other = Brightness()
    other.network[4] = nn.Conv2d(8, 2, 1)
    other.optimizers = {"segmenter": torch.optim.AdamW(other.network.parameters(), lr=3e-2)}
    with pytest.raises(CheckpointError, match=r"segmenter: the checkpoint 4\.bias is 1, not 2"):
        fit(other, batches, settings(steps=3), run=tmp_path, device="cpu")


def test_a_resumed_time_budget_goes_on_with_the_time_used(tmp_path: Path) -> None:
    budget = TrainSettings(seconds=0.8, amp="float32", checkpoint_seconds=0)

    def until_half(number: int) -> Batch:
        if time.monotonic() - started > 0.5:
            raise InterruptedError
        return batches(number)

    started = time.monotonic()
    with pytest.raises(InterruptedError):
        fit(Brightness(), until_half, budget, run=tmp_path, device="cpu")
    resumed = time.monotonic()
    assert fit(Brightness(), batches, budget, run=tmp_path, device="cpu").seconds >= 0.8
    assert time.monotonic() - resumed < 0.7


def test_a_run_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="cannot write"):
        fit(Brightness(), batches, settings(), run=tmp_path / "run", device="cpu")


# ── batches and precision ──────────────────────────────────────────────────────────────────────────
def test_batches_come_in_order_while_made_in_any() -> None:
    def uneven(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    with prefetched(uneven, start=4, stop=40, workers=3, device=CPU, channels_last=False) as upcoming:
        assert list(upcoming) == list(range(4, 40))


def test_batches_are_made_ahead_but_not_far_and_threads_end() -> None:
    made: list[int] = []

    def record(number: int) -> int:
        made.append(number)
        return number

    before = threading.active_count()
    with prefetched(record, start=0, stop=None, workers=2, device=CPU, channels_last=False) as upcoming:
        next(upcoming)
        time.sleep(0.05)
        assert sorted(made) == [0, 1, 2, 3]
    assert threading.active_count() == before


def test_tensors_in_any_container_are_laid_out_for_convolutions() -> None:
    def nest(number: int) -> tuple[list[Batch], str]:
        return [{"image": torch.zeros(2, 3, 4, 4)}], "cloth"

    with prefetched(nest, start=0, stop=1, workers=1, device=CPU, channels_last=True) as upcoming:
        images, name = next(upcoming)
    assert images[0]["image"].is_contiguous(memory_format=torch.channels_last)
    assert name == "cloth"


def test_bf16_computes_in_bfloat16_and_learns() -> None:
    assert resolve("auto", CPU) in ("bf16", "float32")
    with autocast("bf16", CPU):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16
    task = Brightness()
    fit(task, batches, settings(steps=80, amp="bf16"), device="cpu")
    assert accuracy(task.networks) > 0.8
    assert task.network[0].weight.dtype == torch.float32
