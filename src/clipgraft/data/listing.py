"""Tables of any length, converted once into an Arrow file.

The file has a row for each image, in the table's order: `image` (its name), `captions`, `named` (the split
that a field, a table's name or a folder tells) and `hashed` (the split by the name's hash).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipgraft.console import track
from clipgraft.data.dataset import SPLITS
from clipgraft.data.listing_tables import Reading, Table, read_batches
from clipgraft.data.names import check_image_name
from clipgraft.data.raw import MAX_CAPTION_CHARACTERS, hash_splits
from clipgraft.data.split_names import folder_split, split_in_column
from clipgraft.data.tables import LISTED, texts_of
from clipgraft.errors import DataError, needs
from clipgraft.files import fingerprint
from clipgraft.settings import DataSettings

if TYPE_CHECKING:
    import pyarrow as pa

LISTING_VERSION = 2
"""Part of the cache's key; raised when the same table gives other rows."""
NO_SPLIT, DEEP = -1, len(SPLITS)
"""Codes in `named`: no split; of a split's folder below the first level, this much more than the split."""
_UNUSUAL_NAME = r"\\|//|^\.?/|/\./|(^|/)\.\.(/|$)|\x00|^[A-Za-z]:"
"""Names that `check_image_name` changes or refuses."""


def key_of(tables: Sequence[Table], settings: DataSettings) -> str:
    """Return the name of a converted listing in the cache."""
    files = [
        (str(table.path.absolute()), found.st_size, found.st_mtime_ns, table.split)
        for table in tables
        for found in [table.path.stat()]
    ]
    named = settings.image_field, settings.caption_field, settings.separator
    return f"{fingerprint(LISTING_VERSION, files, named)[:32]}.arrow"


def convert(tables: Sequence[Table], root: Path, out: Path) -> None:
    """Write the rows of tables as an Arrow file, in a stream.

    Args:
        tables: At least one.
        root: Below which names may be absolute.
        out: The file.

    Raises:
        DataError: If a row cannot be read, a name points out of the folder, or a split is unknown.
    """
    with needs("data", "pyarrow"):
        import pyarrow as pa
    fields = [("image", pa.string()), ("captions", pa.list_(pa.string()))]
    schema = pa.schema([*fields, ("named", pa.int8()), ("hashed", pa.int8())])
    content, reading = _Content(), Reading()
    total = 1 + (sum(table.path.stat().st_size for table in tables) >> 20)
    with (
        pa.OSFile(str(out), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        track("reading the listing", total) as update,
    ):
        for table in tables:
            for group in _grouped(_captions(table, root, reading), table.path):
                batch = pa.record_batch([*group, _hashed(group[0], group[2])], schema=schema)
                writer.write_batch(batch)
                content.add(batch)
                update(min(reading.num_bytes >> 20, total - 1), "MB")  # it is read ahead
        empty = pa.record_batch([pa.array([], field.type) for field in schema], schema=schema)
        told = {"fingerprint": content.fingerprint(), "num_excluded": str(reading.num_excluded)}
        writer.write_batch(empty, custom_metadata=told)
        update(total, "MB")


class _Content:
    """Checksum of names, captions and splits, whatever the sizes of batches."""

    def __init__(self) -> None:
        self._parts = [sha256() for _ in range(6)]

    def add(self, batch: "pa.RecordBatch") -> None:
        import pyarrow.compute as pc

        names, captions, named, _ = batch.columns
        texts = captions.flatten()
        lengths = pc.binary_length(names), pc.binary_length(texts), pc.list_value_length(captions), named
        values = [array.to_numpy(zero_copy_only=False).tobytes() for array in lengths]
        for part, value in zip(self._parts, [*values, _bytes_of(names), _bytes_of(texts)], strict=True):
            part.update(value)

    def fingerprint(self) -> str:
        return fingerprint([part.hexdigest() for part in self._parts])


def _bytes_of(texts: "pa.StringArray") -> memoryview:
    _, offsets, values = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values or b"")[ends[0] : ends[-1]] if len(texts) else memoryview(b"")


def _grouped(captions: Iterable["pa.RecordBatch"], path: Path) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Join captions of consecutive rows: names, lists of captions, splits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rest: pa.RecordBatch | None = None
    for batch in captions:
        batch = batch if rest is None else pa.concat_batches([rest, batch])
        names = batch.column("image")
        is_first = np.ones(len(names), bool)
        is_first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(is_first)
        yield _lists(batch.slice(0, starts[-1]), starts[:-1], path)
        rest = batch.slice(starts[-1])
    if rest is not None:
        yield _lists(rest, np.zeros(1, np.int64), path)


def _lists(batch: "pa.RecordBatch", starts: np.ndarray, path: Path) -> tuple[Any, Any, np.ndarray]:
    import pyarrow as pa

    names, texts, splits = batch.column("image"), batch.column("caption"), batch.column("split").to_numpy()
    ends = np.append(starts, len(names))
    group = np.repeat(splits[starts], np.diff(ends))
    if (differing := np.flatnonzero(group != splits)).size:
        name = names[int(differing[0])].as_py()
        raise DataError(f"{path}: image {name!r} is in two splits; an image belongs to one split")
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), texts)
    return names.take(pa.array(starts)), lists, splits[starts]


def _hashed(names: "pa.StringArray", named: np.ndarray) -> np.ndarray:
    """Return the splits by the names' hashes, where not all are named."""
    if not len(named) or ((named >= 0) & (named < DEEP)).all():
        return np.full(len(named), NO_SPLIT, np.int8)
    return hash_splits(names.cast("binary").to_pylist())


def _captions(table: Table, root: Path, reading: Reading) -> Iterator["pa.RecordBatch"]:
    """Yield `image`, `caption` and `split` of each caption; count excluded ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in read_batches(table, reading):
        names = _names(batch.column(table.columns.image), root, table.path)
        splits = _splits(batch, names, table)
        columns = [_texts(batch.column(name)) for name in table.columns.captions]
        rows = np.concatenate([rows for _, rows in columns])
        texts = pa.concat_arrays([texts for texts, _ in columns])
        if len(columns) > 1:
            order = np.argsort(rows, kind="stable")
            rows, texts = rows[order], texts.take(pa.array(order))
        texts = pc.utf8_trim_whitespace(pc.fill_null(texts, ""))
        lengths = pc.utf8_length(texts).to_numpy()
        kept = (lengths > 0) & (lengths <= MAX_CAPTION_CHARACTERS)
        reading.num_excluded += len(kept) - int(kept.sum())
        rows = pa.array(rows[kept])
        if len(rows):
            columns_of = names.take(rows), texts.filter(pa.array(kept)), pa.array(splits).take(rows)
            yield pa.record_batch(list(columns_of), names=["image", "caption", "split"])


def _texts(column: "pa.Array") -> tuple["pa.StringArray", np.ndarray]:
    """Return the captions in a column, and the row of each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_nested(column.type):
        column = column.cast(pa.string())
        if pc.any(pc.match_substring_regex(column, LISTED)).as_py():
            column = pa.array([texts_of(text) for text in column.to_pylist()], pa.list_(pa.string()))
    if pa.types.is_nested(column.type):
        return column.flatten().cast(pa.string()), pc.list_parent_indices(column).to_numpy()
    return column, np.arange(len(column))


def _names(column: "pa.Array", root: Path, path: Path) -> "pa.StringArray":
    """Return image names relative to the root, with forward slashes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))
    if pc.any(pc.equal(names, "")).as_py():
        raise DataError(f"{path}: a row has no image name; give each row one, or take it out")
    prefix = f"{root.absolute().as_posix().rstrip('/')}/"
    names = pc.replace_substring_regex(names, f"^{re.escape(prefix)}", "")
    is_unusual = pc.match_substring_regex(names, _UNUSUAL_NAME)
    if pc.any(is_unusual).as_py():
        names = pa.array([check_image_name(name, str(path)) for name in names.to_pylist()], pa.string())
    return names


def _splits(batch: "pa.RecordBatch", names: "pa.StringArray", table: Table) -> np.ndarray:
    """Return each row's split code, by field, table or folder."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if table.split:
        return np.full(len(names), SPLITS.index(table.split), np.int8)
    if table.columns.split:
        told = pc.fill_null(batch.column(table.columns.split).cast(pa.string()), "")
    else:
        told = pc.replace_substring_regex(names, "[^/]*$", "")
    values = pc.unique(told)
    codes = [_code(value, table) for value in values.to_pylist()]
    return np.array(codes, np.int8)[pc.index_in(told, value_set=values).to_numpy()]


def _code(told: str, table: Table) -> int:
    if table.columns.split:
        named = split_in_column(told, str(table.path), table.columns.split) if told.strip() else None
        return SPLITS.index(named) if named else NO_SPLIT
    split, is_deep = folder_split(f"{told}name")
    return NO_SPLIT if split is None else SPLITS.index(split) + is_deep * DEEP
