"""Index of a shard's samples, an Arrow file in the cache."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipgraft.cache import CachedFile
from clipgraft.data.dataset import SPLITS, CaptionedImage, Split
from clipgraft.data.image_file import Member
from clipgraft.data.raw import hash_split
from clipgraft.data.samples import LeftOut, Sample
from clipgraft.errors import needs

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_VERSION = 1
"""Part of a cached index's name; raised when samples are read in another way."""
_LEFT_OUT = b"left_out"


class ShardIndex:
    """Samples of one shard, memory-mapped.

    Args:
        file: Written by `write_index`.
        shard: Its name, the beginning of its images' ids.
        split: Split of samples that name none themselves; None = a hash of their keys decides.
    """

    def __init__(self, file: CachedFile, shard: str, split: Split | None) -> None:
        with needs("data", "pyarrow"):
            import pyarrow as pa
            from pyarrow import ipc
        self.shard, self._file = shard, file  # which is not evicted meanwhile
        reader = ipc.open_file(pa.memory_map(str(file.path)))
        self._batch = reader.get_batch(0)
        self._offsets, self._sizes, own, hashed = (
            self._batch.column(name).to_numpy() for name in ("offset", "size", "split", "hash_split")
        )
        self._splits = np.where(own < 0, hashed if split is None else SPLITS.index(split), own)
        self.names_splits = bool((own >= 0).any())
        """Whether samples name their splits."""
        self.left_out = [LeftOut(*item) for item in json.loads(reader.schema.metadata[_LEFT_OUT])]

    def rows(self, split: Split) -> np.ndarray:
        """Return the numbers of the samples in a split."""
        return np.flatnonzero(self._splits == SPLITS.index(split))

    def image(self, row: int, file: Path, mtime_ns: int) -> CaptionedImage:
        """Return the image of a sample.

        Args:
            row: Its number.
            file: The shard's file of images.
            mtime_ns: That file's; 0 = not compared.
        """
        name, captions = (self._batch.column(field)[row].as_py() for field in ("name", "captions"))
        member = Member(file, int(self._offsets[row]), int(self._sizes[row]), name, mtime_ns)
        return CaptionedImage(f"{self.shard}/{name}", member, tuple(captions), SPLITS[self._splits[row]])

    def captions(self, rows: np.ndarray) -> Iterator[str]:
        """Yield the captions of samples."""
        for captions in self._batch.column("captions").take(rows):
            yield from captions.as_py()


def write_index(samples: Iterable[Sample | LeftOut], path: Path, shard: str = "") -> None:
    """Write the index of a shard's samples.

    Args:
        samples: From the shard's reader.
        path: Written whole.
        shard: Part of all keys, where these are numbers of rows.
    """
    with needs("data", "pyarrow"):
        import pyarrow as pa
    found, left_out = list[Sample](), list[LeftOut]()
    for item in samples:
        if isinstance(item, Sample):
            found.append(item)
        else:
            left_out.append(item)
    hashed = [SPLITS.index(hash_split(f"{shard}{sample.key}")) for sample in found]
    own = [-1 if sample.split is None else SPLITS.index(sample.split) for sample in found]
    columns = {
        "name": pa.array([sample.name for sample in found], pa.string()),
        "offset": pa.array([sample.offset for sample in found], pa.int64()),
        "size": pa.array([sample.size for sample in found], pa.int64()),
        "captions": pa.array([sample.captions for sample in found], pa.list_(pa.string())),
        "split": pa.array(own, pa.int8()),
        "hash_split": pa.array(hashed, pa.int8()),
    }
    batch = pa.record_batch(columns).replace_schema_metadata({_LEFT_OUT: json.dumps(left_out).encode()})
    with pa.OSFile(str(path), "wb") as out, _writer(out, batch.schema) as writer:
        writer.write_batch(batch)


@contextmanager
def _writer(out: "pa.NativeFile", schema: "pa.Schema") -> Iterator["pa.RecordBatchWriter"]:
    from pyarrow import ipc

    with ipc.new_file(out, schema) as writer:
        yield writer
