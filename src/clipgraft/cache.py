"""The cache folder: what can be made again, kept below a size.

`data.cache_gb` bounds crops, latents, features, verdicts, compiled networks, listings and fetched shards
together. The least recently used files are evicted first, and never those that a running process refers to:
each process keeps a record of them, locked for as long as it lives.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from filelock import FileLock, Timeout

from clipgraft.errors import UserError
from clipgraft.files import atomic_write, clear_parts
from clipgraft.settings import DataSettings

BOUNDED = ("compiled", "crops", "damage", "features", "latents", "listings", "shards")
"""Folders of the cache that are bounded; others hold flatland8k, converted networks and measured times."""
GIGABYTE = 10**9

_bound_bytes = round(DataSettings().cache_gb * GIGABYTE)
_thread = threading.Lock()


class CachedFile:
    """A file of the cache, not evicted while a process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _thread:
            _HELD.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (type(self), self.path)


_HELD: WeakSet[CachedFile] = WeakSet()
F = TypeVar("F", bound=CachedFile)


class _Found(NamedTuple):
    """A file in the bounded folders."""

    used_at: float
    """Time of its last use."""
    num_bytes: int
    path: str


def cache_dir() -> Path:
    """Return the cache folder, by the XDG convention.

    Raises:
        UserError: If there is neither `XDG_CACHE_HOME` nor a home folder, as in a container under a bare id.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "clipgraft"
    except RuntimeError as error:
        raise UserError(
            "no home folder to keep a cache in; set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def bound_cache(gigabytes: float) -> None:
    """Set this process's bound of the cache; evict what is beyond."""
    global _bound_bytes
    _bound_bytes = round(gigabytes * GIGABYTE)
    make_room(0)


def cache_bound() -> int:
    """Return the bound of the cache in bytes."""
    return _bound_bytes


def cache_size() -> int:
    """Return the bytes of all files that are bounded."""
    return sum(file.num_bytes for file in _files())


def cached_file(kind: str, name: str, make: Callable[[Path], None]) -> CachedFile:
    """Return a file of the cache; make it if missing.

    Its time of modification is that of its last use. Threads and processes that need it wait for the one
    that makes it.

    Args:
        kind: Its folder; in `BOUNDED` if it may be evicted.
        name: Covers everything that the file depends on.
        make: Writes the file at a path.
    """
    (file,) = hold([CachedFile(cache_dir() / kind / name)])
    if file.path.is_file():
        touch(file.path)
        return file
    file.path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(file.path.parent)
    locks = cache_dir() / "in_use"
    locks.mkdir(exist_ok=True)
    clear_parts(locks)
    with FileLock(locks / f".{kind}-{name}.part"):  # cleared as partial files are
        if not file.path.is_file():
            with atomic_write(file.path) as part:
                make(part)
    make_room(0)
    return file


def touch(path: Path) -> None:
    """Note the use of a cached file, as its time of modification."""
    with suppress(OSError):  # a cache that can only be read
        os.utime(path)


def hold(files: list[F]) -> list[F]:
    """Keep files from being evicted while these objects live.

    Ask afterwards whether a file is there.
    """
    if any(is_bounded(file.path) for file in files):
        with suppress(OSError), _locked() as records:  # from a cache that can only be read nothing is evicted
            _record(records)
    return files


def is_bounded(path: Path) -> bool:
    """Whether a path lies in the cache folder."""
    with suppress(UserError):
        return path.is_relative_to(cache_dir())
    return False


def make_room(num_bytes: int) -> None:
    """Evict least recently used files until some more bytes fit."""
    if cache_size() + num_bytes <= _bound_bytes:
        return
    with suppress(OSError), _locked() as records:
        _record(records)
        held = _held_by_all(records)
        files = sorted(_files())  # anew, as another process may have evicted while this one waited
        excess = sum(file.num_bytes for file in files) + num_bytes - _bound_bytes
        for file in files:
            if excess > 0 and file.path not in held:
                with suppress(OSError):  # it is gone, or open on Windows
                    os.unlink(file.path)
                    excess -= file.num_bytes


def _files() -> Iterator[_Found]:
    """Yield the whole files in the bounded folders."""
    for kind in BOUNDED:
        for folder, _, names in os.walk(cache_dir().absolute() / kind):
            for name in names:
                path = os.path.join(folder, name)
                with suppress(OSError):
                    found = os.stat(path)
                    if not name.startswith("."):
                        yield _Found(found.st_mtime, found.st_size, path)


@contextmanager
def _locked() -> Iterator[Path]:
    """Lock out other writers of records and evictions; yield the folder."""
    records = cache_dir() / "in_use"
    records.mkdir(parents=True, exist_ok=True)
    with FileLock(records / ".lock"):
        yield records


def _record(records: Path) -> None:
    """Write down the files that this process refers to."""
    with _thread:
        paths = sorted({str(file.path.absolute()) for file in _HELD})
    _own_record(records, os.getpid()).write_text("\n".join(paths), encoding="utf-8")


@cache
def _own_record(records: Path, process: int) -> Path:
    """Return this process's record, and lock it until the process ends."""
    record = records / f"{process}-{uuid.uuid4().hex}.txt"
    _LOCKS.append(FileLock(record.with_suffix(".lock")))
    _LOCKS[-1].acquire()
    return record


_LOCKS: list[FileLock] = []


def _held_by_all(records: Path) -> set[str]:
    """Return the files that running processes hold; delete others' records."""
    held: set[str] = set()
    for record in records.glob("*.txt"):
        lock = FileLock(record.with_suffix(".lock"), blocking=False)
        try:
            with lock:
                record.unlink()
        except Timeout:
            held |= set(record.read_text(encoding="utf-8").splitlines())
        else:
            record.with_suffix(".lock").unlink(missing_ok=True)
    return held


def _received(kind: type[F], path: Path) -> F:
    """Return a file that another process sent."""
    return hold([kind(path)])[0]
