"""Trainings and data checks, each a process of its own.

Each is a command of `clipgraft`, so whatever happens to it, the studio goes on. One runs at a time. What was
asked for and how it ended is on disk, with the command's output; a process that outlives the studio is found
again at the next start.
"""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from clipgraft.config import to_toml
from clipgraft.device import without_folders
from clipgraft.errors import UserError, one_line, printable
from clipgraft.files import write_bytes, write_json
from clipgraft.runs.folder import BEFORE_RESULTS
from clipgraft.runs.run import Run
from clipgraft.studio.queue import BusyError
from clipgraft.studio.security import TOKEN_VARIABLE
from clipgraft.studio.training_plans import Kind, TrainingPlan

logger = logging.getLogger(__name__)

CHECK: Final = "check"
OPEN_STATES = ("waiting", "running", "stopping")
RESUMABLE = ("stopped", "interrupted", "failed")
USER_ERROR = 2
"""Exit code of a command that says what is wrong; a signal while it imports may become any other."""
KILLED = -9
"""Exit code of a command that SIGKILL ended. Windows has no such signal, nor Python a name for it there."""
SECONDS_BETWEEN_LOOKS = 0.5
"""At a process that an earlier studio started, whose end nobody tells."""
TAIL_BYTES, TAIL_LINES = 8192, 12
"""Of a command's output, shown."""
TAKEN_NAMES = ("studio",)
"""Names in the runs' folder that are no run's."""


HoldDevice = Callable[[str], AbstractContextManager[None]]
"""Called with a training's name."""


class TrainingJob(BaseModel):
    """A training or a check, as it stands on disk."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["check", "finetune", "bridge", "distill"]
    name: str
    """Of the run; of a check, of its data set."""
    data: str = ""
    state: Literal["waiting", "running", "stopping", "done", "stopped", "interrupted", "failed"] = "waiting"
    """stopped: by the user; interrupted: by the studio's end."""
    error: str = ""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    options: tuple[str, ...] = ()
    process_id: int = 0
    process_created: float = 0.0
    """The system's time of its start, which tells it from a later process with that id."""

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def can_resume(self) -> bool:
        return self.kind != CHECK and self.state in RESUMABLE


@dataclass
class _Work:
    """The process at work, and the thread that waits for it."""

    job: TrainingJob
    thread: threading.Thread | None = None
    process: psutil.Process | None = None
    stop_state: Literal["", "stopped", "interrupted"] = ""


class TrainingJobs:
    """All trainings and checks of a studio.

    Args:
        home: Folder of their records and outputs.
        runs_dir: Gets the runs.
        hold_device: Keeps the device free for a training, in a block.
    """

    def __init__(self, home: Path, runs_dir: Path, hold_device: HoldDevice):
        self.home, self.runs_dir, self._hold_device = home, runs_dir, hold_device
        self._lock = threading.RLock()
        self._work: _Work | None = None
        self._jobs: dict[tuple[bool, str], TrainingJob] = {}
        for path in sorted(home.glob("*/*/job.json")):
            try:
                job = TrainingJob.model_validate_json(path.read_bytes())
                self._jobs[job.kind == CHECK, job.name] = job
            except (OSError, ValidationError) as error:
                logger.warning("the studio leaves out a training: %s: %s", path, one_line(error))

    def trainings(self) -> list[TrainingJob]:
        """Return all trainings, newest first."""
        jobs = [job for job in list(self._jobs.values()) if job.kind != CHECK]
        return sorted(jobs, key=lambda job: job.created, reverse=True)

    def training(self, name: str) -> TrainingJob | None:
        return self._jobs.get((False, name))

    def check(self, data: str) -> TrainingJob | None:
        return self._jobs.get((True, data))

    @property
    def current(self) -> TrainingJob | None:
        """The one at work."""
        work = self._work
        return work.job if work else None

    def start_training(self, kind: Kind, name: str, data: str, plan: TrainingPlan) -> TrainingJob:
        """Start a training, whose run gets a new name.

        Raises:
            UserError: If the name is taken.
            BusyError: If another training or a check is at work.
        """
        with self._lock:
            self._refuse_second()
            run = self.runs_dir / name
            if name.lower() in TAKEN_NAMES or (os.path.lexists(run) and not self._failed_early(name)):
                raise UserError(f"name: there is a {name!r} among the runs already; choose another name")
            job = TrainingJob.model_validate(
                {"kind": kind, "name": name, "data": data, "created": time.time(), "options": plan.options}
            )
            folder = self.folder(job)
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / "recipe.toml", to_toml(plan.recipe).encode())
            (folder / "output.log").write_bytes(b"")
            again = ("--overwrite",) if run.is_dir() else ()
            return self._begin(job, self._command(job) + again)

    def resume(self, name: str) -> TrainingJob:
        """Go on with a training that was stopped, interrupted or failed.

        Raises:
            KeyError: If no training has that name.
            UserError: If it cannot go on.
            BusyError: If another training or a check is at work.
        """
        with self._lock:
            job = self._jobs[False, name]
            self._refuse_second()
            if not job.can_resume:
                raise UserError(f"{name} is {job.state}; only what was stopped or failed can go on")
            job = job.model_copy(update={"state": "waiting", "error": "", "ended": None})
            return self._begin(job, (*self._command(job), "--resume"))

    def start_check(self, data: str, folder: Path) -> TrainingJob:
        """Check a data set anew.

        Raises:
            BusyError: If a training or another check is at work.
        """
        with self._lock:
            self._refuse_second()
            job = TrainingJob(kind=CHECK, name=data, data=data, created=time.time())
            place = self.folder(job)
            place.mkdir(parents=True, exist_ok=True)
            for name in ("output.log", "result.json", "sheet.html"):
                (place / name).unlink(missing_ok=True)
            sheet = str(place / "sheet.html")
            return self._begin(job, ("data", "check", str(folder), "--json", "--sheet", sheet))

    def stop(self, job: TrainingJob) -> None:
        """Ask a command to end with its state saved; again, kill it."""
        with self._lock:
            work = self._work
            if work is None or (work.job.kind, work.job.name) != (job.kind, job.name):
                raise UserError(f"{job.name or 'the check'} is not at work")
            self._stop(work, "stopped")

    def recover(self) -> None:
        """Find a process that outlived the last studio; settle all others."""
        for job in list(self._jobs.values()):
            if not job.is_open:
                continue
            process = _find_process(job)
            if process is None or self._work is not None:
                self._settle(job, *self._outcome(job, None, "interrupted"))
            else:
                self._work = _Work(job, process=process)
                self._start_thread(self._work, partial(_wait_for, process))

    def begin_to_stop(self) -> None:
        """Ask the command at work to save its state and end, once."""
        with self._lock:
            if self._work and not self._work.stop_state:
                self._stop(self._work, "interrupted")

    def join(self, timeout: float | None = None) -> None:
        """Wait for the command at work."""
        work = self._work
        if work and work.thread:
            work.thread.join(timeout)

    def folder(self, job: TrainingJob) -> Path:
        """Return the place of a job's record and output."""
        if job.kind == CHECK:
            return self.home / "checks" / hashlib.sha256(job.name.encode()).hexdigest()[:16]
        return self.home / "runs" / job.name

    def tail(self, job: TrainingJob) -> list[str]:
        """Return the last lines of a command's output, without local folders."""
        try:
            with (self.folder(job) / "output.log").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = [printable(without_folders(line)).strip() for line in text.splitlines()]
        return [line for line in lines if line][-TAIL_LINES:]

    def _refuse_second(self) -> None:
        if self._work:
            job = self._work.job
            what = "a data check is" if job.kind == CHECK else f"training {job.name} is"
            raise BusyError(f"{what} at work; wait for its end, or stop it")

    def _failed_early(self, name: str) -> bool:
        """Whether a training from here failed before it had any result."""
        job = self.training(name)
        if job is None or job.state != "failed" or not (self.runs_dir / name).is_dir():
            return False
        return {path.name for path in (self.runs_dir / name).iterdir()} <= BEFORE_RESULTS

    def _command(self, job: TrainingJob) -> tuple[str, ...]:
        recipe, out = self.folder(job) / "recipe.toml", self.runs_dir / job.name
        return (job.kind, "--recipe", str(recipe), "--out", str(out), *job.options)

    def _begin(self, job: TrainingJob, arguments: tuple[str, ...]) -> TrainingJob:
        self._save(job)
        self._work = work = _Work(job)
        self._start_thread(work, partial(self._run, work, arguments))
        return job

    def _start_thread(self, work: _Work, run: Callable[[], int | None]) -> None:
        work.thread = threading.Thread(target=self._supervise, args=(work, run), name="training", daemon=True)
        work.thread.start()

    def _supervise(self, work: _Work, run: Callable[[], int | None]) -> None:
        """Wait for a command, which has the device; record its outcome."""
        try:
            with nullcontext() if work.job.kind == CHECK else self._hold_device(work.job.name):
                code = run()
            outcome = self._outcome(work.job, code, work.stop_state)
        except Exception as error:
            logger.exception("training %s went wrong", work.job.name)
            outcome = "failed", f"{type(error).__name__}: {without_folders(one_line(error))}"
        with self._lock:
            self._settle(work.job, *outcome)
            self._work = None

    def _run(self, work: _Work, arguments: tuple[str, ...]) -> int:
        folder = self.folder(work.job)
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        environment |= {"TQDM_DISABLE": "1"}  # bars of other libraries, which fill the output
        results = folder / ("result.json" if work.job.kind == CHECK else "output.log")
        with (folder / "output.log").open("ab") as log, results.open("ab") as result:
            with self._lock:
                if work.stop_state:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    [sys.executable, "-m", "clipgraft", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=result,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C for the studio is passed on by it, once
                )
                work.process = psutil.Process(process.pid)
                work.job = work.job.model_copy(
                    update={
                        "state": "running",
                        "started": time.time(),
                        "process_id": process.pid,
                        "process_created": work.process.create_time(),
                    }
                )
                self._save(work.job)
            return process.wait()

    def _stop(self, work: _Work, state: Literal["stopped", "interrupted"]) -> None:
        is_second = bool(work.stop_state)
        work.stop_state = work.stop_state or state
        if work.process is not None:
            try:
                if is_second:
                    work.process.kill()
                else:  # not SIGINT, which a studio started in a script's background passes on as ignored
                    work.process.terminate()
            except psutil.NoSuchProcess:
                return  # it has ended meanwhile
        work.job = work.job.model_copy(update={"state": "stopping"})
        self._save(work.job)

    def _outcome(self, job: TrainingJob, code: int | None, stop_state: str) -> tuple[str, str]:
        """Return state and error by an exit code, None if unknown."""
        if code == 0 or (code is None and self._has_finished(job)):
            return "done", ""
        if code is None or (stop_state and code != USER_ERROR):
            is_wanted = stop_state == "stopped"
            return stop_state or "interrupted", "" if is_wanted else "the studio was stopped meanwhile"
        lines = self.tail(job)
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return "failed", errors[-1]
        if code == KILLED:
            return "failed", "it was killed; the machine may have run out of memory"
        return "failed", f"it ended with code {code}" + (f": {lines[-1]}" if lines else "")

    def _has_finished(self, job: TrainingJob) -> bool:
        if job.kind == CHECK:
            return (self.folder(job) / "sheet.html").is_file()
        return Run(self.runs_dir / job.name).is_finished

    def _settle(self, job: TrainingJob, state: str, error: str) -> None:
        ended = {"state": state, "error": error, "ended": time.time(), "process_id": 0}
        job = job.model_copy(update=ended)
        self._jobs[job.kind == CHECK, job.name] = job
        try:
            self._save(job)
        except OSError as failure:  # the next start finds the process gone
            logger.warning("the end of training %s cannot be recorded: %s", job.name, one_line(failure))

    def _save(self, job: TrainingJob) -> None:
        write_json(self.folder(job) / "job.json", job.model_dump())
        self._jobs[job.kind == CHECK, job.name] = job


def _find_process(job: TrainingJob) -> psutil.Process | None:
    try:
        process = psutil.Process(job.process_id) if job.process_id else None
        return process if process and process.create_time() == job.process_created else None
    except psutil.Error:
        return None


def _wait_for(process: psutil.Process) -> None:
    """Wait for a process that is no child of this one."""
    with suppress(psutil.NoSuchProcess):  # it may end between the two questions
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(SECONDS_BETWEEN_LOOKS)
