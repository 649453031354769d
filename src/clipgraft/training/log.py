"""`log.jsonl`: one row an optimizer step, without a gap or a double line after a resume."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipgraft.errors import CheckpointError
from clipgraft.files import written_whole


class StepLog:
    """Appends rows; opened, it is cut back to the rows that the resumed state knows."""

    def __init__(self, path: Path, *, keep: int):
        """Open the log.

        Args:
            path: The file; made where there is none.
            keep: Rows that stay: the optimizer steps already made.

        Raises:
            CheckpointError: If the log has fewer.
        """
        rows = path.read_text(encoding="utf-8").splitlines(keepends=True)[:keep] if path.is_file() else []
        if len(rows) < keep:
            raise CheckpointError(
                f"{path} has {len(rows)} rows and the checkpoint {keep} steps: the log was lost or cut; "
                "bring it back, or start again with --overwrite"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_to_disk(path) as temporary:
            temporary.write_text("".join(rows), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; NaN and infinity become null, which is what JSON has for them."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Have the rows on disk before a checkpoint counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def written_to_disk(path: Path) -> Iterator[Path]:
    """`written_whole`, and on the disk before the old file is gone: a killed run leaves one of the two."""
    with written_whole(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def epoch_means(path: Path) -> list[float]:
    """Mean loss of each epoch of a log, epoch 0 first; steps without a finite loss are left out."""
    losses: dict[int, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["loss"] is not None:
            losses.setdefault(row["epoch"], []).append(row["loss"])
    return [sum(values) / len(values) for _, values in sorted(losses.items())]
