"""Arrays kept by content and settings: crops, latents, features, verdicts.

They lie in segments, which are safetensors files of a bounded size. A start reads the headers of segments,
and the checksum of an array is compared when it is read.
"""

import logging
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipgraft.cache import CachedFile, hold, is_bounded, make_room, touch
from clipgraft.files import clear_parts, write_bytes

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 128 * 2**20
"""Arrays held in memory until they are written: 891 crops of 224 pixels."""
SEGMENT_SECONDS = 60
"""Time after which fewer are written, so that a killed process loses no more."""


class Segment(CachedFile):
    """A safetensors file of arrays and checksums, never changed once written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._arrays: Any = None
        self._unread: dict[str, str] = {}
        """Checksums of arrays that were not read yet."""

    def keys(self) -> set[str]:
        """Return the keys of its arrays; reads its header alone.

        Raises:
            SafetensorError, OSError: If it is damaged or not there.
        """
        arrays = self._open()
        keys = set(arrays.keys())
        if not keys <= (arrays.metadata() or {}).keys():
            raise SafetensorError("it lacks checksums")
        return keys

    def read(self, key: str) -> np.ndarray:
        """Return an array; its checksum is compared when it is read first.

        Raises:
            SafetensorError, OSError: If it is damaged or not there.
        """
        array: np.ndarray = self._open().get_tensor(key)
        if key in self._unread:
            if str(zlib.crc32(array.data)) != self._unread[key]:
                raise SafetensorError(f"{key} is not what was written")
            del self._unread[key]
        return array

    def _open(self) -> Any:
        if self._arrays is None:
            self._arrays = safe_open(self.path, "np")
            self._unread = dict(self._arrays.metadata() or {})
        return self._arrays


class Place(NamedTuple):
    """Where an array lies: the segment, and its key there."""

    segment: Segment
    key: str


class CachedArrays(Sequence[np.ndarray]):
    """Arrays of a cache, read lazily; damaged ones are computed again.

    Args:
        places: Of each array.
        make: Number of a place -> its array.
        kind: What the arrays are, in messages: "crops".
    """

    def __init__(self, places: Sequence[Place], make: Callable[[int], np.ndarray], kind: str) -> None:
        self.places, self.kind = places, kind
        self._make = make
        self._numbers: Sequence[int] = range(len(places))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "CachedArrays": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | CachedArrays":
        if isinstance(index, slice):
            part = CachedArrays(self.places, self._make, self.kind)
            part._numbers = self._numbers[index]
            return part
        number = self._numbers[index]
        segment, key = self.places[number]
        try:
            return segment.read(key)
        except (SafetensorError, OSError) as error:
            _delete_damaged(segment, error, self.kind)
            return self._make(number)


class ContentCache:
    """Arrays in a folder; a key covers everything an array depends on.

    Processes need no lock; two that lack the same array both make it. The folder may be deleted at any time
    between runs.

    Args:
        folder: Made if missing; bounded within the cache folder.
        kind: What the arrays are, in messages: "crops".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder)

    def arrays(
        self,
        keys: Sequence[str],
        make: Callable[[Sequence[int]], Iterable[np.ndarray]],
        on_array: Callable[[int], None] = lambda done: None,
    ) -> CachedArrays:
        """Return an array for each key; make and keep missing ones.

        Args:
            keys: Equal keys have equal arrays.
            make: Indices of keys -> their arrays, in the same order. What it yielded is kept if it raises.
            on_array: Called with the number of arrays made so far.

        Raises:
            OSError: If the disk is full; the cache is as it was after its last segment.
        """
        places = self.find(keys)
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key not in places:
                first.setdefault(key, index)
        made = zip(first, make(list(first.values())), strict=True) if first else ()
        for part in _segments(made, on_array):
            places |= self.add(part)
        return CachedArrays([places[key] for key in keys], partial(_make_one, make), self.kind)

    def find(self, keys: Iterable[str]) -> dict[str, Place]:
        """Return the arrays that are there, by the headers of intact segments."""
        found = self._find(set(keys))
        hold(list({place.segment for place in found.values()}))  # and no longer the other segments
        return found

    def _find(self, wanted: set[str]) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for segment in hold([Segment(path) for path in sorted(self.folder.glob("*.safetensors"))]):
            try:
                held = (segment.keys() & wanted) - found.keys()
            except (SafetensorError, OSError) as error:
                _delete_damaged(segment, error, self.kind)
                continue
            if held:
                touch(segment.path)
                found |= {key: Place(segment, key) for key in held}
        return found

    def add(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Place]:
        """Write arrays as one segment.

        Raises:
            OSError: If the disk is full; the cache is as it was.
        """
        checksums = {key: str(zlib.crc32(array.data)) for key, array in arrays.items()}
        content = save(dict(arrays), checksums)
        if is_bounded(self.folder):
            make_room(len(content))
        (segment,) = hold([Segment(self.folder / f"{uuid.uuid4().hex}.safetensors")])
        write_bytes(segment.path, content)
        return {key: Place(segment, key) for key in arrays}


def _segments(
    made: Iterable[tuple[str, np.ndarray]], on_array: Callable[[int], None]
) -> Iterator[dict[str, np.ndarray]]:
    """Collect arrays into segments, the last one even after a failure."""
    part: dict[str, np.ndarray] = {}
    num_bytes, begun = 0, time.monotonic()
    try:
        for done, (key, array) in enumerate(made, 1):
            part[key] = array
            num_bytes += array.nbytes
            on_array(done)
            if num_bytes >= SEGMENT_BYTES or time.monotonic() - begun >= SEGMENT_SECONDS:
                yield part
                part, num_bytes, begun = {}, 0, time.monotonic()
    except (Exception, KeyboardInterrupt):
        if part:
            yield part
        raise
    if part:
        yield part


def _make_one(make: Callable[[Sequence[int]], Iterable[np.ndarray]], number: int) -> np.ndarray:
    return next(iter(make([number])))


def _delete_damaged(segment: Segment, error: Exception, kind: str) -> None:
    """Delete a damaged segment, and say so once."""
    if segment.path.is_file():
        logger.warning("%s is damaged (%s); its %s are made anew", segment.path, error, kind)
        segment.path.unlink(missing_ok=True)
