"""The training loop of all stages.

An objective turns a batch into a loss; `fit` does the rest. Order of a step: forward and backward of each
micro-batch; finite check, clipping, optimizer, `objective.after_step()`, moving average; log; if due,
checkpoint, stop on a signal, validation, and again stop on a signal.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from clipgraft.console import is_first_process, say, track
from clipgraft.device import choose_mixed_precision
from clipgraft.errors import UserError
from clipgraft.files import clear_parts
from clipgraft.runs.folder import discard_old_run
from clipgraft.runs.trackers import Trackers
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import CheckpointManager, deciding_settings
from clipgraft.training.grad_cache import Batch
from clipgraft.training.optim import learning_rate_at
from clipgraft.training.run_log import LOG_NAME, RunLogger
from clipgraft.training.signals import Interrupted, StopOnSignal
from clipgraft.training.step import DeviceMetrics, TrainStep
from clipgraft.training.validation import EVALUATIONS_NAME, ValidationHistory, ValidationPlan


class Batches(Protocol):
    """Training batches, a pure function of epoch and position."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int) -> Iterable[Batch]:
        """Return the batches of an epoch (0-based) from `start` on."""
        ...


@dataclass(frozen=True)
class StepReport:
    """State after an optimizer step, for listeners."""

    step: int
    """Steps made, 1-based."""
    num_steps: int
    loss: float
    samples_per_second: float


@dataclass(frozen=True)
class FitResult:
    """Figures of a training run."""

    num_steps: int
    skipped_steps: int
    seconds: float
    """Time in this process, without a resumed run's earlier part."""
    epoch_mean_loss: list[float]
    mixed_precision: str


@dataclass(frozen=True)
class Resume:
    """Checkpoint and conditions for resuming."""

    step: int | None = None
    """Of the checkpoint; None = the newest intact one."""
    allow_changed_data: bool = False
    """Accept changed photographs, captions and start weights, but not settings."""


def fit(
    objective: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    *,
    output_dir: Path | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    data: Mapping[str, str] = MappingProxyType({}),
    learning_rate_scales: Mapping[str, float] = MappingProxyType({}),
    resume: bool | Resume = False,
    validation: ValidationPlan | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    description: str = "",
) -> FitResult:
    """Train an objective's parameters, with log, checkpoints and validation.

    Args:
        objective: `objective(batch) -> (loss, metrics)`: a float32 scalar and scalars to log; may have
            `after_step()`, and `embed` and `joint_loss` (see `backward_jointly`).
        settings: Optimizer, length, checkpoints and log. A resumed run may have more epochs than before.
        output_dir: Gets log, checkpoints, validation's rows and the best weights; None = nothing.
        seed: Seed of the objective's random numbers, independent for each step.
        data: Checksums of training data and start weights, by name; other checkpoints are refused.
        learning_rate_scales: Factors on the learning rate, by prefix of parameters' names.
        validation: Measured before the first step and after each epoch; the best weights are kept.
        description: Title of a progress bar, if any.

    Raises:
        Interrupted: On SIGINT or SIGTERM, after finishing the step or validation and saving the state.
        CheckpointError: If the checkpoints do not fit this run.
        UserError: If there is nothing to train, or no finite loss for `step.MAX_SKIPPED_IN_A_ROW` steps.
    """
    if len(batches) == 0:
        raise UserError("no batch to train on: fewer items than batch_size; lower batch_size or add images")
    device = torch.device(device)
    settings = _settle(settings, device, output_dir if resume else None)
    step = TrainStep(objective, settings, device.type, seed, learning_rate_scales)
    checkpoints = trackers = None
    if output_dir is not None:
        row_files = (LOG_NAME, *([EVALUATIONS_NAME] if validation else []))
        deciding = deciding_settings(settings, seed)
        checkpoints = CheckpointManager(output_dir, settings.save_total_limit, data, deciding, row_files)
        trackers = _trackers(output_dir, settings, {"seed": seed, **data}, bool(resume))
    training = _Training(step, batches, settings, checkpoints, trackers, validation)
    if resume and checkpoints:
        training.resume(checkpoints, resume if isinstance(resume, Resume) else Resume())
    started = time.perf_counter()
    with track(description, training.num_steps) if description else nullcontext() as update:

        def report(found: StepReport) -> None:
            if update:
                update(found.step, f"loss {found.loss:.4f}  {found.samples_per_second:.0f} samples/s")
            if on_step:
                on_step(found)

        mean_loss = training.run(report)
    seconds = time.perf_counter() - started
    return FitResult(step.state.step, step.state.skipped_steps, seconds, mean_loss, settings.mixed_precision)


def _trackers(run_dir: Path, settings: TrainSettings, others: Mapping[str, Any], resume: bool) -> Trackers:
    files = {"train": run_dir / LOG_NAME, "evaluation": run_dir / EVALUATIONS_NAME}
    logged = {**settings.model_dump(), **others} if settings.report_to else {}
    return Trackers(run_dir, settings.report_to, files, logged, resume=resume)


def _note_long_warmup(warmup: int, num_steps: int) -> None:
    if warmup > num_steps // 2 and is_first_process():
        say(
            f"warmup_steps={warmup} is more than half of the run's {num_steps} steps; the learning rate "
            f"rises for {num_steps // 2} of them"
        )


def _settle(settings: TrainSettings, device: torch.device, resumed: Path | None) -> TrainSettings:
    """Resolve `mixed_precision`, and `log_every` where each step has to wait."""
    precision = settle_precision(settings.mixed_precision, device, resumed)
    # Without waiting, only torch's fused AdamW leaves out an update that is not finite.
    waits = precision == "fp16" or device.type == "mps"
    log_every = 1 if waits else settings.log_every
    return settings.model_copy(update={"mixed_precision": precision, "log_every": log_every})


def settle_precision(name: str, device: torch.device, resumed: Path | None) -> str:
    """Resolve `mixed_precision="auto"`; a `resumed` run's folder keeps its precision.

    Raises:
        UserError: If the device does not support the precision.
    """
    begun_in = CheckpointManager(resumed).saved_precision() if resumed and name == "auto" else ""
    return choose_mixed_precision(begun_in or name, device)


class _Unread(NamedTuple):
    """A step whose row is not written yet."""

    numbers: dict[str, int]
    metrics: dict[str, float] | DeviceMetrics
    seconds: dict[str, float]
    num_items: int


class _Training:
    """The loop over epochs and steps; only the main process writes."""

    def __init__(
        self,
        step: TrainStep,
        batches: Batches,
        settings: TrainSettings,
        checkpoints: CheckpointManager | None,
        trackers: Trackers | None,
        plan: ValidationPlan | None,
    ):
        self.step, self.state, self.batches, self.settings = step, step.state, batches, settings
        self.checkpoints, self.plan = checkpoints, plan
        self.run_dir = checkpoints.run_dir if checkpoints else None
        self.process = step.accelerator
        self.steps_per_epoch = math.ceil(len(batches) / settings.gradient_accumulation_steps)
        self.num_steps = settings.num_epochs * self.steps_per_epoch
        self.saved_step = -1
        self.unread: list[_Unread] = []
        self.report: Callable[[StepReport], None] = lambda report: None
        self.logger = RunLogger(None)
        self.trackers = trackers if self.process.is_main_process else None
        self.history: ValidationHistory | None = None
        _note_long_warmup(settings.warmup_steps, self.num_steps)

    def resume(self, checkpoints: CheckpointManager, resume: Resume) -> None:
        """Restore the state from the requested or newest intact checkpoint, if any."""
        saved = checkpoints.read(resume.step)
        if saved is None:
            return
        checkpoints.restore(saved, self.state, allow_changed_data=resume.allow_changed_data)
        if self.plan:
            goes_another_way = resume.step is not None or resume.allow_changed_data
            history = ValidationHistory(self.run_dir, self.plan, self.state.step)
            history.refuse_lost_best(self.state.step, goes_another_way=goes_another_way)
        self.saved_step = self.state.step
        self.process.wait_for_everyone()
        if self.process.is_main_process:
            checkpoints.delete_after(self.state.step)
        self._settle_length(saved.values.num_steps)

    def run(self, report: Callable[[StepReport], None]) -> list[float]:
        """Make the remaining steps, load the best weights, return epochs' mean losses."""
        self.report = report
        try:
            self._open()
            with StopOnSignal() as stop:
                if self.state.step % self.steps_per_epoch == 0:
                    self._validate(self.state.step // self.steps_per_epoch, stop)
                if self.state.step < self.num_steps and self._should_stop() and self.process.is_main_process:
                    step = self.state.step
                    say(f"training stopped early at step {step}, by patience; nothing is left to do")
                while self.state.step < self.num_steps and not self._should_stop():
                    self._run_epoch(stop)
        finally:
            self.logger.close()
            if self.trackers:
                self.trackers.close()
        self.process.wait_for_everyone()
        self.step.finish(self.history.best_weights() if self.history else None)
        return self.logger.epoch_mean_loss()

    def _run_epoch(self, stop: StopOnSignal) -> None:
        size = self.settings.gradient_accumulation_steps
        epoch, step_in_epoch = divmod(self.state.step, self.steps_per_epoch)
        for group, data_seconds in _timed(grouped(self.batches.epoch(epoch, step_in_epoch * size), size)):
            begun = time.perf_counter()
            rate = learning_rate_at(self.settings, self.state.step, self.num_steps)
            waits = self.settings.log_every == 1
            metrics = self.step(group, rate) if waits else self.step.without_waiting(group, rate)
            seconds = {"data_seconds": data_seconds, "step_seconds": time.perf_counter() - begun}
            numbers = {"step": self.state.step, "epoch": epoch}
            self.unread.append(_Unread(numbers, metrics, seconds, sum(map(_num_items, group))))
            if len(self.unread) >= self.settings.log_every:
                self._log()
            self._save()
            self._stop_on(stop)
        assert self.state.step % self.steps_per_epoch == 0, "an epoch gave fewer batches than len(batches)"
        self._log()
        self._validate(epoch + 1, stop)

    def _log(self) -> None:
        """Write the rows of the steps made since the last call."""
        if not self.unread:
            return
        steps, self.unread = self.unread, []
        begun = time.perf_counter()
        found = [step.metrics for step in steps if isinstance(step.metrics, dict)]
        found = found or self.step.check([step.metrics for step in steps])  # type: ignore[misc]
        steps[-1].seconds["step_seconds"] += time.perf_counter() - begun
        for step, metrics in zip(steps, found, strict=True):
            row = {**step.numbers, **metrics, **step.seconds}
            self.logger.write(row)
            self._report("train", row)
        if self.run_dir and self.process.is_main_process:
            discard_old_run(self.run_dir)  # the new run now replaces it
        rate = sum(step.num_items for step in steps) / sum(sum(step.seconds.values()) for step in steps)
        self.report(StepReport(self.state.step, self.num_steps, found[-1]["loss"], rate))

    def _open(self) -> None:
        step = self.state.step
        if self.checkpoints and self.process.is_main_process:
            for folder in (self.checkpoints.run_dir, self.checkpoints.folder):
                clear_parts(folder, stale_seconds=0)  # this process holds the run's lock
            self.logger = RunLogger(self.run_dir, step=step)
        if self.trackers:
            self.trackers.start()
        if self.plan:
            self.history = ValidationHistory(self.run_dir, self.plan, step)
        self.process.wait_for_everyone()  # no process writes before all have read

    def _report(self, prefix: str, row: dict[str, Any]) -> None:
        if self.trackers:
            self.trackers.report(prefix, row)

    def _validate(self, epoch: int, stop: StopOnSignal) -> None:
        """Validate if due, keep the best weights, and stop on a signal."""
        if self.history and self.history.is_due(self.state.step):
            with self.step.averaged():
                is_main = self.process.is_main_process
                metrics = [self.history.plan.measure()]
                broadcast_object_list(metrics)  # decisions are the same to the bit in all processes
                row = {"step": self.state.step, "epoch": epoch, **metrics[0]}
                self.history.add(row, self.step.weights() if is_main or self.run_dir is None else None)
            self._report("evaluation", row)
            # An earlier checkpoint of this step does not record the row.
            is_saved, self.saved_step = self.saved_step == self.state.step, -1
            if is_saved or self._should_stop():
                self._save(now=True)
        self._stop_on(stop)

    def _should_stop(self) -> bool:
        return self.history is not None and self.history.should_stop()

    def _save(self, *, now: bool = False) -> None:
        """Write a checkpoint if due and not written yet."""
        step, every = self.state.step, self.settings.checkpoint_every
        is_due = now or step == self.num_steps or (every and step % every == 0)
        if is_due:
            self._log()
        if self.checkpoints and self.process.is_main_process and is_due and step != self.saved_step:
            rows = {LOG_NAME: self.logger.sync()}
            if self.history:
                rows[EVALUATIONS_NAME] = self.history.checksum()
            self.checkpoints.save(self.state, num_steps=self.num_steps, rows=rows)
            self.saved_step = step

    def _stop_on(self, stop: StopOnSignal) -> None:
        """Save and raise Interrupted if any process was sent a signal."""
        signal_number = self.step.agree_on(stop.signal_number)
        if signal_number:
            self._save(now=True)
            self.process.wait_for_everyone()
            raise Interrupted(signal_number, self.checkpoints.folder if self.checkpoints else None)

    def _settle_length(self, before: int) -> None:
        """Report a changed number of steps; refuse fewer than already made."""
        step, now, settings = self.state.step, self.num_steps, self.settings
        if step > now:
            raise UserError(
                f"{self.run_dir} has already made {step} steps, and num_epochs = {settings.num_epochs} is "
                f"{now}; set it to {math.ceil(step / self.steps_per_epoch)} or more"
            )
        if before == now or not self.process.is_main_process:
            return
        rates = f"{learning_rate_at(settings, step, now):.2g}"
        if settings.lr_schedule != "constant":
            rates += (
                f" to {learning_rate_at(settings, now - 1, now):.2g}: lr_schedule = {settings.lr_schedule!r} "
                f"spreads over all steps; it would have continued at "
                f"{learning_rate_at(settings, min(step, before), before):.2g}"
            )
        say(f"{step} steps are made; the run now has {now}, not {before}. The learning rate is now {rates}")


def grouped(items: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batch an iterable into lists of `size`; the last may be shorter."""
    group: list[Batch] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _timed(items: Iterable[list[Batch]]) -> Iterator[tuple[list[Batch], float]]:
    """Yield each item with the seconds spent waiting for it."""
    iterator = iter(items)
    while True:
        begun = time.perf_counter()
        item = next(iterator, None)
        if item is None:
            return
        yield item, time.perf_counter() - begun


def _num_items(batch: Batch) -> int:
    """Return the number of rows, or of captions if larger."""
    return max(len(value) for value in batch.values() if isinstance(value, Tensor))
