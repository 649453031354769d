"""The one training loop. It knows no stage: an objective turns a batch into a loss, `fit` does the rest.

Order of a step: forward and backward of each micro-batch; finite check, clip, optimizer,
`objective.after_step()`, moving average; then, where due, log, checkpoint, stop on a signal, evaluate, and
again stop on a signal.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from clipgraft.console import is_first_process, say, track
from clipgraft.device import choose_mixed_precision
from clipgraft.errors import UserError
from clipgraft.runs.folder import discard_old_run
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import saved_precision
from clipgraft.training.fingerprints import deciding_settings
from clipgraft.training.grad_cache import Batch
from clipgraft.training.optim import learning_rate_at
from clipgraft.training.run_log import RunRecord
from clipgraft.training.signals import StopOnSignal
from clipgraft.training.state import Fingerprint, Resume
from clipgraft.training.step import Stepper
from clipgraft.training.step_log import LOG_NAME, epoch_means
from clipgraft.training.validation import EvaluationPlan


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
    mixed_precision: str


def fit(
    objective: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    *,
    output_dir: Path,
    device: torch.device | str = "cpu",
    seed: int = 0,
    data: Mapping[str, str] = MappingProxyType({}),
    learning_rate_scales: Mapping[str, float] = MappingProxyType({}),
    resume: bool | Resume = False,
    validation: EvaluationPlan | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    description: str = "",
) -> FitResult:
    """Train an objective's parameters, with log, checkpoints and validation.

    Args:
        objective: `objective(batch) -> (loss, metrics)`: a float32 scalar and scalars to log; may have
            `after_step()`, and `embed` and `joint_loss` (see `backward_jointly`). Parameters with
            `requires_grad` are trained and saved, the rest is not touched.
        batches: Batches of each epoch; in several processes, this one's share of them.
        settings: Optimizer, length, checkpoints and log. A resumed run may have more epochs than before.
        output_dir: Gets `log.jsonl`, `checkpoints/` and, with `validation`, its rows and the best weights.
        device: "cpu", "cuda" or "mps".
        seed: Of the random numbers that the objective draws: those of a step follow from it alone.
        data: Sums of what is trained on and started from, by name; checkpoints of others are refused.
        learning_rate_scales: Factors on the learning rate, by the beginning of parameters' names.
        resume: Go on from the newest whole checkpoint, if there is one, or as a `Resume` says.
        validation: What to measure before the first step and after each epoch; the best weights are left in
            the objective then.
        on_step: Called after every step.
        description: Title of a progress bar; empty: no bar.

    Raises:
        Interrupted: On SIGINT or SIGTERM, after the step or the validation is finished and the state saved.
        CheckpointError: If the checkpoints do not fit this run.
        UserError: If there is no batch, nothing to train, more epochs are made already than are asked for, or
            no loss was finite for `step.MAX_SKIPPED_IN_A_ROW` steps.
    """
    if len(batches) == 0:
        raise UserError("no batch to train on: fewer items than batch_size; lower batch_size or add images")
    device = torch.device(device)
    steps_per_epoch = math.ceil(len(batches) / settings.gradient_accumulation_steps)
    num_steps = settings.num_epochs * steps_per_epoch
    fingerprint = Fingerprint(data, deciding_settings(settings, seed))
    precision = settle_precision(settings.mixed_precision, device, output_dir if resume else None)
    settings = settings.model_copy(update={"mixed_precision": precision})
    if settings.warmup_steps > num_steps // 2 and is_first_process():
        say(
            f"warmup_steps={settings.warmup_steps} is more than half of the run's {num_steps} steps; the "
            f"learning rate rises for {num_steps // 2} of them"
        )
    stepper = Stepper(objective, settings, device.type, seed, fingerprint, learning_rate_scales)
    record = RunRecord(output_dir, stepper, validation, settings, num_steps)
    if resume:
        record.load(resume if isinstance(resume, Resume) else Resume())
        _settle_length(stepper, settings, record, steps_per_epoch)
    started = time.perf_counter()
    with track(description, num_steps) if description else nullcontext() as update:

        def tell(report: StepReport) -> None:
            if is_first_process():
                discard_old_run(output_dir)  # there is something now that goes on by itself
            if update:
                update(report.step, f"loss {report.loss:.4f}  {report.samples_per_second:.0f} samples/s")
            if on_step:
                on_step(report)

        _make_steps(stepper, batches, settings, record, tell)
    stepper.finish(record.best_weights())
    elapsed = time.perf_counter() - started
    means = epoch_means(output_dir / LOG_NAME)
    return FitResult(stepper.state.step, stepper.state.skipped_steps, elapsed, means, precision)


def settle_precision(name: str, device: torch.device, resumed: Path | None) -> str:
    """Resolve `mixed_precision="auto"`; a resumed run keeps the precision that it began in.

    Args:
        name: Of the settings.
        device: Where to train.
        resumed: Folder of the run to resume; None = a new run.

    Raises:
        UserError: If the precision cannot work on the device.
    """
    begun_in = saved_precision(resumed / "checkpoints") if resumed and name == "auto" else ""
    return choose_mixed_precision(begun_in or name, device)


def _settle_length(
    stepper: Stepper, settings: TrainSettings, record: RunRecord, steps_per_epoch: int
) -> None:
    """Say what other epochs than a run began with mean for its learning rate; refuse fewer than are made."""
    step, before, now = stepper.state.step, record.planned_steps, record.num_steps
    if step > now:
        raise UserError(
            f"{record.folder} has made {step} steps already, and num_epochs = {now // steps_per_epoch} is "
            f"{now}; set it to {math.ceil(step / steps_per_epoch)} or more"
        )
    if before == now or not stepper.is_first_process:
        return
    rates = f"from here {learning_rate_at(settings, step, now):.2g}"
    if settings.lr_schedule != "constant":
        rates += (
            f" to {learning_rate_at(settings, now - 1, now):.2g}: lr_schedule = {settings.lr_schedule!r} is "
            f"spread over all steps, and would else go on at "
            f"{learning_rate_at(settings, min(step, before), before):.2g}"
        )
    say(f"{step} steps are made; the run has {now} now in place of {before}. The learning rate is {rates}")


def _make_steps(
    stepper: Stepper,
    batches: Batches,
    settings: TrainSettings,
    record: RunRecord,
    on_step: Callable[[StepReport], None],
) -> None:
    """Make the steps that are left, epoch after epoch, and evaluate where an epoch begins and ends."""
    state, size = stepper.state, settings.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(batches) / size)
    with record, StopOnSignal() as stop:
        if state.step % steps_per_epoch == 0:
            record.evaluate(epoch=state.step // steps_per_epoch)
            record.stop_on(stepper.agree_on(stop.signal_number))
        if state.step < record.num_steps and record.has_lost_patience() and stepper.is_first_process:
            say(f"training stopped early at step {state.step}, by patience; no step is left to make")
        while state.step < record.num_steps and not record.has_lost_patience():
            epoch, step_in_epoch = divmod(state.step, steps_per_epoch)
            remaining = batches.epoch(epoch, step_in_epoch * size)
            for group, data_seconds in timed(grouped(remaining, size)):
                begun = time.perf_counter()
                metrics = stepper.step(group, learning_rate_at(settings, state.step, record.num_steps))
                seconds = {"data_seconds": data_seconds, "step_seconds": time.perf_counter() - begun}
                record.write({"step": state.step, "epoch": epoch, **metrics, **seconds})
                rate = sum(map(_num_items, group)) / sum(seconds.values())
                on_step(StepReport(state.step, record.num_steps, metrics["loss"], rate))
                record.save()
                record.stop_on(stepper.agree_on(stop.signal_number))
            assert state.step % steps_per_epoch == 0, "an epoch gave fewer batches than len(batches)"
            record.evaluate(epoch=epoch + 1)
            record.stop_on(stepper.agree_on(stop.signal_number))


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
    """Captions where there are several an image, else rows."""
    return max(len(value) for value in batch.values() if isinstance(value, Tensor))
