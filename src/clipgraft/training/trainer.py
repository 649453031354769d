"""The one training loop. It knows no stage: an objective turns a batch into a loss, `fit` does the rest.

Order of a step: forward and backward of each micro-batch; finite check, clip, optimizer,
`objective.after_step()`, moving average; then, where due, log, checkpoint, stop on a signal, evaluate, and
again stop on a signal.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from clipgraft.console import say
from clipgraft.errors import UserError
from clipgraft.training.grad_cache import Batch
from clipgraft.training.optim import Optimization
from clipgraft.training.run_log import RunRecord
from clipgraft.training.signals import StopOnSignal
from clipgraft.training.state import NO_FINGERPRINT, Fingerprint, Resume
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
    how: Optimization,
    *,
    run_dir: Path,
    num_epochs: int,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    device: str = "cpu",
    seed: int = 0,
    fingerprint: Fingerprint = NO_FINGERPRINT,
    resume: bool | Resume = False,
    evaluation: EvaluationPlan | None = None,
    on_step: Callable[[StepReport], None] = lambda _report: None,
    track: str = "",
) -> FitResult:
    """Train an objective's parameters, logging and checkpointing on the way.

    Args:
        objective: `objective(batch) -> (loss, metrics)`: a float32 scalar and scalars to log; may have
            `after_step()`, and `embed` and `joint_loss` (see `backward_jointly`). Parameters with
            `requires_grad` are trained and saved, the rest is not touched.
        batches: Batches of each epoch; in several processes, this one's share of them.
        how: Steps are made.
        run_dir: See `RunRecord`, as for `checkpoint_every`, `keep_checkpoints` and `track`.
        num_epochs: Passes over `batches`; a run that is gone on with may be given more than it began with.
        device: "cpu", "cuda" or "mps".
        seed: Of the random numbers that the objective draws: those of a step follow from it alone.
        fingerprint: Of data and settings; a checkpoint with another is refused on resume.
        resume: Go on from the newest whole checkpoint, if there is one, or as a `Resume` says.
        evaluation: What to measure before the first step and after each epoch; the best weights are left in
            the objective then.
        on_step: Called after every step.

    Raises:
        Interrupted: On SIGINT or SIGTERM, after the step or the evaluation is finished and the state saved.
        CheckpointError: If the checkpoints do not fit this run.
        UserError: If there is no batch, nothing to train, more epochs are made already than are asked for, or
            no loss was finite for `stepper.MAX_SKIPPED_IN_A_ROW` steps.
    """
    if len(batches) == 0:
        raise UserError("no batch to train on: fewer items than batch_size; lower batch_size or add images")
    steps_per_epoch = math.ceil(len(batches) / how.gradient_accumulation_steps)
    num_steps = num_epochs * steps_per_epoch
    stepper = Stepper(objective, how, device=device, seed=seed, fingerprint=fingerprint)
    record = RunRecord(run_dir, stepper, evaluation, checkpoint_every, keep_checkpoints, num_steps, track)
    if resume:
        record.load(resume if isinstance(resume, Resume) else Resume())
        _settle_length(stepper, how, record, steps_per_epoch)
    started = time.perf_counter()
    _make_steps(stepper, batches, how, record, on_step)
    stepper.finish(record.best_weights())
    elapsed = time.perf_counter() - started
    means = epoch_means(run_dir / LOG_NAME)
    return FitResult(stepper.state.step, stepper.state.skipped_steps, elapsed, means, how.mixed_precision)


def _settle_length(stepper: Stepper, how: Optimization, record: RunRecord, steps_per_epoch: int) -> None:
    """Say what other epochs than a run began with mean for its learning rate; refuse fewer than are made."""
    step, before, now = stepper.state.step, record.planned_steps, record.num_steps
    if step > now:
        raise UserError(
            f"{record.folder} has made {step} steps already, and num_epochs = {now // steps_per_epoch} is "
            f"{now}; set it to {math.ceil(step / steps_per_epoch)} or more"
        )
    if before == now or not stepper.is_first_process:
        return
    rates = f"from here {how.learning_rate_at(step, now):.2g}"
    if how.lr_schedule != "constant":
        rates += (
            f" to {how.learning_rate_at(now - 1, now):.2g}: lr_schedule = {how.lr_schedule!r} is spread over "
            f"all steps, and would else go on at {how.learning_rate_at(min(step, before), before):.2g}"
        )
    say(f"{step} steps are made; the run has {now} now in place of {before}. The learning rate is {rates}")


def _make_steps(
    stepper: Stepper,
    batches: Batches,
    how: Optimization,
    record: RunRecord,
    on_step: Callable[[StepReport], None],
) -> None:
    """Make the steps that are left, epoch after epoch, and evaluate where an epoch begins and ends."""
    state = stepper.state
    steps_per_epoch = math.ceil(len(batches) / how.gradient_accumulation_steps)
    with record, StopOnSignal() as stop:
        if state.step % steps_per_epoch == 0:
            record.evaluate(epoch=state.step // steps_per_epoch)
            record.stop_on(stepper.agree_on(stop.signal_number))
        if state.step < record.num_steps and record.has_lost_patience() and stepper.is_first_process:
            say(f"training stopped early at step {state.step}, by patience; no step is left to make")
        while state.step < record.num_steps and not record.has_lost_patience():
            epoch, step_in_epoch = divmod(state.step, steps_per_epoch)
            remaining = batches.epoch(epoch, step_in_epoch * how.gradient_accumulation_steps)
            for group, data_seconds in timed(grouped(remaining, how.gradient_accumulation_steps)):
                begun = time.perf_counter()
                metrics = stepper.step(group, how.learning_rate_at(state.step, record.num_steps))
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
