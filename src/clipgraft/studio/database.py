"""A SQLite file: checked when it is opened, written through one connection and read through another.

In SQLite's WAL mode who reads never waits for who writes, so a list is quick while a program beside this one
holds the file. What the file or the disk refuses is an `UnavailableError`, which may pass; everything else
that SQLite complains of is a bug of ours.
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
"""So long another program may hold the file before a request is answered that it is locked."""
MAGIC = b"SQLite format 3\0"
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
    """A file with tables.

    Args:
        path: The file; created if missing.
        schema: Its tables and indexes, as SQL that leaves alone what is there.
        upgrade: SQL that brings a database to the schema, by the tables that it has.

    Raises:
        CheckpointError: If the file is no such database, damaged, or cannot be opened; it is left as it is.
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
        """Close the file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a query; of changes, those of transactions that have ended.

        Raises:
            UnavailableError: If the file cannot be read.
        """
        with self._read_lock, self._translated():
            return self._reader.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """Give a function that runs SQL; all of it counts, or nothing. One within another joins it.

        Raises:
            UnavailableError: If the file cannot be written.
        """
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
        """Look whether the file is there and can be read and written now.

        Raises:
            UnavailableError: If not; says why.
        """
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
            pass  # begun and ended: nobody else holds it

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _check(self, schema: str, upgrade: Mapping[frozenset[str], str]) -> None:
        """Refuse a database of other tables before anything is written to it, and a damaged one."""
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
            if code is None or code & 0xFF not in REFUSALS:  # the rest of a code is detail
                raise
            raise self._refusal(code & 0xFF, str(error)) from error

    def _refusal(self, code: int, error: str = "") -> UnavailableError:
        return UnavailableError(REFUSALS[code].format(name=self.path.name, error=error))


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Names of the columns by table."""
    tables = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
    return {
        name: {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(name)})")}
        for (name,) in tables.fetchall()
    }


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


SECONDS_BETWEEN_CHECKS = 1.0
"""Whoever asks more often is told what was found last: anybody may ask, without a token."""
ROOM_BYTES = 1 << 20
"""That a disk must take: an image of 512 x 512 has about half of it."""
PROBE_NAME = ".room.part"


class Health:
    """Looks after database, disk and worker, whoever asks, once a second at most.

    Args:
        home: The studio's folder.
        database: That it writes to.
        worker_problem: Says what keeps the worker from drawing, if anything.
    """

    def __init__(self, home: Path, database: Database, worker_problem: Callable[[], str]):
        self._home, self._database, self._worker_problem = home, database, worker_problem
        self._lock = threading.Lock()
        self._checked, self._found = float("-inf"), ""

    def problem(self) -> str:
        """Say what is wrong now; empty if nothing."""
        with self._lock:
            if time.monotonic() - self._checked > SECONDS_BETWEEN_CHECKS:
                self._found = self._look()
                self._checked = time.monotonic()
            return self._found

    def _look(self) -> str:
        try:
            self._database.check_usable()
            (self._home / PROBE_NAME).write_bytes(bytes(ROOM_BYTES))
        except UnavailableError as error:
            return str(error)
        except OSError as error:
            return (
                f"{NO_SPACE}; free some"
                if is_no_space(error)
                else f"nothing can be written: {error.strerror}"
            )
        finally:
            (self._home / PROBE_NAME).unlink(missing_ok=True)
        return self._worker_problem()
