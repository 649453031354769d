"""What a training run leaves on disk: log, checkpoints, evaluations. One process writes, all agree."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from clipgraft.training.evaluations import EvaluationPlan, Evaluations, refuse_lost_best
from clipgraft.training.log import StepLog
from clipgraft.training.state import (
    Resume,
    delete_newer_states,
    load_named_state,
    load_newest_state,
    save_state,
)
from clipgraft.training.stepper import Stepper
from clipgraft.training.stopping import Interrupted
from clipgraft.training.tracking import Tracker


class RunRecord:
    """A run's files.

    Args:
        folder: Gets `log.jsonl`, a row a step, and `checkpoints/`; `evaluations.jsonl` and the best weights
            where evaluations are made.
        stepper: Whose state is saved.
        plan: What to evaluate; None = nothing.
        checkpoint_every: Steps between checkpoints; 0 = only at the end and on a signal.
        keep_checkpoints: Newest checkpoints kept.
        num_steps: Of the whole run.
        track: "tensorboard" writes the rows of log and evaluations there as well.
    """

    def __init__(
        self,
        folder: Path,
        stepper: Stepper,
        plan: EvaluationPlan | None,
        checkpoint_every: int,
        keep_checkpoints: int,
        num_steps: int,
        track: str = "",
    ):
        self.folder = folder
        self.stepper = stepper
        self.plan = plan
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.num_steps = num_steps
        self.track = track
        self.process = stepper.accelerator
        self.log: StepLog | None = None
        self.tracker: Tracker | None = None
        self.evaluations: Evaluations | None = None
        self.saved_step = -1

    def load(self, resume: Resume) -> None:
        """Bring the state back from the checkpoint asked for, or the newest whole one if there is one."""
        checkpoints, state = self.folder / "checkpoints", self.stepper.state
        accept = resume.allow_changed_data
        if resume.step is None:
            load_newest_state(checkpoints, state, allow_changed_data=accept)
        else:
            load_named_state(checkpoints, state, resume.step, allow_changed_data=accept)
        if self.plan and (accept or resume.step is not None):
            refuse_lost_best(self.folder, self.plan, state.step)
        self.process.wait_for_everyone()
        if resume.step is not None and self.process.is_main_process:
            delete_newer_states(checkpoints, resume.step)

    def __enter__(self) -> "RunRecord":
        step = self.stepper.state.step
        if self.process.is_main_process:
            self.tracker = Tracker(self.track, self.folder, step=step)
            self.log = StepLog(self.folder / "log.jsonl", keep=step)
        if self.plan:
            self.evaluations = Evaluations(self.folder, self.plan, step)
        if not self.process.is_main_process:
            # Dropout is to differ between processes; the checkpoint holds the first one's random state.
            torch.manual_seed(int(torch.randint(2**31, ())) + self.process.process_index)
        self.process.wait_for_everyone()  # nobody writes before all have read
        return self

    def __exit__(self, *_: object) -> None:
        if self.log:
            self.log.close()
        if self.tracker:
            self.tracker.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append a step's row to the log."""
        if self.log:
            self.log.write(row)
        if self.tracker:
            self.tracker.write(row, prefix="train")

    def save(self, *, now: bool = False) -> None:
        """Write a checkpoint where one is due, and there is none of this step yet.

        Args:
            now: Whether one is due in any case.
        """
        state = self.stepper.state
        is_due = bool(self.checkpoint_every) and state.step % self.checkpoint_every == 0
        if self.log and (is_due or now or state.step == self.num_steps) and state.step != self.saved_step:
            self.log.sync()
            save_state(self.folder / "checkpoints", state, keep=self.keep_checkpoints)
            self.saved_step = state.step

    def stop_on(self, signal_number: int) -> None:
        """Save and stop where there is a signal.

        Args:
            signal_number: The same in all processes; 0 = none.

        Raises:
            Interrupted: After saving.
        """
        if signal_number:
            self.save(now=True)
            self.process.wait_for_everyone()
            raise Interrupted(signal_number, self.folder / "checkpoints")

    def evaluate(self, *, epoch: int) -> None:
        """Measure, unless this step was measured before the run was cut off; keep the best weights.

        Args:
            epoch: Epochs made.
        """
        step = self.stepper.state.step
        if self.evaluations is None or not self.evaluations.is_due(step):
            return
        with self.stepper.averaged():
            metrics = [self.evaluations.plan.measure() if self.process.is_main_process else {}]
            broadcast_object_list(metrics)
            self.evaluations.add(
                {"step": step, "epoch": epoch, **metrics[0]},
                self.stepper.weights() if self.process.is_main_process else None,
            )
        if self.tracker:
            self.tracker.write(self.evaluations.rows[-1], prefix="evaluation")
        if self.has_lost_patience():
            self.save(now=True)

    def has_lost_patience(self) -> bool:
        """Whether to stop early."""
        return self.evaluations is not None and self.evaluations.has_lost_patience()

    def best_weights(self) -> dict[str, Tensor] | None:
        """Return the weights of the best evaluation; None where nothing was evaluated."""
        self.process.wait_for_everyone()
        return self.evaluations.best_weights() if self.evaluations else None
