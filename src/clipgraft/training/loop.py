"""The one training loop. It knows no stage: an objective turns a batch into a loss, `fit` does the rest.

Order of a step: forward and backward of each micro-batch; finite check, clip, optimizer,
`objective.after_step()`, moving average; then, where due, log, checkpoint, stop on a signal.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn

from clipgraft.training.log import StepLog, epoch_means
from clipgraft.training.optimization import MovingAverage, learning_rate_factor, parameter_groups
from clipgraft.training.state import TrainingState, load_newest_state, save_state
from clipgraft.training.stopping import Interrupted, StopOnSignal

MAX_SKIPPED_IN_A_ROW = 10
"""A run whose loss stays non-finite this long does not come back (guess)."""

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class Batches(Protocol):
    """Batches of an epoch from a position on: a pure function of both, so a resumed run sees the same."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int) -> Iterable[Batch]:
        """Give the batches of an epoch (0-based) without its first `start`."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What a listener is told after every optimizer step."""

    step: int
    """Steps made, 1-based."""
    num_steps: int
    loss: float
    samples_per_second: float


@dataclass(frozen=True)
class FitResult:
    """What came out of a training run."""

    num_steps: int
    skipped_steps: int
    seconds: float
    """Of this process; a resumed run's earlier part is not in it."""
    epoch_mean_loss: list[float]


def fit(
    objective: nn.Module,
    batches: Batches,
    *,
    run_dir: Path,
    num_epochs: int,
    learning_rate: float,
    lr_schedule: str = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    gradient_accumulation_steps: int = 1,
    mixed_precision: str = "no",
    ema_decay: float = 0.0,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    device: str = "cpu",
    fingerprint: str = "",
    resume: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
) -> FitResult:
    """Train an objective's parameters with AdamW, logging and checkpointing on the way.

    Args:
        objective: `objective(batch) -> (loss, metrics)`: a float32 scalar and scalars to log; may have
            `after_step()`. Parameters with `requires_grad` are trained and saved, the rest is not touched.
        batches: Batches of each epoch.
        run_dir: Gets `log.jsonl`, a row a step, and `checkpoints/`.
        num_epochs: Passes over `batches`.
        learning_rate: Peak; `lr_schedule` ("constant", "linear", "cosine") and `warmup_steps` shape it.
        weight_decay: AdamW's, for matrices alone.
        max_grad_norm: Global norm to which gradients are clipped.
        gradient_accumulation_steps: Micro-batches averaged into a step; an epoch's last group may be smaller
            and is averaged over its own size.
        mixed_precision: "no", "fp16" or "bf16"; master weights stay float32.
        ema_decay: Where above 0, a moving average of the weights takes their place at the end.
        checkpoint_every: Steps between checkpoints; 0 = only at the end and on a signal.
        keep_checkpoints: Newest checkpoints kept.
        device: "cpu", "cuda" or "mps".
        fingerprint: Names data and settings; a checkpoint with another is refused on resume.
        resume: Go on from the newest whole checkpoint, if there is one.
        on_step: Called after every step.

    Raises:
        Interrupted: On SIGINT or SIGTERM, after the step is finished and saved.
        CheckpointError: If the checkpoints do not fit this run.
        ValueError: If there is no batch, nothing to train, or more than one process.
        FloatingPointError: After MAX_SKIPPED_IN_A_ROW steps without a finite loss.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by accelerate launch and torchrun
        raise ValueError(
            "training runs in one process so far; start it without accelerate launch or torchrun"
        )
    if len(batches) == 0:
        raise ValueError("no batch to train on: fewer items than batch_size; lower batch_size or add images")
    stepper = _Stepper(
        objective, learning_rate, weight_decay, max_grad_norm, mixed_precision, ema_decay, device, fingerprint
    )
    state, checkpoints = stepper.state, run_dir / "checkpoints"
    if resume:
        load_newest_state(checkpoints, state)
    steps_per_epoch = math.ceil(len(batches) / gradient_accumulation_steps)
    num_steps = num_epochs * steps_per_epoch
    started = time.perf_counter()
    with StepLog(run_dir / "log.jsonl", keep=state.step) as log, StopOnSignal() as stop:
        while state.step < num_steps:
            epoch, step_in_epoch = divmod(state.step, steps_per_epoch)
            remaining = batches.epoch(epoch, step_in_epoch * gradient_accumulation_steps)
            for group, data_seconds in timed(grouped(remaining, gradient_accumulation_steps)):
                begun = time.perf_counter()
                factor = learning_rate_factor(state.step, lr_schedule, warmup_steps, num_steps)
                metrics = stepper.step(group, learning_rate * factor)
                seconds = {"data_seconds": data_seconds, "step_seconds": time.perf_counter() - begun}
                log.write({"step": state.step, "epoch": epoch, **metrics, **seconds})
                if on_step:
                    rate = sum(map(_num_items, group)) / sum(seconds.values())
                    on_step(StepReport(state.step, num_steps, metrics["loss"], rate))
                is_due = checkpoint_every and state.step % checkpoint_every == 0
                if is_due or state.step == num_steps or stop.signal_number:
                    log.sync()
                    saved = save_state(checkpoints, state, keep=keep_checkpoints)
                if stop.signal_number:
                    raise Interrupted(stop.signal_number, saved)
            assert state.step % steps_per_epoch == 0, "an epoch gave fewer batches than len(batches)"
    stepper.finish()
    elapsed = time.perf_counter() - started
    return FitResult(state.step, state.skipped_steps, elapsed, epoch_means(run_dir / "log.jsonl"))


class _Stepper:
    """Makes optimizer steps; holds the prepared objective and the state that a checkpoint saves."""

    def __init__(
        self,
        objective: nn.Module,
        learning_rate: float,
        weight_decay: float,
        max_grad_norm: float,
        mixed_precision: str,
        ema_decay: float,
        device: str,
        fingerprint: str,
    ):
        # accelerate keeps the first Accelerator's precision for the whole process; stages may differ in it.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu")
        self.max_grad_norm = max_grad_norm
        optimizer = torch.optim.AdamW(parameter_groups(objective, weight_decay), lr=learning_rate)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.module = self.accelerator.unwrap_model(self.objective)
        self.objective.train()
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.average = MovingAverage(trained, ema_decay) if ema_decay else None
        self.state = TrainingState(
            self.module, self.optimizer.optimizer, self.average, self.accelerator.scaler, fingerprint
        )
        self.skipped_in_a_row = 0

    def step(self, group: list[Batch], learning_rate: float) -> dict[str, float]:
        """Make one optimizer step from a group of micro-batches; return what to log."""
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = learning_rate
        metrics = self._backward(group)
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        metrics |= {"grad_norm": float(norm), "learning_rate": learning_rate}
        self.state.step += 1
        if self._step_if_finite(metrics):
            self.skipped_in_a_row = 0
            if hasattr(self.module, "after_step"):
                self.module.after_step()
            if self.average:
                self.average.update()
        else:
            self._count_skipped(metrics, group)
        return metrics

    def finish(self) -> None:
        """Give the objective back as it was handed in, with the trained (or averaged) weights."""
        if self.average:
            self.average.copy_to_parameters()
        self.accelerator.unwrap_model(self.objective, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _backward(self, group: list[Batch]) -> dict[str, float]:
        """Add up the gradients of the group's mean loss; return the mean of each metric."""
        totals: dict[str, float] = {}
        for index, batch in enumerate(group):
            is_last = index == len(group) - 1  # processes exchange gradients once a step
            with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                loss, metrics = self.objective(send_to_device(batch, self.accelerator.device))
                self.accelerator.backward(loss / len(group))
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(group)  # device-to-host copy
        return totals

    def _step_if_finite(self, metrics: dict[str, float]) -> bool:
        """Step, unless loss or gradient is not finite: that must never reach a weight."""
        is_finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        if is_finite or self.accelerator.scaler is not None:
            # float16's scaler checks by itself, and must be told of an overflow to lower its scale.
            self.optimizer.step()
        self.optimizer.zero_grad()
        return is_finite and not self.optimizer.step_was_skipped

    def _count_skipped(self, metrics: dict[str, float], group: list[Batch]) -> None:
        self.state.skipped_steps += 1
        self.skipped_in_a_row += 1
        images = [str(name) for batch in group for name in batch.get("image_ids", [])]
        logger.warning(
            "step %d skipped: loss %s, gradient norm %s; images: %s",
            *(self.state.step, metrics["loss"], metrics["grad_norm"], ", ".join(images) or "not named"),
        )
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row had no finite loss or gradient; stopped at step "
                f"{self.state.step}. Lower learning_rate, or set mixed_precision to 'no' or 'bf16'"
            )


def grouped(items: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Cut an iterable into lists of `size`; the last may be shorter."""
    group: list[Batch] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def timed(items: Iterable[list[Batch]]) -> Iterator[tuple[list[Batch], float]]:
    """Give each item with the seconds that were waited for it."""
    iterator = iter(items)
    while True:
        begun = time.perf_counter()
        item = next(iterator, None)
        if item is None:
            return
        yield item, time.perf_counter() - begun


def _num_items(batch: Batch) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
