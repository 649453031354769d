"""Log of a run (`log.jsonl`) and checksums of its rows."""

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from clipgraft.errors import CheckpointError
from clipgraft.files import atomic_write, parse_json, to_json

LOG_NAME = "log.jsonl"


class RowsChecksum(NamedTuple):
    """Number and checksum of a file's first rows."""

    num_rows: int
    sha256: str


NO_ROWS = RowsChecksum(0, hashlib.sha256().hexdigest())


class RunLogger:
    """Logger of one row per optimizer step, also across resumes.

    Args:
        run_dir: Gets `log.jsonl`; None = keep the losses in memory.
        step: Steps already made; later rows are removed.
    """

    def __init__(self, run_dir: Path | None, *, step: int = 0):
        self._losses: dict[int, list[float]] = {}
        self._file = None
        if run_dir is None:
            return
        self._path = run_dir / LOG_NAME
        rows = read_rows(self._path)[:step]
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._path, on_disk=True) as temporary:
            temporary.write_bytes(b"".join(rows))
        self._digest = hashlib.sha256(b"".join(rows))
        self._num_rows = len(rows)
        for row in rows:
            self._add_loss(parse_json(row.decode(), str(self._path), error=CheckpointError))
        # Unbuffered, so that bytes refused by a full disk are not written again on closing.
        self._file = self._path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Append a step's row; NaN and infinity become null.

        Raises:
            OSError: If there is no space left.
        """
        self._add_loss(row)
        if self._file is None:
            return
        rest = line = as_line(row)
        try:
            while rest:  # the system may write a part and refuse the rest at the next call
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._digest.update(line)
        self._num_rows += 1

    def sync(self) -> RowsChecksum:
        """Flush the rows to disk for a checkpoint; return their checksum."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        return RowsChecksum(self._num_rows, self._digest.hexdigest())

    def epoch_mean_loss(self) -> list[float]:
        """Return the mean finite loss of each epoch."""
        return [sum(losses) / len(losses) for _, losses in sorted(self._losses.items())]

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _add_loss(self, row: dict[str, Any]) -> None:
        if row["loss"] is not None and math.isfinite(row["loss"]):
            self._losses.setdefault(row["epoch"], []).append(row["loss"])


def as_line(row: dict[str, Any]) -> bytes:
    """Return a row as a line of JSON."""
    return to_json(row, indent=None).encode() + b"\n"


def read_rows(path: Path) -> list[bytes]:
    """Read a file's lines with their ends; [] without a file."""
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def checksum_of_rows(rows: Iterable[bytes]) -> RowsChecksum:
    """Return the number and checksum of rows."""
    rows = list(rows)
    return RowsChecksum(len(rows), hashlib.sha256(b"".join(rows)).hexdigest())


def refuse_other_rows(path: Path, expected: RowsChecksum) -> None:
    """Refuse a file not beginning with the rows recorded in a checkpoint.

    Raises:
        CheckpointError: If rows were lost or changed.
    """
    rows = read_rows(path)[: expected.num_rows]
    if len(rows) < expected.num_rows:
        raise CheckpointError(
            f"{path} has {len(rows)} of its {expected.num_rows} rows: it was lost or cut; restore it"
        )
    if checksum_of_rows(rows) != expected:
        raise CheckpointError(
            f"{path} was damaged or changed in its first {expected.num_rows} rows; restore it"
        )
