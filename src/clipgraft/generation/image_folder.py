"""A folder of pictures: what lies there already, each picture whole, and the list of them in images.json."""

import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any

from clipgraft.console import say
from clipgraft.errors import DataError, UserError
from clipgraft.files import file_sha256, fingerprint, parse_json, read_json, write_json
from clipgraft.generation.metadata import save_png
from clipgraft.generation.params import Job
from clipgraft.generation.pipeline import Picture

LIST_NAME = "images.json"
OWN_NAMES = ("images.json", "images-*.jsonl", "preview.png", "grid.png", "grid-*.png", "grid.html")
"""Files that drawing replaces; a picture never replaces one that it was not drawn over before."""


class Gallery:
    """Pictures in a folder, each with a row that says what it was drawn from.

    Rows are appended to `images-<process>.jsonl` as pictures are finished, so that a killed process loses
    none, and become `images.json` at the end.

    Args:
        folder: Made where there is none.
        process: Number of this process among several that write there.
        with_metadata: Whether the pictures tell in their files how they were drawn.

    Raises:
        ValueError: If nothing can be written there.
    """

    def __init__(self, folder: Path, *, process: int = 0, with_metadata: bool = True):
        self.folder, self.with_metadata = folder, with_metadata
        self._lines = folder / f"images-{process}.jsonl"
        _make_writable(folder)
        _end_torn_line(self._lines)
        self._listed = _read_list(folder / LIST_NAME, is_told=process == 0)
        self._known = {row["file"]: row for row in self._read_rows()}

    def name_files(self, wanted: Iterable[str], jobs: Sequence[Job], models: dict[str, Any]) -> list[str]:
        """Decide where each job's picture goes: where it lies already, else the first place that is free.

        What lies there and was not drawn from the same job by the same models stays: the number behind the
        name counts up past it. To be called before anything is drawn.

        Args:
            wanted: Path within the folder of each job, for the case that nothing lies there.
            jobs: What is to be drawn.
            models: Of their metadata.
        """
        files: dict[str, None] = {}
        for file, job in zip(wanted, jobs, strict=True):
            files[self._own_or_free(file, _key(job, models), files)] = None
        return list(files)

    def _own_or_free(self, wanted: str, key: str, taken: Container[str]) -> str:
        free = ""
        for number in count(1):
            file = wanted if number == 1 else f"{wanted.removesuffix('.png')}_{number}.png"
            if file in taken:
                continue
            row, is_there = self._known.get(file), (self.folder / file).exists()
            if row is not None and row.get("key") == key:
                return file
            free = free or ("" if is_there else file)
            if row is None and not is_there:
                break
        return free

    def finished(self, file: str, job: Job, models: dict[str, Any]) -> dict[str, Any] | None:
        """Row of a picture that is there, whole, of the same job and models, and alike in having metadata."""
        row = self._known.get(file)
        if row is None or row.get("key") != _key(job, models) or row["status"] not in ("ok", "blocked"):
            return None
        if row.get("with_metadata") != self.with_metadata:
            return None
        path = self.folder / file
        is_whole = row["status"] == "blocked" or (path.is_file() and file_sha256(path) == row["sha256"])
        return row if is_whole else None

    def add(self, file: str, column: str, picture: Picture, models: dict[str, Any]) -> dict[str, Any]:
        """Write a picture that is one, and its row.

        Args:
            file: Path within the folder.
            column: What is compared, where several text encoders draw the same.
            picture: What to write; one that failed or was blocked gets a row alone.
            models: Of its metadata.
        """
        path = self.folder / file
        row = {
            "file": file,
            "column": column,
            **picture.job.as_record(),
            "height": picture.image.height,
            "width": picture.image.width,
            "status": picture.status,
            "notes": list(picture.notes),
            "with_metadata": self.with_metadata,
            "key": _key(picture.job, models),
        }
        if picture.status == "ok":
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(picture.image, path, picture.metadata if self.with_metadata else None)
            row["sha256"] = file_sha256(path)
        else:
            path.unlink(missing_ok=True)
        with self._lines.open("a", encoding="utf-8") as file_:
            file_.write(json.dumps(row, ensure_ascii=False) + "\n")
        return row

    def write_list(self, files: Iterable[str]) -> list[dict[str, Any]]:
        """Write `images.json` of all rows that any process left, and give those of `files` in their order."""
        rows = {row["file"]: row for row in self._read_rows()}
        listed = [rows.pop(file) for file in dict.fromkeys(files) if file in rows]
        write_json(self.folder / LIST_NAME, [*listed, *rows.values()])
        for path in self.folder.glob("images-*.jsonl"):
            path.unlink()
        return listed

    def _read_rows(self) -> list[dict[str, Any]]:
        """All rows, a later one of a file in the place of an earlier; lines that are not whole are none."""
        rows = list(self._listed)
        for path in sorted(self.folder.glob("images-*.jsonl")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            rows += filter(None, map(_parse_row, lines))
        return rows


def _read_list(path: Path, *, is_told: bool) -> list[dict[str, Any]]:
    """Rows of a list; of a damaged one those that can still be read, which is said."""
    if not path.is_file():
        return []
    try:
        found = read_json(path, list)
        rows, problem = list(filter(_is_row, found)), ""
        if len(rows) < len(found):
            problem = f"{len(found) - len(rows)} rows are none of a picture"
    except DataError as error:
        rows, problem = list(_whole_rows(path)), str(error)
    if problem and is_told:
        say(f"{path} is damaged ({problem}): {len(rows)} rows are kept, the other pictures are drawn again")
    return rows


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a list that is no JSON as a whole, laid out as `write_json` does: braces two spaces in."""
    lines: list[str] = []
    for line in path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n"):
        if line == "  {":
            lines.clear()
        lines.append(line)
        if line.rstrip(",") == "  }":
            row = _parse_row("\n".join(lines).rstrip(","))
            if row:
                yield row


def _parse_row(text: str) -> dict[str, Any] | None:
    with suppress(DataError):
        row: dict[str, Any] = parse_json(text, LIST_NAME)
        return row if _is_row(row) else None
    return None


def _is_row(row: Any) -> bool:
    """Whether a row has what is read of it here; the rest is for people."""
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("file", "status")):
        return False
    return row["status"] != "ok" or isinstance(row.get("sha256"), str)


def _key(job: Job, models: dict[str, Any]) -> str:
    return fingerprint(job.as_record(), models)


def _end_torn_line(path: Path) -> None:
    """A process that was killed while it wrote left half a row: the next one begins on a line of its own."""
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def refuse_replacing(folder: Path, inputs: Iterable[Path]) -> None:
    """Refuse to read what drawing into a folder replaces.

    Raises:
        UserError: Names the file.
    """
    for path in inputs:
        real = path.resolve()
        if real.parent == folder.resolve() and any(fnmatch(real.name, name) for name in OWN_NAMES):
            raise UserError(f"{path} would be replaced; name another folder with --out, or rename the file")


def _make_writable(folder: Path) -> None:
    """Find out before anything is loaded whether pictures can be written."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"out folder {folder} cannot be written ({reason}); name another with --out"
        ) from error
