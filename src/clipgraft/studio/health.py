"""Whether the studio works: somebody draws, database and disk take what is new."""

import threading
import time
from pathlib import Path

from clipgraft.errors import NO_SPACE, is_no_space
from clipgraft.studio.database import Database, UnavailableError
from clipgraft.studio.worker import Worker

SECONDS_BETWEEN_CHECKS = 1.0
"""Whoever asks more often is told what was found last: anybody may ask, without a token."""
ROOM_BYTES = 1 << 20
"""That a disk must take: a picture of 512 x 512 has about half of it."""
PROBE_NAME = ".room.part"


class Health:
    """Looks after database, disk and worker, whoever asks, once a second at most.

    Args:
        home: The studio's folder.
        database: That it writes to.
        worker: Who draws.
    """

    def __init__(self, home: Path, database: Database, worker: Worker):
        self._home, self._database, self._worker = home, database, worker
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
        return self._worker.problem
