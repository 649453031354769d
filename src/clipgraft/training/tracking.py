"""A run's figures in TensorBoard as well, through accelerate: local files, no account."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker

from clipgraft.errors import UserError

FOLDER = "tensorboard"


class Tracker:
    """Writes a run's rows to `tensorboard/` in its folder; with an empty name it does nothing.

    Args:
        name: "tensorboard", or empty.
        folder: Of the run.
        step: Steps made; what a killed run wrote of later ones is hidden.

    Raises:
        ValueError: If TensorBoard is not installed.
    """

    def __init__(self, name: str, folder: Path, *, step: int):
        self.tracker = None
        if not name:
            return
        if find_spec("tensorboard") is None:
            raise UserError("report_to = 'tensorboard' needs TensorBoard: pip install clipgraft[tracking]")
        self.tracker = TensorBoardTracker(FOLDER, folder, purge_step=step + 1 if step else None)
        self.tracker.start()

    def write(self, row: dict[str, Any], *, prefix: str) -> None:
        """Write a row's numbers under `prefix/<key>` at its `step`; NaN stays NaN."""
        if self.tracker:
            numbers = {
                f"{prefix}/{key}": value
                for key, value in row.items()
                if isinstance(value, int | float) and key not in ("step", "epoch")
            }
            self.tracker.log(numbers, step=row["step"])

    def close(self) -> None:
        """Finish the file."""
        if self.tracker:
            self.tracker.finish()
