"""`log.jsonl`: one row an optimizer step, without a gap or a double line after a resume."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from clipgraft.errors import CheckpointError
from clipgraft.files import atomic_write, read_jsonl, to_json

LOG_NAME = "log.jsonl"


class RowsSum(NamedTuple):
    """The first rows of a file, as a checkpoint counts on them."""

    num_rows: int
    sha256: str


class StepLog:
    """Appends rows; opened, it is cut back to the rows that the resumed state knows.

    Args:
        path: The file; created if missing.
        keep: Rows that stay: the optimizer steps already made.
    """

    def __init__(self, path: Path, *, keep: int):
        self._path = path
        rows = read_rows(path)[:keep]
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_to_disk(path) as temporary:
            temporary.write_bytes(b"".join(rows))
        self._digest = hashlib.sha256(b"".join(rows))
        self._num_rows = len(rows)
        # Unbuffered, so that what a full disk refused is not written once more when the file is closed.
        self._file = path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; NaN and infinity become null.

        Raises:
            OSError: If there is no space left.
        """
        rest = line = as_line(row)
        try:
            while rest:  # the system may take a part, and refuse the rest at the next call
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._digest.update(line)
        self._num_rows += 1

    def sync(self) -> RowsSum:
        """Have the rows on disk before a checkpoint counts on them; return their sum."""
        os.fsync(self._file.fileno())
        return RowsSum(self._num_rows, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


NO_ROWS = RowsSum(0, hashlib.sha256().hexdigest())


def as_line(row: dict[str, Any]) -> bytes:
    """Write a row as a line of JSON."""
    return to_json(row, indent=None).encode() + b"\n"


def read_rows(path: Path) -> list[bytes]:
    """Read a file's lines, ends included; none where there is no file."""
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def sum_of_rows(rows: Iterable[bytes]) -> RowsSum:
    """Return number and sha256 of rows."""
    rows = list(rows)
    return RowsSum(len(rows), hashlib.sha256(b"".join(rows)).hexdigest())


def refuse_other_rows(path: Path, expected: RowsSum) -> None:
    """Make sure that a file begins with the rows that a checkpoint counts on; more may follow.

    Raises:
        CheckpointError: If it does not: it was lost, cut or changed.
    """
    rows = read_rows(path)[: expected.num_rows]
    if len(rows) < expected.num_rows:
        raise CheckpointError(
            f"{path} has {len(rows)} of the {expected.num_rows} rows that it had: it was lost or cut; "
            "bring it back"
        )
    if sum_of_rows(rows) != expected:
        raise CheckpointError(
            f"{path} was damaged or changed in its first {expected.num_rows} rows; bring it back"
        )


@contextmanager
def written_to_disk(path: Path) -> Iterator[Path]:
    """`atomic_write`, and on the disk before the old file is gone: a killed run leaves one of the two."""
    with atomic_write(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def epoch_means(path: Path) -> list[float]:
    """Mean loss of each epoch of a log, epoch 0 first; steps without a finite loss are left out."""
    losses: dict[int, list[float]] = {}
    for row in read_jsonl(path, error=CheckpointError):
        if row["loss"] is not None:
            losses.setdefault(row["epoch"], []).append(row["loss"])
    return [sum(values) / len(values) for _, values in sorted(losses.items())]
