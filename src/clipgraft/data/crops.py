"""Each photograph decoded once: CLIP's 8-bit crops on disk, read through a memory map.

A crop is known by the sum of its file and the processor's settings, so a changed photograph is cut anew and
the others are not. Crops lie in segments that are written once, whole, and never changed: runs that cut at
the same time do no more than the same work twice.
"""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgraft.data.content import content_sums
from clipgraft.data.images import open_image
from clipgraft.data.transforms import ImageProcessor, clip_crop

SEGMENT_BYTES = 128 * 2**20
"""Held in memory while it is cut: 891 crops of 224 pixels."""


class Place(NamedTuple):
    """Where a crop lies, and its check sum."""

    segment: Path
    row: int
    crc32: int


class Crops:
    """Crops of some images, in their order; `crops[i]` is (3, S, S) uint8.

    Args:
        places: One an image.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._maps: dict[Path, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        place = self.places[index]
        if place.segment not in self._maps:
            self._maps[place.segment] = np.load(place.segment, mmap_mode="r")
        return np.array(self._maps[place.segment][place.row])

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "_maps": {}}  # a map would be pickled with its content


def cut_crops(
    paths: Sequence[Path],
    processor: ImageProcessor,
    folder: Path,
    update: Callable[[int], None] = lambda done: None,
) -> Crops:
    """Give CLIP's crops of photographs, cutting those that are not there yet.

    Args:
        paths: JPEG, PNG or WebP files.
        processor: Cuts them; its settings are part of what a crop is known by.
        folder: Of all crops of all data; may be deleted at any time between runs.
        update: Called with the number of images decoded so far.

    Raises:
        FileNotFoundError: If a photograph is missing.
        DataError: If one cannot be read; what was cut before it stays.
    """
    own = folder / _settings_sum(processor)
    own.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the interpreter's lock
        sums = content_sums(paths)
        known = _verified(_read_index(own), set(sums))
        missing = {
            file_sum: path for file_sum, path in zip(sums, paths, strict=True) if file_sum not in known
        }
        todo = list(missing.items())
        start = 0
        while start < len(todo):
            first = clip_crop(open_image(todo[start][1]), processor)
            part = todo[start : start + max(1, SEGMENT_BYTES // first.nbytes)]
            crops = np.empty((len(part), *first.shape), dtype=np.uint8)

            def cut(item: tuple[int, tuple[str, Path]], crops: np.ndarray = crops) -> None:
                row, (_, path) = item
                crops[row] = clip_crop(open_image(path), processor)

            for row, _ in enumerate(pool.map(cut, enumerate(part))):
                update(start + row + 1)
            known |= _write_segment(own, [file_sum for file_sum, _ in part], crops)
            start += len(part)
    return Crops([known[file_sum] for file_sum in sums])


def _settings_sum(processor: ImageProcessor) -> str:
    names = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_convert_rgb")
    settings = {name: str(getattr(processor, name, None)) for name in names}
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _write_segment(folder: Path, sums: Sequence[str], crops: np.ndarray) -> dict[str, Place]:
    """Write crops, then the index that makes them known."""
    name = uuid.uuid4().hex
    segment, index = folder / f"{name}.npy", folder / f"{name}.json"
    rows = {file_sum: [row, zlib.crc32(crops[row].data)] for row, file_sum in enumerate(sums)}
    for path, write in (
        (segment, lambda file: np.save(file, crops)),
        (index, lambda file: file.write(json.dumps(rows).encode())),
    ):
        temporary = path.with_suffix(".partial")
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return {file_sum: Place(segment, row, crc32) for file_sum, (row, crc32) in rows.items()}


def _read_index(folder: Path) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for index in sorted(folder.glob("*.json")):
        rows = json.loads(index.read_text(encoding="utf-8"))
        places |= {key: Place(index.with_suffix(".npy"), row, crc32) for key, (row, crc32) in rows.items()}
    return places


def _verified(places: dict[str, Place], wanted: set[str]) -> dict[str, Place]:
    """Those of the wanted crops whose bytes are what was written."""
    crops = Crops([place for key, place in places.items() if key in wanted])
    whole = {}
    for row, (key, place) in enumerate((key, place) for key, place in places.items() if key in wanted):
        try:
            if zlib.crc32(crops[row].data) == place.crc32:
                whole[key] = place
        except (OSError, ValueError, IndexError):  # the segment is gone, or cut short
            continue
    return whole
