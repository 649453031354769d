"""Samples of parquet and Arrow files that hold images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipgraft.data.samples import NO_IMAGE, LeftOut, Sample, Samples, read_fields
from clipgraft.data.shard_files import file_system, is_url
from clipgraft.data.tables import IMAGE_FIELDS, caption_fields
from clipgraft.errors import DataError, needs
from clipgraft.settings import DataSettings

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 64
"""Rows held in memory at once while images are copied out."""
BYTES_FIELDS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content"),
    *IMAGE_FIELDS,
)
"""Common names of a column of image files' bytes; the first one found is taken."""
ARROW_MAGIC, PARQUET_MAGIC = b"ARROW1", b"PAR1"


class _Columns(NamedTuple):
    image: str
    is_struct: bool
    """Whether it holds `bytes` and `path`, as `datasets` writes images."""
    names: list[str]
    """Columns to read, the image's included."""


def holds_images(url: str) -> bool:
    """Whether a file has a column of images' bytes.

    Remote Arrow files are taken to have one, as they have no footer.
    """
    if not _is_parquet(url) and is_url(url):
        return True
    with _parquet(url) if _is_parquet(url) else _opened(Path(url)) as (schema, _):
        return any(_is_bytes(field.type) or _is_image(field.type) for field in schema)


def num_rows(url: str) -> int:
    """Return the number of rows; of remote files for parquet only."""
    if _is_parquet(url):
        with _parquet(url) as (_, number):
            return number
    with _opened(Path(url)) as (schema, batches):
        return sum(batch.num_rows for batch in batches(schema.names[:1]))


def _is_parquet(url: str) -> bool:
    return url.lower().endswith(".parquet")


@contextmanager
def _parquet(url: str) -> Iterator[tuple["pa.Schema", int]]:
    """Yield schema and number of rows, by a parquet file's footer."""
    with needs("data", "pyarrow"):
        from pyarrow import parquet
    fs, path = file_system(url)
    with _damage_named(url), fs.open(path) as file:
        footer = parquet.ParquetFile(file)
        yield footer.schema_arrow, footer.metadata.num_rows


def unpack(path: Path, out: Path, settings: DataSettings) -> Samples:
    """Write a file's images one after another into `out` and yield their samples.

    Raises:
        DataError: If it is damaged, or has no column of images or captions.
    """
    offset = number = 0
    with _opened(path) as (schema, batches), out.open("wb") as images:
        columns = _find_columns(schema, settings, path)
        for batch in batches(columns.names):
            for row in batch.to_pylist():
                sample = _sample(row, columns, number, offset, settings)
                if isinstance(sample, Sample):
                    images.write(_content(row, columns))
                    offset += sample.size
                yield sample
                number += 1


def _sample(
    row: dict[str, Any], columns: _Columns, number: int, offset: int, settings: DataSettings
) -> Sample | LeftOut:
    image = row[columns.image]
    name = (image or {}).get("path") if columns.is_struct else None
    name = f"{number:07d}" + (f"/{Path(name).name}" if name else "")
    content = _content(row, columns)
    if not content:
        return LeftOut(name, NO_IMAGE)
    texts = read_fields({key: value for key, value in row.items() if key != columns.image}, settings)
    if texts.problem:
        return LeftOut(name, texts.problem)
    return Sample(name, name, offset, len(content), texts.captions, texts.split)


def _content(row: dict[str, Any], columns: _Columns) -> bytes:
    image = row[columns.image]
    return (image or {}).get("bytes") or b"" if columns.is_struct else image or b""


def _find_columns(schema: "pa.Schema", settings: DataSettings, path: Path) -> _Columns:
    known = f"the columns are {', '.join(schema.names) or 'none'}"
    for setting, wanted in (("image_field", settings.image_field), ("caption_field", settings.caption_field)):
        if wanted and wanted not in schema.names:
            raise DataError(f"{path}: no column {wanted!r} (data.{setting}); {known}")
    found = [field.name for field in schema if _is_image(field.type)]
    plain = [field.name for field in schema if _is_bytes(field.type)]
    found += [name for name in BYTES_FIELDS if name in plain] + plain
    image = settings.image_field or next(iter(found), "")
    if image not in found:
        raise DataError(f"{path}: no column of images' bytes; {known} (data.image_field names one)")
    captions = caption_fields([name for name in schema.names if name != image], settings)
    if not captions:
        raise DataError(f"{path}: no column of captions; {known} (data.caption_field names one)")
    splits = [name for name in schema.names if name.lower() == "split"]
    return _Columns(image, _is_image(schema.field(image).type), [image, *captions, *splits])


def _is_image(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    children = [kind.field(index) for index in range(kind.num_fields)]
    return any(child.name == "bytes" and _is_bytes(child.type) for child in children)


def _is_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


@contextmanager
def _opened(path: Path) -> Iterator[tuple["pa.Schema", Any]]:
    """Yield the schema, and a function that returns batches of given columns."""
    with needs("data", "pyarrow"):
        import pyarrow as pa
        from pyarrow import ipc, parquet
    with _damage_named(str(path)), pa.memory_map(str(path)) as source:
        if source.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
            with parquet.ParquetFile(path) as file:
                yield file.schema_arrow, lambda names: file.iter_batches(ROWS_AT_ONCE, columns=names)
            return
        source.seek(0)
        is_file = source.read(len(ARROW_MAGIC)) == ARROW_MAGIC
        source.seek(0)
        reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
        yield reader.schema, lambda names: _parts(reader, names, is_file)


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    """Turn Arrow's errors into one that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowSerializationError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise DataError(f"{where} is cut or damaged ({reason}); copy or download it anew") from None


def _parts(reader: Any, names: list[str], is_file: bool) -> Iterator["pa.RecordBatch"]:
    """Yield an Arrow file's batches in small pieces."""
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield batch.slice(start, ROWS_AT_ONCE).select(names)
