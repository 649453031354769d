"""A run's folder: lock, replacement of an older run."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from clipgraft.errors import UserError, some_of
from clipgraft.files import LONE_SURROGATE, clear_parts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RECIPE_NAME = "recipe.toml"
LOCK_NAME = "run.lock"
RESOURCES_NAME = "resources.json"
LOCK_SECONDS = 0.5
"""Timeout of locking, longer than `is_locked` holds a lock (a guess)."""
OLD_RUN_NAME = ".overwritten"
"""The run being replaced by `--overwrite`, until the new one has a result."""
MOVING_NAME = ".overwritten.moving"
"""The same while it is being moved."""

BEFORE_RESULTS = frozenset(
    {RECIPE_NAME, LOCK_NAME, "environment.json", RESOURCES_NAME, "data.json", "started_from.json"}
)
"""Files written before the first result."""
CONTENT = (
    *BEFORE_RESULTS,
    *("metrics.json", "log.jsonl", "validation.jsonl", "evaluations.jsonl", "best.safetensors"),
    "trackers.json",
    *("checkpoints", "tensorboard", "clip", "graft", "text_encoder", "samples", "previews", "states.bin"),
    *("loss.*", "interpolation.*"),
    *("finetune", "new_words", "bridge_before", "bridge", "refine", "distill", "generate", "evaluate"),
    "words.txt",
    *("vae", "unet", "probe", "flatland", "latents.safetensors", "drawn"),
    *("evaluation.json", "pictures", "variants", "features", "nearest"),
    *("report.html", "report.json", "model_card.md", "figures", "comparison.*"),
    *(".*.part", ".*.replaced", OLD_RUN_NAME, MOVING_NAME),
)
"""All names at the top of a run's folder, in this version and older ones."""


@contextmanager
def run_folder(path: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Lock a run's folder for the block.

    With `overwrite` the old run is moved aside; `discard_old_run`, or the block's end, deletes it. If the
    block raises before it has a result, the old run is put back; after a kill, by the next command.

    Raises:
        UserError: If the folder is in use, holds foreign files, or holds a run and neither flag is set.
    """
    # Also before locking, so that a foreign folder gets no lock file.
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
    """Create and lock a folder for the block.

    Raises:
        UserError: If it is a file, its name is not UTF-8, or it is already locked, even by this process.
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


def is_locked(path: Path) -> bool:
    """Whether any process holds a run's folder; changes nothing there."""
    try:
        # Non-blocking, in case of a pipe.
        descriptor = os.open(path / LOCK_NAME, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        else:
            FileLock(path / LOCK_NAME, timeout=0, thread_local=False).acquire().lock.release()
    except (BlockingIOError, Timeout):
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def refuse_inputs_within(out: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse an out folder that holds an input or lies in one.

    The input could be replaced, or results read as input.

    Args:
        out: Folder for results.
        inputs: By option or setting; names that are not paths here (hub ids) are ignored.
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


def discard_old_run(path: Path) -> None:
    """Delete the run being overwritten in a folder or its parent."""
    for place in (path, path.parent):
        _delete(place / OLD_RUN_NAME)


def unknown_names(path: Path) -> list[str]:
    """Return foreign names in a folder."""
    return sorted(item.name for item in path.iterdir() if not _is_known(item.name))


def _is_known(name: str) -> bool:
    return any(fnmatch(name, known) for known in CONTENT)


def _refuse_other_content(path: Path, resume: bool, overwrite: bool) -> None:
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
        raise UserError(
            f"{path} holds what no run wrote ({some_of(unknown)}), so --overwrite leaves it alone; move "
            "that away, or name another folder with --out"
        )


def _move_aside(path: Path) -> None:
    # Within the folder, so always on the same file system.
    items = [item for item in path.iterdir() if item.name != LOCK_NAME]
    if not items:
        return
    moving = path / MOVING_NAME
    moving.mkdir()
    for item in items:
        item.rename(moving / item.name)
    # Only from here on does the folder hold the new run.
    moving.rename(path / OLD_RUN_NAME)


def _settle(path: Path) -> None:
    """Put an old run back, unless the new one has a result."""
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
    """Whether a run has made a step or written weights."""
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
