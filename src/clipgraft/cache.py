"""Cache of arrays on disk, keyed by content and settings."""

import logging
import os
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipgraft.errors import UserError
from clipgraft.files import clear_parts, write_bytes

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where an array lies: the segment, and its key there."""

    segment: Path
    key: str


class CachedArrays(Sequence[np.ndarray]):
    """Arrays of a cache in a given order, read lazily.

    Args:
        places: From `ContentCache.find` and `add`.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self.places = tuple(places)
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "CachedArrays": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | CachedArrays":
        if isinstance(index, slice):
            return CachedArrays(self.places[index])
        segment, key = self.places[index]
        if segment not in self._open:
            self._open[segment] = safe_open(segment, "np")
        array: np.ndarray = self._open[segment].get_tensor(key)
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "_open": {}}  # each process maps the segments by itself


class ContentCache:
    """Arrays in a folder; a key covers everything an array depends on.

    Arrays lie in segments: safetensors files that are written whole and never changed. Processes need no
    lock; two that lack the same array both make it. The folder may be deleted at any time between runs.

    Args:
        folder: Made if missing.
        kind: What the arrays are, in messages: "crops".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder)

    def find(self, keys: Iterable[str]) -> dict[str, Place]:
        """Return the keys of intact arrays; delete damaged segments."""
        wanted, found = set(keys), dict[str, Place]()
        for segment in sorted(self.folder.glob("*.safetensors")):
            try:
                found |= _read_segment(segment, wanted - found.keys())
            except (SafetensorError, OSError) as error:
                logger.warning("%s is damaged (%s); its %s are made anew", segment, error, self.kind)
                if segment.is_file():
                    segment.unlink(missing_ok=True)
        return found

    def add(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Place]:
        """Write arrays as one segment.

        Raises:
            OSError: If the disk is full; the cache is as it was.
        """
        segment = self.folder / f"{uuid.uuid4().hex}.safetensors"
        check_sums = {key: str(zlib.crc32(array.data)) for key, array in arrays.items()}
        write_bytes(segment, save(dict(arrays), check_sums))
        return {key: Place(segment, key) for key in arrays}


def _read_segment(path: Path, wanted: set[str]) -> dict[str, Place]:
    with safe_open(path, "np") as arrays:
        check_sums = arrays.metadata() or {}
        held = wanted & set(arrays.keys())
        for key in held:
            if str(zlib.crc32(arrays.get_tensor(key).data)) != check_sums.get(key):
                raise SafetensorError(f"{key} is not what was written")
    return {key: Place(path, key) for key in held}


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
