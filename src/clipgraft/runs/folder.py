"""A run's folder: its lock, what it may replace, and the resources used in it."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from clipgraft.errors import UserError
from clipgraft.files import LONE_SURROGATE, clear_parts, read_json, write_json

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

RECIPE_NAME = "recipe.toml"
LOCK_NAME = "run.lock"
RESOURCES_NAME = "resources.json"
LOCK_SECONDS = 0.5
"""How long to wait for a lock: longer than `is_at_work` holds it (guess)."""
OLD_RUN_NAME = ".overwritten"
"""The run that an `--overwrite` replaces, until the new one has its first result."""
MOVING_NAME = ".overwritten.moving"
"""The same while it is moved there or back."""

BEFORE_RESULTS = frozenset(
    {RECIPE_NAME, LOCK_NAME, "environment.json", "resources.json", "data.json", "started_from.json"}
)
"""Files that a command writes before the first result of its own."""
CONTENT = (
    *BEFORE_RESULTS,
    *("metrics.json", "log.jsonl", "evaluations.jsonl", "best.safetensors", "checkpoints", "tensorboard"),
    *("clip", "graft", "samples", "previews", "states.bin", "loss.*", "interpolation.*"),
    *("finetune", "bridge_before", "bridge", "refine", "generate", "evaluate"),
    *("vae", "unet", "probe", "flatland", "latents.safetensors"),
    *("evaluation.json", "variants", "pictures", "features", "nearest"),
    *("report.html", "report.json", "model_card.md", "figures", "comparison.*"),
    *(".*.part", ".*.replaced", OLD_RUN_NAME, MOVING_NAME),
)
"""Names of all that commands write at the top of a run's folder."""
SHOWN_NAMES = 3


@contextmanager
def run_folder(path: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Hold a run's folder while a command works in it.

    With `overwrite` the earlier run is moved aside, and deleted by `let_go` or when the block ends. Where the
    block raises before it has written a result, the earlier run is put back; where the process was killed
    before, the next command in the folder does so.

    Args:
        path: The folder; created if missing.
        resume: Go on in a folder that holds a run, or nothing.
        overwrite: Replace the run that the folder holds.

    Raises:
        UserError: If the folder holds something and neither was asked for, holds files that no run wrote, or
            another process is at work in it.
    """
    # Before the lock too: a folder of another kind gets no lock file.
    _refuse_other_content(path, resume, overwrite)
    with hold_folder(path):
        _refuse_other_content(path, resume, overwrite)
        _settle(path)
        for place in (path, path / "checkpoints"):
            clear_parts(place, stale_seconds=0)
        try:
            if overwrite and not resume:
                _move_aside(path)
            yield path
        except BaseException:
            _settle(path)
            raise
        _delete(path / OLD_RUN_NAME)


@contextmanager
def hold_folder(path: Path) -> Iterator[Path]:
    """Hold a folder: no other process does so until the block ends, or this process does.

    Raises:
        UserError: If it is a file, has a name that is not UTF-8, or another process holds it.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"out folder {path} is a file; name another with --out")
    if LONE_SURROGATE.search(str(path.absolute())):
        raise UserError(f"the name of the out folder {path} is not UTF-8; name another with --out")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK_NAME, timeout=LOCK_SECONDS, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is at work in {path} (it holds {path / LOCK_NAME}); wait for it, or name "
            "another folder with --out"
        ) from None
    try:
        yield path
    finally:
        lock.release()


def is_at_work(path: Path) -> bool:
    """Whether a process, this one or another, holds a run's folder; changes nothing there."""
    try:
        # Not blocking: the name may be a pipe's.
        descriptor = os.open(path / LOCK_NAME, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if fcntl is None:
            return _is_locked(path)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _is_locked(path: Path) -> bool:
    lock = FileLock(path / LOCK_NAME, timeout=0, thread_local=False)
    try:
        with lock:
            return False
    except (Timeout, OSError):
        return True


def refuse_inputs_within(out: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse an out folder that holds, or lies in, what a command reads: it could replace or delete it.

    Args:
        out: Where the command writes.
        inputs: By option or setting, what it reads; what is not there (a hub id, say) is let be.

    Raises:
        UserError: Names the input and the folder.
    """
    place = out.resolve()
    for name, given in inputs.items():
        path = Path(given).resolve() if given else None
        if path is None or not path.exists():
            continue
        if path == place or place in path.parents:
            raise UserError(
                f"{name} {given} lies in the out folder {out}, where it could be replaced or deleted; name "
                "another folder with --out"
            )
        if path in place.parents:
            raise UserError(
                f"the out folder {out} lies in {name} {given}, where results would be read as input; name "
                "another with --out"
            )


def let_go(path: Path) -> None:
    """Delete the run that the one at work in a folder, or in a stage's folder below, replaces."""
    for place in (path, path.parent):
        _delete(place / OLD_RUN_NAME)


def unknown_names(path: Path) -> list[str]:
    """Names in a folder that no command of a run writes."""
    names = sorted(item.name for item in path.iterdir())
    return [name for name in names if not _is_known(name)]


def _is_known(name: str) -> bool:
    return any(fnmatch(name, known) for known in CONTENT)


def _refuse_other_content(path: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with content, unless it is a run's and what to do with it was said."""
    names = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if names <= {LOCK_NAME}:
        return
    if not (resume or overwrite):
        raise UserError(
            f"{path} already holds files; add --resume or --overwrite, or name another with --out"
        )
    holds_run = names & {RECIPE_NAME, OLD_RUN_NAME, MOVING_NAME} or (resume and names <= BEFORE_RESULTS)
    if not holds_run:
        raise UserError(
            f"{path} holds no run (no {RECIPE_NAME}), so it is left alone; name another folder with --out"
        )
    unknown = unknown_names(path)
    if overwrite and not resume and unknown:
        shown = ", ".join(unknown[:SHOWN_NAMES]) + (", ..." if len(unknown) > SHOWN_NAMES else "")
        raise UserError(
            f"{path} holds what no run wrote ({shown}), so --overwrite leaves it alone; move that away, or "
            "name another folder with --out"
        )


def _move_aside(path: Path) -> None:
    """Move the old run within its folder: always the same file system, however the folder is mounted."""
    items = [item for item in path.iterdir() if item.name != LOCK_NAME]
    if not items:
        return
    moving = path / MOVING_NAME
    moving.mkdir()
    for item in items:
        item.rename(moving / item.name)
    # From here on, and not before, the folder holds the new run.
    moving.rename(path / OLD_RUN_NAME)


def _settle(path: Path) -> None:
    """Decide between the old run and the new one: the old one is put back unless the new one has a result."""
    old, moving = path / OLD_RUN_NAME, path / MOVING_NAME
    if old.is_dir():
        if _has_result(path):
            _delete(old)
            return
        for item in path.iterdir():
            if item.name not in (LOCK_NAME, OLD_RUN_NAME) and _is_known(item.name):
                _delete(item)
        old.rename(moving)
    if moving.is_dir():
        for item in list(moving.iterdir()):
            _delete(path / item.name)
            item.rename(path / item.name)
        moving.rmdir()


def _has_result(path: Path) -> bool:
    """Whether a new run has made a step or written weights; every stage that is worth keeping has."""
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            is_result = name == "log.jsonl" or fnmatch(name, "[!.]*.safetensors")
            if is_result and (Path(folder) / name).stat().st_size:  # an empty log was only opened
                return True
    return False


def _delete(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


@contextmanager
def recorded_resources(folder: Path) -> Iterator[None]:
    """Write `resources.json` when the block ends, however it ends.

    Keys: `seconds`, `processor_seconds` (all cores and workers), `peak_memory_bytes` and, with a GPU,
    `peak_gpu_memory_bytes`. A resumed run adds its seconds to those in the file, and keeps the higher peak.
    """
    path = folder / RESOURCES_NAME
    earlier = _read_resources(path)
    begun, processor_begun = time.perf_counter(), _processor_seconds()
    try:
        yield
    finally:
        used: dict[str, float] = {
            "seconds": time.perf_counter() - begun,
            "processor_seconds": _processor_seconds() - processor_begun,
        }
        used = {key: round(value + earlier.get(key, 0), 1) for key, value in used.items()}
        used |= {key: max(value, earlier.get(key, 0)) for key, value in _peak_memory().items()}
        if folder.is_dir():  # a stage may have refused before it made its folder
            write_json(path, used)


def _read_resources(path: Path) -> dict[str, float]:
    try:
        values = read_json(path)
    except (OSError, UserError):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _processor_seconds() -> float:
    if resource is None:
        return time.process_time()
    of_all = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in of_all)


def _peak_memory() -> dict[str, int]:
    peak = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak
