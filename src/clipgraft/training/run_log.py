"""What a training run leaves on disk: log, checkpoints, evaluations. One process writes, all agree."""

from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor

from clipgraft.files import clear_parts
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import Saved, delete_newer_states, read_named, read_newest
from clipgraft.training.signals import Interrupted
from clipgraft.training.state import Resume, restore, save_state
from clipgraft.training.step import Stepper
from clipgraft.training.step_log import LOG_NAME, NO_ROWS, StepLog, refuse_other_rows
from clipgraft.training.tracking import Tracker
from clipgraft.training.validation import EVALUATIONS_NAME, EvaluationPlan, Evaluations


class RunRecord:
    """A run's files.

    Args:
        folder: Gets `log.jsonl`, a row a step, and `checkpoints/`; `evaluations.jsonl` and the best weights
            where evaluations are made.
        stepper: Whose state is saved.
        plan: What to evaluate; None = nothing.
        settings: `checkpoint_every` (0 = only at the end and on a signal), `save_total_limit`, `report_to`.
        num_steps: Of the whole run.
    """

    def __init__(
        self,
        folder: Path,
        stepper: Stepper,
        plan: EvaluationPlan | None,
        settings: TrainSettings,
        num_steps: int,
    ):
        self.folder = folder
        self.stepper = stepper
        self.plan = plan
        self.settings = settings
        self.num_steps = stepper.state.num_steps = num_steps
        self.process = stepper.accelerator
        self.log: StepLog | None = None
        self.tracker: Tracker | None = None
        self.evaluations: Evaluations | None = None
        self.saved_step = -1
        self.planned_steps = num_steps
        """Of the whole run, when the checkpoint that it goes on from was written."""

    def load(self, resume: Resume) -> None:
        """Bring the state back from the checkpoint asked for, or the newest whole one if there is one.

        Raises:
            CheckpointError: If none is whole, or fits; nothing has changed then.
        """
        checkpoints, state = self.folder / "checkpoints", self.stepper.state
        if resume.step is None:
            saved = read_newest(checkpoints, self._refuse_lost_rows)
        else:
            saved = read_named(checkpoints, resume.step, self._refuse_lost_rows)
        if saved is None:
            return
        restore(saved, state, allow_changed_data=resume.allow_changed_data)
        if self.plan:
            goes_another_way = resume.step is not None or resume.allow_changed_data
            evaluations = Evaluations(self.folder, self.plan, state.step)
            evaluations.refuse_lost_best(goes_another_way=goes_another_way)
        self.saved_step, self.planned_steps = state.step, saved.values["num_steps"]
        self.process.wait_for_everyone()
        if self.process.is_main_process:
            delete_newer_states(checkpoints, state.step)

    def _refuse_lost_rows(self, saved: Saved) -> None:
        """Make sure that log and evaluations are as a checkpoint knows them."""
        for name in (LOG_NAME, *([EVALUATIONS_NAME] if self.plan else [])):
            refuse_other_rows(self.folder / name, saved.rows.get(name, NO_ROWS))

    def __enter__(self) -> "RunRecord":
        step = self.stepper.state.step
        if self.process.is_main_process:
            for folder in (self.folder, self.folder / "checkpoints"):
                clear_parts(folder, stale_seconds=0)  # whoever works here holds the run's folder
            self.tracker = Tracker(self.settings.report_to, self.folder, step=step)
            self.log = StepLog(self.folder / LOG_NAME, keep=step)
        if self.plan:
            self.evaluations = Evaluations(self.folder, self.plan, step)
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
        """Write a checkpoint where one is due, and there is none of this state yet.

        Args:
            now: Whether one is due in any case.
        """
        state = self.stepper.state
        every, keep = self.settings.checkpoint_every, self.settings.save_total_limit
        is_due = bool(every) and state.step % every == 0
        if self.log and (is_due or now or state.step == self.num_steps) and state.step != self.saved_step:
            rows = {LOG_NAME: self.log.sync()}
            if self.evaluations:
                rows[EVALUATIONS_NAME] = self.evaluations.sum()
            save_state(self.folder / "checkpoints", state, keep=keep, rows=rows)
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
        # A checkpoint of this step that was written before does not count on the row.
        is_saved, self.saved_step = self.saved_step == step, -1
        if is_saved or self.has_lost_patience():
            self.save(now=True)

    def has_lost_patience(self) -> bool:
        """Whether to stop early."""
        return self.evaluations is not None and self.evaluations.has_lost_patience()

    def best_weights(self) -> dict[str, Tensor] | None:
        """Return the weights of the best evaluation; None where nothing was evaluated."""
        self.process.wait_for_everyone()
        return self.evaluations.best_weights() if self.evaluations else None
