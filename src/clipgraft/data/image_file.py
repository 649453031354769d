"""Image files on disk, and members of shards read by offset."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import file_sha256


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside an uncompressed archive."""

    shard: Path
    offset: int
    """First byte within the shard."""
    size: int
    name: str
    mtime_ns: int = 0
    """The shard's, when it was indexed; 0 = not compared."""

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


ImageFile = Path | Member
"""Where an image's bytes are."""


def read_image_bytes(file: ImageFile, max_bytes: int) -> bytes:
    """Read an image file of at most `max_bytes`.

    Raises:
        MissingFileError: If it, or its shard, is not there.
        DataError: If it is too large, or its shard is cut or has changed since it was indexed.
    """
    if isinstance(file, Path) and not file.is_file():
        raise MissingFileError(f"{file}: no such image")
    size = file.size if isinstance(file, Member) else file.stat().st_size
    if size > max_bytes:
        raise DataError(f"{file}: has {size:,} bytes; at most {max_bytes:,} are read")
    return _read_member(file) if isinstance(file, Member) else file.read_bytes()


def _read_member(member: Member) -> bytes:
    try:
        with member.shard.open("rb", buffering=0) as shard:
            mtime_ns = os.fstat(shard.fileno()).st_mtime_ns
            if member.mtime_ns not in (0, mtime_ns):
                raise DataError(f"{member.shard} has changed since this run indexed it; run it again")
            shard.seek(member.offset)
            content = shard.read(member.size)
    except FileNotFoundError:
        raise MissingFileError(f"{member.shard}: no such shard any more; put it back") from None
    if len(content) < member.size:
        raise DataError(f"{member.shard} is cut: it ends within {member.name}; copy or download it anew")
    return content


def content_checksums(files: Sequence[ImageFile]) -> list[str]:
    """Return each file's sha256 (hex); unchanged files are read once per process.

    Raises:
        MissingFileError: If one is missing.
        DataError: If a shard is cut or has changed.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the interpreter's lock
        return list(pool.map(_content_checksum, files))


def _content_checksum(file: ImageFile) -> str:
    try:
        found = (file.shard if isinstance(file, Member) else file).stat()
    except FileNotFoundError:
        raise MissingFileError(f"{file}: no such image") from None
    return _checksum(file, found.st_size, found.st_mtime_ns)


@cache
def _checksum(file: ImageFile, _size: int, _mtime_ns: int) -> str:
    return hashlib.sha256(_read_member(file)).hexdigest() if isinstance(file, Member) else file_sha256(file)
