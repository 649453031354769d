"""SQLite file with a writing and a reading connection; health checks.

In WAL mode a reader never waits for a writer, so lists stay quick while another program holds the file.
What the file or the disk refuses is an `UnavailableError`, which may pass; any other SQLite error is our bug.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipgraft.errors import NO_SPACE, CheckpointError, is_no_space

BUSY_SECONDS = 0.5
"""How long another program may hold the file before a request is told that it is locked."""
MAGIC = b"SQLite format 3\0"
SECONDS_BETWEEN_CHECKS = 1.0
"""Of the health, which anybody may ask for, without a token."""
ROOM_BYTES = 1 << 20
"""Free space that counts as healthy; an image of 512 x 512 takes about half of it."""
PROBE_NAME = ".room.part"
REFUSALS = {
    sqlite3.SQLITE_BUSY: "{name} is locked by another program; close that program",
    sqlite3.SQLITE_LOCKED: "{name} is locked by another program; close that program",
    sqlite3.SQLITE_FULL: NO_SPACE + "; free some",
    sqlite3.SQLITE_IOERR: "{name} cannot be read or written ({error}); look at the disk",
    sqlite3.SQLITE_CANTOPEN: "{name} cannot be opened; look at its rights, and whether it is a file",
    sqlite3.SQLITE_PERM: "{name} cannot be opened; look at its rights",
    sqlite3.SQLITE_READONLY: "{name} cannot be written; look at its rights",
    sqlite3.SQLITE_CORRUPT: "{name} is damaged ({error}); stop the studio and move the file away",
    sqlite3.SQLITE_NOTADB: "{name} is no SQLite database; move it away, and a new one is made",
}
"""What the file system or another program does to us, by SQLite's result code."""
Run = Callable[..., sqlite3.Cursor]


class UnavailableError(RuntimeError):
    """The database cannot be used now; the message says why."""


class Database:
    """A file with tables; methods raise `UnavailableError` if it cannot be used.

    Args:
        path: Created if missing.
        schema: SQL that creates missing tables and indexes.
        upgrade: Names of all tables of an earlier version -> SQL that brings them to the schema.

    Raises:
        CheckpointError: If the file is another database, damaged, or cannot be opened; it is not changed.
    """

    def __init__(self, path: Path, schema: str, upgrade: Mapping[frozenset[str], str] = MappingProxyType({})):
        self.path = path
        self._write_lock, self._read_lock = threading.RLock(), threading.Lock()
        try:
            with self._translated():
                self._writer = self._connect()
                self._check(schema, upgrade)
                self._writer.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + schema)
                self._reader = self._connect()
        except UnavailableError as error:
            raise CheckpointError(f"the studio's queue cannot be used: {error}") from error.__cause__
        self._inode = path.stat().st_ino

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._writer.total_changes

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Return a query's rows, as of the last finished transaction."""
        with self._read_lock, self._translated():
            return self._reader.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """Give a function that runs SQL atomically; nested transactions join the outer."""
        with self._write_lock:
            if self._writer.in_transaction:
                yield self._run
                return
            with self._translated():
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._run
                    self._writer.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                        self._writer.execute("ROLLBACK")
                    raise

    def check_usable(self) -> None:
        """Raise an `UnavailableError` unless the file can be read and written."""
        try:
            with self.path.open("rb") as file:
                begins_well = file.read(len(MAGIC)) == MAGIC
            is_the_same = self.path.stat().st_ino == self._inode
        except OSError as error:
            raise UnavailableError(
                f"{self.path.name} is gone ({error.strerror}); restart the studio"
            ) from error
        if not begins_well:
            raise self._refusal(sqlite3.SQLITE_NOTADB)
        if not is_the_same:
            raise UnavailableError(f"{self.path.name} was replaced by another file; restart the studio")
        self.read("SELECT name FROM sqlite_schema")
        with self.transaction():
            pass  # succeeds only if nobody else holds the file

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _check(self, schema: str, upgrade: Mapping[frozenset[str], str]) -> None:
        """Refuse a damaged or foreign database before anything is written."""
        found = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._refusal(sqlite3.SQLITE_CORRUPT, " ".join(found.split()))
        if sql := upgrade.get(frozenset(_columns(self._writer))):
            self._writer.executescript(sql)
        own = sqlite3.connect(":memory:")
        own.executescript(schema)
        expected, found = _columns(own), _columns(self._writer)
        own.close()
        if found and found != expected:
            raise UnavailableError(
                f"{self.path.name} is another program's database, or another version's (its tables are "
                f"{', '.join(sorted(found))}); move it away, and a new one is made"
            )

    def _run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._writer.execute(sql, values)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None and str(error).startswith("Could not decode"):  # a text that is not UTF-8
                code = sqlite3.SQLITE_CORRUPT
            if code is None or code & 0xFF not in REFUSALS:  # the higher bits are detail
                raise
            raise self._refusal(code & 0xFF, str(error)) from error

    def _refusal(self, code: int, error: str = "") -> UnavailableError:
        return UnavailableError(REFUSALS[code].format(name=self.path.name, error=error))


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Table -> names of its columns."""
    sql = (
        "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c "
        "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
    )
    columns: dict[str, set[str]] = {}
    for table, column in connection.execute(sql):
        columns.setdefault(table, set()).add(column)
    return columns


class Health:
    """Checks database, disk and worker, once a second at most."""

    def __init__(self, home: Path, database: Database, worker_problem: Callable[[], str]):
        self._home, self._database, self._worker_problem = home, database, worker_problem
        self._lock = threading.Lock()
        self._checked, self._found = float("-inf"), ""

    def problem(self) -> str:
        """Return what is wrong; empty if nothing."""
        with self._lock:
            if time.monotonic() - self._checked > SECONDS_BETWEEN_CHECKS:
                self._found = self._check()
                self._checked = time.monotonic()
            return self._found

    def _check(self) -> str:
        try:
            self._database.check_usable()
            (self._home / PROBE_NAME).write_bytes(bytes(ROOM_BYTES))
        except UnavailableError as error:
            return str(error)
        except OSError as error:
            full = is_no_space(error)
            return f"{NO_SPACE}; free some" if full else f"nothing can be written: {error.strerror}"
        finally:
            (self._home / PROBE_NAME).unlink(missing_ok=True)
        return self._worker_problem()
