"""Tables of images and captions: CSV, TSV, JSON lines and lists."""

import ast
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipgraft.data.dataset import Split
from clipgraft.data.names import NameIndex, check_image_name, has_image_suffix
from clipgraft.data.raw import DataFolder, RawCaption, RawDataset, claim_split, is_utf8, tidy
from clipgraft.data.split_names import (
    SPLIT_FIELDS,
    SplitRule,
    split_in_column,
    split_of_file,
    splits_of_folders,
)
from clipgraft.errors import DataError
from clipgraft.files import parse_json
from clipgraft.settings import DataSettings

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Place of each row, for messages, and its fields."""

SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}
_MARKS_OF = {mark: name for name, mark in SEPARATORS.items()}
IMAGE_FIELDS = (
    *("file_name", "filename", "filepath", "file_path", "image_file_name", "image_name", "image_path"),
    *("image_file", "image", "img_path", "img_name", "img", "path", "file", "image_id"),
)
"""Common names of the image's column, the first one found is taken."""
CAPTION_FIELDS = (
    *("title", "prompt", "description", "sentence", "sentences"),
    *("raw", "comment", "caption_str", "alt_text", "tags"),
)
"""As `IMAGE_FIELDS`, where no column is called text, caption or captions."""
_CAPTION_FIELD = re.compile(r"(?:text|captions?)|(?:text|caption|sentence|comment)[ _-]?\d+")
MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
    | {"N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
"""Texts that pandas writes or reads for what is missing (its `read_csv`, na_values)."""
LISTED = r"^\s*\[\s*[\"'\]]"
"""Beginning of a cell that may hold a list of texts."""
_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None|nan""")
_LIST = re.compile(rf"\[\s*(?:{_ITEM.pattern})(?:[\s,]+(?:{_ITEM.pattern}))*[\s,]*\]")
_JSON_LINES = (".jsonl", ".ndjson")
_EXPECTED = "expected file_name and one of text, caption, captions, caption_0, caption_1, ..."


class Columns(NamedTuple):
    """Names of the columns that are read."""

    image: str
    captions: list[str]
    split: str | None


def find_columns(names: Iterable[str], settings: DataSettings, where: str) -> Columns | None:
    """Return the columns of image, captions and split, or None.

    Raises:
        DataError: If a column that the settings name is not there.
    """
    names = [name for name in names if isinstance(name, str)]
    for key, wanted in (("image_field", settings.image_field), ("caption_field", settings.caption_field)):
        if wanted and wanted not in names:
            known = ", ".join(names) or "none"
            raise DataError(f"{where}: no field {wanted!r} (data.{key}); the fields are {known}")
    lower = {name.lower(): name for name in reversed(names)}
    image = settings.image_field or next((lower[name] for name in IMAGE_FIELDS if name in lower), "")
    captions = caption_fields(names, settings)
    used = {image, *captions}
    split = next((lower[name] for name in SPLIT_FIELDS if name in lower and lower[name] not in used), None)
    return Columns(image, captions, split) if image and captions else None


def caption_fields(names: Iterable[str], settings: DataSettings) -> list[str]:
    """Return the names of captions among those of columns or fields."""
    names = list(names)
    if settings.caption_field:
        return [settings.caption_field] if settings.caption_field in names else []
    if found := [name for name in names if _CAPTION_FIELD.fullmatch(name.lower())]:
        return found
    lower = {name.lower(): name for name in reversed(names)}
    return [lower[name] for name in CAPTION_FIELDS if name in lower][:1]


def names_columns(settings: DataSettings) -> bool:
    """Whether settings name something that only tables have."""
    return bool(settings.image_field or settings.caption_field or settings.separator)


def read_metadata(folder: DataFolder) -> RawDataset | None:
    """Read Hugging Face's imagefolder: `metadata.jsonl` or `.csv`, in subfolders too."""
    found = [path for path in folder.documents if path.name in ("metadata.jsonl", "metadata.csv")]
    for place, count in Counter(path.parent for path in found).items():
        if count > 1:
            raise DataError(f"{place}: metadata.jsonl and metadata.csv are both there; keep one")
    if not found:
        return None
    return _read_tables(folder, found, "metadata file (imagefolder)", {})


def read_tables(folder: DataFolder) -> RawDataset | None:
    """Read a table of another name, or one for each split."""
    found = [path for path in folder.documents if folder.file or is_table(folder, path)]
    if not found and names_columns(folder.settings):
        found = folder.documents[:1]  # whose columns are then named in the error
    depth = min((len(path.parts) for path in found), default=0)
    found = [path for path in found if len(path.parts) == depth]
    if not found:
        return None
    names = {path: split_of_file(path.stem) for path in found}
    if len(found) > 1 and None in names.values():
        told = ", ".join(folder.name(path) for path in found)
        raise DataError(f"{folder.root}: {len(found)} tables of captions ({told}); name one as the source")
    splits = {path: split for path, split in names.items() if split} if len(found) > 1 else {}
    return _read_tables(folder, found, "table of captions", splits)


def _read_tables(
    folder: DataFolder, paths: list[Path], format: str, split_of: dict[Path, Split]
) -> RawDataset:
    index = NameIndex(folder.images)
    captions: list[RawCaption] = []
    splits: dict[str, Split] = {}
    for path in paths:
        seen: Counter[str] = Counter()
        base = folder.image_base(path)
        ids: dict[str, str] = {}
        columns_of: dict[tuple[str, ...], Columns | None] = {}
        for where, row in _rows(folder, path):
            names = tuple(row)
            if names not in columns_of:
                columns_of[names] = find_columns(names, folder.settings, where)
            name, split, texts = _read_row(row, columns_of[names], where)
            if name not in ids:
                ids[name] = index.below(base, check_image_name(folder.relative(name), where), where)
            image_id = ids[name]
            for text in texts:
                captions.append(RawCaption(image_id, seen[image_id], tidy(text)))
                seen[image_id] += 1
            if split := split or split_of.get(path):
                claim_split(splits, [image_id], split, where)
    roles = {
        "captions" if path.parent == folder.root else f"{folder.name(path.parent)} captions": path
        for path in paths
    }
    if len(roles) < len(paths):
        roles = {f"captions {path.stem}": path for path in paths}
    files = {role: folder.name(path) for role, path in roles.items()} | {"images": "."}
    by_folder = {} if splits else splits_of_folders(folder.images)
    rule = SplitRule.FOLDERS if by_folder else SplitRule.FILES if split_of else SplitRule.COLUMN
    return RawDataset(format, files, folder.images, captions, splits or by_folder or None, rule)


def _read_row(
    row: dict[str, Any], columns: Columns | None, where: str
) -> tuple[str, Split | None, list[str]]:
    """Return a row's image name, split and captions."""
    name = row.get(columns.image) if columns else None
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if columns and (not isinstance(name, str) or not name.strip()):
        raise DataError(f"{where}: read the image name {repr(name)[:80]} in {columns.image!r}; expected text")
    if columns is None or not isinstance(name, str):
        raise DataError(
            f"{where}: read the fields {', '.join(map(str, row)) or 'none'}; {_EXPECTED}; "
            "data.image_field and data.caption_field name others"
        )
    texts: list[Any] = []
    for field in columns.captions:
        texts += texts_of(row[field])
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: read the caption {text!r}; expected text")
    value = row.get(columns.split) if columns.split else None
    split = None if is_missing(value) else split_in_column(value, where, columns.split or "")
    return name.strip(), split, [text or "" for text in texts]


def texts_of(value: Any) -> list[Any]:
    """Return a field's captions: a text, a list or a list's text."""
    listed = _written_list(value) if isinstance(value, str) else value
    texts = listed if isinstance(listed, list) else [value]
    return [None if is_missing(text) else text for text in texts]


def _written_list(text: str) -> list[str | None] | None:
    """Read a list of texts, as JSON or Python prints it.

    pandas writes a list into a cell as Python prints it, NumPy an array without commas.
    """
    if not re.match(LISTED, text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if not _LIST.fullmatch(text.strip()):
            return None
        try:
            items = _ITEM.findall(text)
            found = [None if item == "nan" else ast.literal_eval(item) for item in items]
        except (ValueError, SyntaxError):
            return None
    is_whole = all(each is None or (isinstance(each, str) and is_utf8(each)) for each in found)
    return found if is_whole else None


def is_missing(value: Any) -> bool:
    """Whether a field holds null, NaN or a text for it."""
    return value is None or value != value or (isinstance(value, str) and value.strip() in MISSING)


def is_table(folder: DataFolder, path: Path) -> bool:
    """Whether a file's first row has columns of images and captions."""
    try:
        fields = first_fields(folder, path)
    except DataError:
        if path.suffix.lower() not in (*_JSON_LINES, ".json"):
            folder.note("no text that can be read: ", folder.name(path))
        return False
    try:
        return find_columns(fields, folder.settings, str(path)) is not None
    except DataError:
        return False


def first_fields(folder: DataFolder, path: Path) -> list[str]:
    """Return a table's column names, or its first entry's fields.

    Raises:
        DataError: If it cannot be read.
    """
    if path.suffix.lower() not in (*_JSON_LINES, ".json"):
        return read_header(folder.read_text(path), folder.settings)[1]
    _, first = next(_rows(folder, path), ("", {}))
    return list(first)


def _rows(folder: DataFolder, path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES:
        return _json_lines(folder, path)
    return _json_rows(folder, path) if suffix == ".json" else _csv_rows(folder, path)


def _json_lines(folder: DataFolder, path: Path) -> Rows:
    for number, line in folder.read_lines(path):
        where = f"{path}, line {number}"
        yield where, parse_json(line, where)


def _json_rows(folder: DataFolder, path: Path) -> Rows:
    """Yield rows of a list or object (image -> caption, captions, or fields)."""
    content = folder.json(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict):
        content = [
            {"file_name": name, **(value if isinstance(value, dict) else {"caption": value})}
            for name, value in content.items()
            if isinstance(value, (str, dict)) or (isinstance(value, list) and has_image_suffix(name))
        ]
    for number, row in enumerate(content if isinstance(content, list) else [], start=1):
        where = f"{path}, entry {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: read {repr(row)[:120]}; expected an object with image and caption")
        yield where, row


def read_header(text: str, settings: DataSettings) -> tuple[str, list[str], bool]:
    """Return separator, columns, and whether the first line names them.

    Without a name for the separator, the first one is taken that gives columns of image and captions.
    """
    chosen = SEPARATORS.get(settings.separator)
    for separator in [chosen] if chosen else SEPARATORS.values():
        names = first_row(text, separator)
        try:
            if find_columns(names, settings, "") is not None:
                return separator, names, True
        except DataError:
            pass
        if len(names) == 2 and has_image_suffix(names[0]):
            return separator, ["file_name", "caption"], False
    separator = chosen or next((mark for mark in SEPARATORS.values() if len(first_row(text, mark)) > 1), ",")
    return separator, first_row(text, separator), True


def first_row(text: str, separator: str) -> list[str]:
    """Return the fields of a table's first line that is not blank."""
    lines = re.split(r"\r\n|\n|\r", without_separator_line(text[:65536]))
    line = next((line for line in lines if line.strip()), "")
    return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]


def without_separator_line(text: str) -> str:
    """Return a table whose first line `sep=;`, written for Excel, is blank."""
    return re.sub(r"\A\s*\"?sep=.\"?[ \t]*(?=[\r\n])", "", text, count=1)


def _csv_rows(folder: DataFolder, path: Path) -> Rows:
    text = folder.read_text(path)
    separator, names, is_named = read_header(text, folder.settings)
    if is_named:
        find_columns(names, folder.settings, str(path))
    for line, row in csv_rows(text, separator, names, str(path), is_named=is_named):
        yield f"{path}, line {line}", row


def csv_rows(
    text: str, separator: str, names: list[str], table: str, *, is_named: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the last line and the fields of each row.

    Args:
        text: The whole table.
        separator: One character.
        names: Of the columns.
        table: Its name, for messages.
        is_named: Whether the first row is `names`.

    Raises:
        DataError: If two columns have one name, quotes are wrong, or a row has more fields than names.
    """
    refuse_equal_names(names, table)
    text = without_separator_line(text)
    quoting = csv.QUOTE_MINIMAL if is_quoted(text, separator) else csv.QUOTE_NONE
    options = {"delimiter": separator, "quoting": quoting, "skipinitialspace": True, "strict": True}
    rows = csv.reader(io.StringIO(text, newline=""), **options)  # type: ignore[arg-type]
    try:
        for number, row in enumerate(row for row in rows if any(cell.strip() for cell in row)):
            if not number and is_named:
                continue
            while len(row) > len(names) and not row[-1].strip():
                row.pop()  # spreadsheets end rows with empty cells
            if len(row) > len(names):
                raise DataError(
                    f"{table}, line {rows.line_num}: {len(row)} fields under {len(names)} names, beginning "
                    f"{row[0][:80]!r}; put texts with {_MARKS_OF[separator]}s in double quotes"
                )
            yield rows.line_num, dict(zip(names, row + [""] * (len(names) - len(row)), strict=True))
    except csv.Error as error:
        raise DataError(
            f"{table}, line {rows.line_num}: not readable as CSV ({error}); quotes within a quoted text are "
            "doubled"
        ) from None


def refuse_equal_names(names: list[str], table: str) -> None:
    """Raise DataError if two columns have one name."""
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        raise DataError(f"{table}: a column's name comes twice in {', '.join(names)}; give each one its own")


def is_quoted(text: str, separator: str) -> bool:
    """Whether quotes around fields are CSV's, not a caption's own.

    Tables with tabs or bars are often written without quoting: then a caption that begins with a quote breaks
    CSV's rules, or swallows the rows up to the next quote.
    """
    if separator in ",;":
        return True
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return not any("\n" in cell and separator in cell for row in rows for cell in row)
    except csv.Error:
        return False
