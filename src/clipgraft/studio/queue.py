"""Jobs and their images in SQLite: waiting, running, finished.

A job is what a client asked for at once; jobs are served in the order in which they came. Everything is on
disk before it is answered, so a killed process loses nothing: at the next start a job that was cut off is
`interrupted`, and one that had not begun is still waiting.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgraft.files import fingerprint
from clipgraft.generation.requests import ImageRequest, shared_params
from clipgraft.studio.database import Database, UnavailableError

OPEN = ("queued", "running")
CALLS = ("call", "stream")
"""Kinds of jobs whose client waits for the answer, and is gone without it; a stream has previews."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, client TEXT NOT NULL, kind TEXT NOT NULL,
    state TEXT NOT NULL, error TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL, started REAL, ended REAL
);
CREATE TABLE IF NOT EXISTS images (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL,
    job INTEGER NOT NULL REFERENCES jobs(number) ON DELETE CASCADE, position INTEGER NOT NULL,
    model TEXT NOT NULL, shape TEXT NOT NULL, state TEXT NOT NULL, settings TEXT NOT NULL,
    prompt TEXT NOT NULL, steps INTEGER NOT NULL, notes TEXT NOT NULL DEFAULT '[]',
    seconds REAL, ended REAL
);
CREATE INDEX IF NOT EXISTS images_by_job ON images (job, position);
CREATE INDEX IF NOT EXISTS images_by_state ON images (state, number);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
"""
UPGRADE = {
    frozenset({"jobs", "pictures", "turns"}): """
BEGIN; ALTER TABLE pictures RENAME TO images; DROP TABLE turns;
DROP INDEX pictures_by_job; DROP INDEX pictures_by_state;
UPDATE jobs SET kind = 'generate' WHERE kind = 'draw'; COMMIT;
"""
}
"""SQL by the tables of earlier versions."""
ADDRESS = "substr(client, 1, instr(client || ' ', ' ') - 1)"
"""A client without the name that it gives itself, which follows a space."""


class BusyError(RuntimeError):
    """Too much is waiting; there may be room later."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a job."""

    number: int
    id: str
    job: int
    position: int
    model: str
    shape: str
    """Equal for images that can share a batch."""
    state: str
    """queued, running, cancelled, interrupted, failed; or how sampling ended: ok, failed_nan, ..."""
    settings: dict[str, Any]
    prompt: str
    steps: int
    notes: list[str]
    seconds: float | None
    ended: float | None


@dataclass(frozen=True, slots=True)
class JobRow:
    """What a client asked for at once."""

    number: int
    id: str
    client: str
    kind: str
    """generate, compare, grid, or one of `CALLS`."""
    state: str
    """queued, running, done, failed, cancelled or interrupted."""
    error: str
    created: float
    started: float | None
    ended: float | None


class Queue:
    """All jobs and images of a studio; see `Database` for errors.

    Args:
        path: Created if missing.
        max_waiting: Images that may wait, of all clients together.
        max_jobs_per_client: Open jobs of one address, whatever names it gives itself.
        settings_of: A request as plain values.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_waiting: int = 256,
        max_jobs_per_client: int = 16,
        settings_of: Callable[[ImageRequest], dict[str, Any]] = ImageRequest.as_record,
    ):
        self.max_waiting, self.max_jobs_per_client = max_waiting, max_jobs_per_client
        self.settings_of = settings_of
        self.database = Database(path, SCHEMA, UPGRADE)
        self._read, self._transaction = self.database.read, self.database.transaction

    def add(self, client: str, kind: str, images: Sequence[tuple[str, ImageRequest]]) -> str:
        """Queue models and requests; return the job's id, or raise `BusyError`."""
        assert images
        with self._transaction() as run:
            waiting = run("SELECT count(*) FROM images WHERE state = 'queued'").fetchone()[0]
            if waiting + len(images) > self.max_waiting:
                raise BusyError(
                    f"{waiting} images are waiting and at most {self.max_waiting} may; "
                    f"{len(images)} more do not fit: try again later, or ask for fewer"
                )
            sql = f"SELECT count(*) FROM jobs WHERE {ADDRESS} = ? AND state IN (?, ?)"
            jobs = run(sql, client.partition(" ")[0], *OPEN).fetchone()[0]
            if jobs >= self.max_jobs_per_client:
                raise BusyError(f"{jobs} of your jobs are waiting and at most {self.max_jobs_per_client} may")
            job_id = secrets.token_hex(8)
            number = run(
                "INSERT INTO jobs (id, client, kind, state, created) VALUES (?, ?, ?, 'queued', ?)",
                job_id, client, kind, time.time(),
            ).lastrowid  # fmt: skip
            for position, (model, request) in enumerate(images):
                run(
                    "INSERT INTO images (id, job, position, model, shape, state, settings, prompt, steps) "
                    "VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?)",
                    secrets.token_hex(8), number, position, model, fingerprint(repr(shared_params(request))),
                    json.dumps(self.settings_of(request)), request.prompt, request.num_steps,
                )  # fmt: skip
        return job_id

    def take(self, batch_size: int) -> list[ImageRow]:
        """Start the oldest queued image and others of its shape; return them."""
        with self._transaction() as run:
            oldest = "SELECT shape, model FROM images WHERE state = 'queued' ORDER BY number LIMIT 1"
            sql = f"SELECT * FROM images WHERE state = 'queued' AND (shape, model) = ({oldest})"
            rows = run(f"{sql} ORDER BY number LIMIT ?", batch_size).fetchall()
            # Few sizes, for engines that compile for each batch size.
            del rows[(1 << len(rows).bit_length()) >> 1 :]
            for row in rows:
                run("UPDATE images SET state = 'running' WHERE number = ?", row["number"])
                sql = "UPDATE jobs SET state = 'running', started = coalesce(started, ?) WHERE number = ?"
                run(sql, time.time(), row["job"])
        return [_image(row) for row in rows]

    def finish_image(
        self, number: int, state: str, *, notes: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        """Record how an image ended, unless it was cancelled meanwhile."""
        with self._transaction() as run:
            run(
                "UPDATE images SET state = ?, notes = ?, seconds = ?, ended = ? "
                "WHERE number = ? AND state = 'running'",
                state, json.dumps(list(notes)), seconds, time.time(), number,
            )  # fmt: skip

    def end_job_if_finished(self, number: int) -> bool:
        """End an open job without open images; return whether it ended."""
        with self._transaction() as run:
            sql = "SELECT count(*) FROM images WHERE job = ? AND state IN (?, ?)"
            if run(sql, number, *OPEN).fetchone()[0]:
                return False
            sql = "UPDATE jobs SET state = 'done', ended = ? WHERE number = ? AND state IN (?, ?)"
            return run(sql, time.time(), number, *OPEN).rowcount > 0

    def end_job(self, number: int, state: str, error: str = "") -> bool:
        """End a job and its open images; return whether it was open."""
        with self._transaction() as run:
            sql = "UPDATE jobs SET state = ?, error = ?, ended = ? WHERE number = ? AND state IN (?, ?)"
            ended = run(sql, state, error, time.time(), number, *OPEN).rowcount > 0
            if ended:
                sql = "UPDATE images SET state = ? WHERE job = ? AND state IN (?, ?)"
                run(sql, state, number, *OPEN)
        return ended

    def recover(self, is_written: Callable[[str], bool]) -> list[str]:
        """Settle what the last stop cut off; return ids of interrupted jobs.

        Args:
            is_written: Tells by an image's id whether its file is there; such an image is finished.
        """
        with self._transaction() as run:
            for row in run("SELECT * FROM images WHERE state = 'running'").fetchall():
                if is_written(row["id"]):
                    sql = "UPDATE images SET state = 'ok', ended = ? WHERE number = ?"
                    run(sql, time.time(), row["number"])
            # Whoever waited for the answer of a call is gone with the process.
            cut_off = run(
                "SELECT * FROM jobs WHERE state IN (?, ?) AND (kind IN (?, ?) OR number IN "
                "(SELECT job FROM images WHERE state = 'running'))", *OPEN, *CALLS,
            ).fetchall()  # fmt: skip
            for row in cut_off:
                self.end_job(row["number"], "interrupted", "the studio was stopped while this job was open")
            for row in run("SELECT number FROM jobs WHERE state = 'running'").fetchall():
                self.end_job_if_finished(row["number"])
        return [row["id"] for row in cut_off]

    def job(self, job_id: str) -> JobRow | None:
        rows = self._read("SELECT * FROM jobs WHERE id = ?", job_id)
        return JobRow(**rows[0]) if rows else None

    def job_by_number(self, number: int) -> JobRow:
        return JobRow(**self._read("SELECT * FROM jobs WHERE number = ?", number)[0])

    def jobs(self, limit: int) -> list[JobRow]:
        rows = self._read("SELECT * FROM jobs ORDER BY number DESC LIMIT ?", limit)
        return [JobRow(**row) for row in rows]

    def open_calls(self) -> list[JobRow]:
        rows = self._read("SELECT * FROM jobs WHERE kind IN (?, ?) AND state IN (?, ?)", *CALLS, *OPEN)
        return [JobRow(**row) for row in rows]

    def images_of(self, job_number: int) -> list[ImageRow]:
        rows = self._read("SELECT * FROM images WHERE job = ? ORDER BY position", job_number)
        return [_image(row) for row in rows]

    def image(self, image_id: str) -> ImageRow | None:
        rows = self._read("SELECT * FROM images WHERE id = ?", image_id)
        return _image(rows[0]) if rows else None

    def history(self, search: str = "", *, before: int | None = None, limit: int = 60) -> list[ImageRow]:
        """Return finished images with lower numbers than `before`, newest first.

        Args:
            search: Words that the prompt must contain, in any order and case.
        """
        words = search.split()
        where = " AND prompt LIKE ? ESCAPE '\\'" * len(words)
        patterns = [f"%{_escape_like(word)}%" for word in words]
        sql = f"SELECT * FROM images WHERE state = 'ok' AND number < ?{where} ORDER BY number DESC LIMIT ?"
        return [_image(row) for row in self._read(sql, before or 2**62, *patterns, limit)]

    def count_before(self, job_number: int = 2**62) -> int:
        """Count the open images of earlier jobs; by default of all."""
        sql = "SELECT count(*) FROM images WHERE state IN (?, ?) AND job < ?"
        return self._read(sql, *OPEN, job_number)[0][0]

    def upload_ids(self) -> set[str]:
        """Return the ids of all images' initial images, masks and guides."""
        rows = self._read(
            "SELECT DISTINCT value FROM images, json_tree(iif(json_valid(settings), settings, '{}')) "
            "WHERE key IN ('init_image', 'mask_image', 'image') AND type = 'text'"
        )
        return {row[0] for row in rows}

    def prune(self, max_history: int) -> list[str]:
        """Delete the oldest ended jobs beyond a bound; return their images' ids."""
        with self._transaction() as run:
            count = run("SELECT count(*) FROM images").fetchone()[0]
            ids: list[str] = []
            while count - len(ids) > max_history:
                sql = "SELECT number FROM jobs WHERE state NOT IN (?, ?) ORDER BY number LIMIT 1"
                job = run(sql, *OPEN).fetchone()
                if job is None:
                    break
                ids += [row[0] for row in run("SELECT id FROM images WHERE job = ?", job["number"])]
                run("DELETE FROM jobs WHERE number = ?", job["number"])
        return ids

    def delete_image(self, image_id: str) -> bool:
        """Delete a finished image; return whether there was one."""
        with self._transaction() as run:
            return run("DELETE FROM images WHERE id = ? AND state = 'ok'", image_id).rowcount > 0


def _image(row: sqlite3.Row) -> ImageRow:
    values = {name: row[name] for name in ImageRow.__dataclass_fields__}
    try:
        settings, notes = json.loads(row["settings"]), json.loads(row["notes"])
    except (ValueError, TypeError, RecursionError) as error:
        raise UnavailableError(f"image {row['id']} is damaged in the studio's database") from error
    return ImageRow(**values | {"settings": settings, "notes": notes})


def _escape_like(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
