"""Shards of a source: a folder, file, pattern or URL.

Patterns are globs (`*.tar`) or braces (`{00000..00099}.tar`); URLs are those that fsspec reads.
"""

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from clipgraft.data.dataset import Split
from clipgraft.data.names import has_image_suffix
from clipgraft.data.split_names import SPLIT_NAMES, split_of_file
from clipgraft.errors import DataError, MissingFileError, needs
from clipgraft.files import read_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SUFFIXES = (".tar", ".parquet", ".arrow")
"""In this order: img2dataset writes a parquet file of metadata beside each tar."""
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "blob_id", "mtime")
"""Fields of fsspec's file systems that change with a file."""
MAX_PATHS = 1_000_000
"""That braces may stand for. LAION-5B has 231,000 shards."""
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_PATTERN, _GLOB = re.compile(r"[*?\[{]"), re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One shard of a source, not opened."""

    name: str
    """Name below the source, with forward slashes."""
    url: str
    """Absolute path, or URL."""
    size: int | None
    """Bytes; None if a server does not tell."""
    version: str
    """Changes with the file."""
    split: Split | None = None
    """Split that the names of files or folders tell."""

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return not is_url(self.url)

    @property
    def suffix(self) -> str:
        """Kind of shard: tar, parquet or arrow."""
        return self.name.lower().rpartition(".")[2]

    @property
    def is_tar(self) -> bool:
        """Whether images are read where they lie."""
        return self.suffix == "tar"


def is_url(source: str) -> bool:
    """Whether a source is a URL, not a path."""
    return "://" in source


def names_shards(source: str) -> bool:
    """Whether a source is a URL, a pattern or a single shard."""
    if is_url(source) or source.lower().endswith(SUFFIXES) or COMPRESSED.search(source):
        return True
    return bool(_PATTERN.search(source)) and not os.path.exists(source)


def find_shards(source: str) -> tuple[ShardFile, ...]:
    """Return the shards of a source, sorted by name.

    There are none in a local folder that holds image files, or no shards.

    Raises:
        MissingFileError: If nothing is there.
        DataError: If all are compressed, or the file system is not known.
    """
    if not names_shards(source) and _has_loose_images(Path(source)):
        return ()
    fs, found = _listed(source)
    shards = _of_one_kind(found)
    if not shards:
        if packed := [path for path in found if COMPRESSED.search(path)]:
            raise DataError(
                f"{packed[0]} is compressed; images in it cannot be reached alone: unpack it to a .tar"
            )
        if names_shards(source):
            raise MissingFileError(f"{source}: no shard there; expected .tar, .parquet or .arrow files")
        return ()
    root = _root(list(shards))
    return _with_splits([_shard(fs, path, root, info) for path, info in sorted(shards.items())])


def file_system(url: str) -> tuple["AbstractFileSystem", str]:
    """Return the file system of a URL, and the path in it."""
    with needs("data", "fsspec"):
        from fsspec.core import url_to_fs
    try:
        return url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: cannot be read ({' '.join(str(error).split())})") from None


def version_of(info: Mapping[str, Any]) -> str:
    """Return a field that changes with a file, and its value."""
    return next((f"{name} {info[name]}" for name in VERSIONS if info.get(name)), "")


def _has_loose_images(folder: Path) -> bool:
    """Whether there are image files, which are read in place of shards."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(has_image_suffix(name) for name in names if not name.startswith(".")):
            return True
    return False


def _listed(source: str) -> tuple["AbstractFileSystem", dict[str, dict[str, Any]]]:
    """Return the files of a source with what is known of each."""
    sources = _expanded(source)
    fs, _ = file_system(sources[0])
    paths = [fs._strip_protocol(name) for name in sources]
    try:
        if len(paths) > 1:
            return fs, _listed_paths(fs, paths)
        if _is_glob(paths[0]):
            return fs, fs.glob(paths[0], detail=True)
        if _plain(paths[0]).endswith(SUFFIXES) and not fs.isdir(paths[0]):
            return fs, {paths[0]: fs.info(paths[0])}
        found = fs.find(paths[0], detail=True)
        return fs, {path: info for path, info in found.items() if "/." not in path.removeprefix(paths[0])}
    except FileNotFoundError as error:
        missing = error.filename or (error.args[0] if error.args else source)
        raise MissingFileError(f"{missing}: no such shard or folder") from None
    except Exception as error:  # each file system has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: cannot be listed ({reason[:200]})") from error


def _expanded(source: str) -> list[str]:
    """Return the paths or URLs that a source's braces stand for."""
    if "{" not in source or os.path.exists(source):
        return [source]
    with needs("data", "braceexpand"):
        from braceexpand import braceexpand
    try:
        # Ranges are counted before, as braceexpand holds each of them in memory.
        ranges = [abs(int(last) - int(first)) for first, last in _RANGE.findall(source)]
        found = [] if max(ranges, default=0) > MAX_PATHS else list(islice(braceexpand(source), MAX_PATHS + 1))
    except ValueError:  # also of unbalanced braces
        raise DataError(
            f"{source}: its braces cannot be read; expected pairs such as {{00000..00099}} or {{train,val}}"
        ) from None
    if not 0 < len(found) <= MAX_PATHS:
        raise DataError(f"{source}: its braces stand for over {MAX_PATHS:,} shards; name fewer")
    return found


def _listed_paths(fs: "AbstractFileSystem", paths: list[str]) -> dict[str, dict[str, Any]]:
    """Return the files of several paths, globs and folders."""
    plain = [path for path in paths if not _is_glob(path)]
    found = dict(zip(plain, _infos(fs, plain), strict=True))
    for path in paths:
        if path not in found:
            found |= fs.glob(path, detail=True)
        elif found[path].get("type") == "directory":
            found |= fs.find(path, detail=True)
    return found


def _is_glob(path: str) -> bool:
    """Whether a path is a pattern (`?` in a URL begins its query)."""
    plain = path.partition("?")[0] if is_url(path) else path
    return bool(_GLOB.search(plain)) and not os.path.exists(path)


def _plain(path: str) -> str:
    """Return a path in lower case, without the query of a URL."""
    return (path.partition("?")[0] if is_url(path) else path).lower()


def _infos(fs: "AbstractFileSystem", paths: list[str]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(16) as pool:  # requests, which wait for a server
        return list(pool.map(fs.info, paths))


def _of_one_kind(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the files of the first kind that is there."""
    visible = {
        path: info
        for path, info in found.items()
        if info.get("type", "file") == "file" and not PurePosixPath(path).name.startswith(".")
    }
    for suffix in SUFFIXES:
        if of_kind := {path: info for path, info in visible.items() if _plain(path).endswith(suffix)}:
            return _without_caches(of_kind) if suffix == ".arrow" else of_kind
    return {}


def _without_caches(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leave out what `datasets` caches beside the files that its state.json names."""
    own: set[str] = set()
    for folder in {PurePosixPath(path).parent for path in found}:
        state = Path(folder) / "state.json"
        if state.is_file():
            files = read_json(state).get("_data_files")
            rows = [row for row in files if isinstance(row, dict)] if isinstance(files, list) else []
            own |= {str(folder / str(row.get("filename"))) for row in rows}
    return {path: info for path, info in found.items() if path in own} or found


def _root(paths: list[str]) -> str:
    folders = [str(PurePosixPath(path).parent) for path in paths]
    return os.path.commonpath(folders) if all(folders) else ""


def _shard(fs: "AbstractFileSystem", path: str, root: str, info: Mapping[str, Any]) -> ShardFile:
    is_local = "file" in fs.protocol
    if info.get("size") is None:
        info = fs.info(path)
    name = PurePosixPath(path).relative_to(root).as_posix() if root else path
    name = name.partition("?")[0] if is_url(path) else name
    url = path if is_local else fs.unstrip_protocol(path)
    version = str(os.stat(path).st_mtime_ns) if is_local else version_of(info)
    return ShardFile(name, url, info.get("size"), version)


def _with_splits(shards: Iterable[ShardFile]) -> tuple[ShardFile, ...]:
    """Add the splits named by files or folders, if there are several."""
    shards = list(shards)
    told = [_told(PurePosixPath(shard.name)) for shard in shards]
    if len(set(told)) < 2:
        return tuple(shards)
    return tuple(replace(shard, split=split or "train") for shard, split in zip(shards, told, strict=True))


def _told(name: PurePosixPath) -> Split | None:
    folders = [SPLIT_NAMES[part.lower()] for part in name.parts[:-1] if part.lower() in SPLIT_NAMES]
    return split_of_file(name.stem) or (folders[-1] if folders else None)
