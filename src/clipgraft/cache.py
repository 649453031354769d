"""What can be made again: the cache folder, and the checksums that name what is kept in it."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from clipgraft.errors import MissingFileError, UserError
from clipgraft.files import file_sha256


def cache_dir() -> Path:
    """Return the folder for what can be made again, by the XDG convention.

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


def content_sums(paths: Sequence[Path]) -> list[str]:
    """Return the sha256 (hex) of each file's bytes; an unchanged file is read once a process.

    Raises:
        MissingFileError: If one is missing.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the interpreter's lock
        return list(pool.map(_content_sum, paths))


def _content_sum(path: Path) -> str:
    try:
        found = path.stat()
        return _sum_of(path, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such image") from None


@cache
def _sum_of(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_sha256(path)
