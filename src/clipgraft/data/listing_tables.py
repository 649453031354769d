"""Tables of a listing: columns detected from their beginning, rows in blocks."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipgraft.data.arrow_samples import holds_images
from clipgraft.data.dataset import Split
from clipgraft.data.tables import (
    MISSING,
    Columns,
    find_columns,
    is_quoted,
    read_header,
    refuse_equal_names,
    without_separator_line,
)
from clipgraft.errors import DataError, needs
from clipgraft.files import parse_json
from clipgraft.settings import DataSettings

if TYPE_CHECKING:
    import pyarrow as pa

LISTING_BYTES = 64 * 2**20
"""Size of a table of text above which it is read as a listing: some 700,000 captions."""
HEAD_BYTES = 2**20
"""From which columns, separator and quoting are detected."""
BLOCK_BYTES = 2 * 2**20
"""Bytes of text in a block; a row has to fit. Arrow reads some 30 blocks ahead."""
_JSON_LINES = (".jsonl", ".ndjson")


class Table(NamedTuple):
    """A table of a listing."""

    path: Path
    columns: Columns
    separator: str
    names: list[str]
    """All columns of a CSV file."""
    num_header_lines: int
    is_quoted: bool
    split: Split | None = None
    """That of the table's name, if there are several tables."""


def is_large(path: Path) -> bool:
    """Whether a table is too large for the readers in memory."""
    return path.suffix.lower() == ".parquet" or path.stat().st_size > LISTING_BYTES


def read_layout(path: Path, settings: DataSettings) -> Table | None:
    """Return a table's columns, or None without those of names and captions.

    Raises:
        DataError: If it is not UTF-8, or a column that the settings name is not there.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        if holds_images(str(path)):
            return None
        schema = _schema_of(path)
        columns = find_columns(schema.names, settings, str(path))
        if columns is None:
            return None
        for name in (columns.image, *columns.captions):
            _refuse_type(schema.field(name).type, name, path, is_caption=name != columns.image)
        return Table(path, columns, "", schema.names, 0, False)
    head = _head(path)
    if suffix in _JSON_LINES:
        line = next((line for line in head.split("\n") if line.strip()), "{}")
        row = parse_json(line, f"{path}, line 1")
        columns = find_columns(row, settings, str(path))
        return columns and Table(path, columns, "", list(row), 0, False)
    separator, names, is_named = read_header(head, settings)
    refuse_equal_names(names, str(path))
    columns = find_columns(names, settings, str(path)) if is_named else Columns(names[0], names[1:], None)
    blank = re.match(r"\s*", without_separator_line(head))
    num_header_lines = head[: blank.end() if blank else 0].count("\n") + is_named
    return columns and Table(path, columns, separator, names, num_header_lines, is_quoted(head, separator))


def _head(path: Path) -> str:
    """Return the whole lines at the beginning of a table."""
    with path.open("rb") as file:
        raw = file.read(HEAD_BYTES)
    raw = raw[: raw.rfind(b"\n") + 1] or raw
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 (byte {error.start}); tables of over {LISTING_BYTES >> 20} MB need it: "
            "save it as UTF-8"
        ) from None


def _schema_of(path: Path) -> "pa.Schema":
    with _readable(path):
        from pyarrow import parquet

        return parquet.read_schema(path)


def _refuse_type(kind: "pa.DataType", name: str, path: Path, *, is_caption: bool) -> None:
    """Raise DataError for a column that holds no texts."""
    from pyarrow import types

    item = kind.value_type if is_caption and (types.is_list(kind) or types.is_large_list(kind)) else kind
    if types.is_nested(item) or types.is_null(item):
        role, key = ("captions", "caption") if is_caption else ("names of image files", "image")
        raise DataError(
            f"{path}: column {name!r} holds {str(kind)[:80]}, and {role} are text; data.{key}_field names "
            "another column"
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say Arrow's errors in one line."""
    with needs("data", "pyarrow"):
        import pyarrow as pa
    try:
        yield
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())[:200]
        fix = ""
        if "columns, got" in reason:
            fix = "; put captions that hold the separator in double quotes"
        elif "UTF8" in reason or "UTF-8" in reason:
            fix = "; save it as UTF-8"
        raise DataError(f"{path}: cannot be read ({reason}){fix}") from None


@dataclass
class Reading:
    """How far tables were read."""

    num_bytes: int = 0
    num_excluded: int = 0
    """Rows with too few fields, and captions that are empty or too long."""


def read_batches(table: Table, reading: Reading) -> Iterator["pa.RecordBatch"]:
    """Yield a table's rows in blocks."""
    with _readable(table.path):
        import pyarrow as pa

        begun = reading.num_bytes
        with pa.OSFile(str(table.path)) as source:
            for batch in _opened(table, source, reading):
                reading.num_bytes = begun + source.tell()
                yield batch
        reading.num_bytes = begun + table.path.stat().st_size


def _opened(table: Table, source: "pa.NativeFile", reading: Reading) -> Iterable["pa.RecordBatch"]:
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    image, captions, split = table.columns
    wanted = [image, *captions, *([split] if split else [])]
    suffix = table.path.suffix.lower()
    if suffix == ".parquet":
        batches: Iterable[pa.RecordBatch] = parquet.ParquetFile(source).iter_batches(columns=wanted)
        return batches
    if suffix in _JSON_LINES:
        schema = pa.schema([(name, _json_type(table, name)) for name in wanted])
        return json.open_json(
            source,
            json.ReadOptions(block_size=BLOCK_BYTES),
            json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )

    def on_invalid(row: Any) -> str:
        if row.actual_columns > row.expected_columns:
            return "error"
        reading.num_excluded += 1
        return "skip"

    return csv.open_csv(
        source,
        csv.ReadOptions(block_size=BLOCK_BYTES, column_names=table.names, skip_rows=table.num_header_lines),
        csv.ParseOptions(
            delimiter=table.separator,
            quote_char='"' if table.is_quoted else False,
            newlines_in_values=table.is_quoted,
            invalid_row_handler=on_invalid,
        ),
        csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=True,
            null_values=sorted(MISSING),
        ),
    )


def _json_type(table: Table, name: str) -> "pa.DataType":
    import pyarrow as pa

    line = next((line for line in _head(table.path).split("\n") if line.strip()), "{}")
    value = parse_json(line, str(table.path)).get(name)
    if isinstance(value, list):
        return pa.list_(pa.string())
    return pa.int64() if isinstance(value, int) else pa.string()
