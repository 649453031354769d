"""Opening a shard: its local file, its index, its images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clipgraft.cache import CachedFile, cached_file
from clipgraft.data.arrow_samples import unpack
from clipgraft.data.dataset import CaptionedImage, Split
from clipgraft.data.shard_fetch import fetch
from clipgraft.data.shard_files import ShardFile
from clipgraft.data.shard_index import INDEX_VERSION, ShardIndex, write_index
from clipgraft.data.tar_samples import read_tar
from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import fingerprint
from clipgraft.settings import DataSettings

KIND = "shards"
"""Folder of the cache."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a source; nothing of it is opened."""

    number: int
    """Place among the source's shards."""
    file: ShardFile
    settings: DataSettings

    def open(self) -> "OpenShard":
        """Fetch, unpack and index the shard, unless cached.

        Raises:
            MissingFileError: If it is gone.
            DataError: If it is damaged, has changed, or cannot be fetched.
        """
        images = self._images()
        return OpenShard(self, images, self.index())

    def index(self) -> ShardIndex:
        """Return the index, cached or made from the shard."""
        index = cached_file(KIND, f"{self._key}.index", self._write_index)
        return ShardIndex(index, self.file.name, self.file.split)

    def _images(self) -> Path | CachedFile:
        """Return the file that holds the images one after another."""
        if self.file.is_tar:
            return self._source()
        return cached_file(KIND, f"{self._key}.images", self._unpack)

    def _source(self) -> Path | CachedFile:
        """Return the shard's own file."""
        if self.file.is_local:
            return _unchanged(self.file)
        name = f"{fingerprint(self.file.url, self.file.size, self.file.version)[:32]}.{self.file.suffix}"
        return cached_file(KIND, name, partial(fetch, self.file))

    def _write_index(self, out: Path) -> None:
        with self._read() as source:
            if self.file.is_tar:
                write_index(read_tar(source, self.settings), out)
            else:
                write_index(unpack(source, Path(os.devnull), self.settings), out, self.file.name)

    def _unpack(self, out: Path) -> None:
        with self._read() as source:
            for _ in unpack(source, out, self.settings):
                pass

    @contextmanager
    def _read(self) -> Iterator[Path]:
        """Yield the shard's own file; delete a fetched one that is damaged."""
        source = self._source()
        try:
            yield path_of(source)
        except DataError as error:
            if isinstance(source, Path):
                raise
            source.path.unlink(missing_ok=True)
            raise DataError(str(error).replace(str(source.path), self.file.url)) from error.__cause__

    @property
    def _key(self) -> str:
        """Return a name that covers what decides on offsets and captions."""
        file, named = self.file, named_fields(self.settings)
        return fingerprint(INDEX_VERSION, file.url, file.size, file.version, named)[:32]


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A shard whose images can be read.

    Its files stay in the cache for as long as there are references to this object.
    """

    shard: Shard
    images: Path | CachedFile
    index: ShardIndex

    def rows(self, split: Split) -> np.ndarray:
        """Return the numbers of the samples in a split."""
        return self.index.rows(split)

    def image(self, row: int) -> CaptionedImage:
        """Return the image of a sample."""
        file = self.shard.file
        mtime_ns = int(file.version) if isinstance(self.images, Path) else 0  # the cache's files never change
        return self.index.image(row, path_of(self.images), mtime_ns)


def named_fields(settings: DataSettings) -> tuple[str, str, str]:
    """Return the settings that decide what of a sample is read."""
    return settings.image_field, settings.caption_field, settings.caption_extension


def path_of(file: Path | CachedFile) -> Path:
    """Return the path of a file that may be of the cache."""
    return file if isinstance(file, Path) else file.path


def _unchanged(file: ShardFile) -> Path:
    path = Path(file.url)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such shard any more; put it back") from None
    if (found.st_size, str(found.st_mtime_ns)) != (file.size, file.version):
        raise DataError(f"{path} has changed since this run began; run it again")
    return path
