"""Files: atomic writes, checksums, and bounded, checked reads.

All readers raise `MissingFileError` where there is no file, and `error` where a file is too large, nested too
deep, no text or of another type; the message names the file.
"""

import codecs
import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipgraft.errors import DataError, MissingFileError, UserError, is_no_space

MAX_BYTES = 1 << 30
"""Of a file that is read at once. COCO's largest caption file has 92 MB."""
MAX_DEPTH = 64
"""Of nested objects and lists. No format read here goes beyond ten; Python's own limit is near 1,000."""
STALE_SECONDS = 3600
"""Age at which a partial file belongs to no living process (a guess)."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, with whose mark it begins
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
TOML_ESCAPE = re.compile(r"Unescaped '\\'|Invalid hex value|not a Unicode scalar value")
TOML_OPEN = re.compile(r"Unterminated string|Illegal character '\\n'")
"""Reasons of `tomllib` for a string that a backslash before its last quote leaves open."""
BACKSLASHES = (
    r"in double quotes a backslash begins an escape: write it twice, or use single quotes, as in 'C:\dogs'"
)
JSON_TYPES: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


@contextmanager
def atomic_write(path: Path, *, on_disk: bool = False) -> Iterator[Path]:
    """Yield a file to write, which replaces `path` if the block succeeds.

    So `path` is whole or as it was before, even if the disk is full, the process is killed, or two processes
    or threads write it at once. With `on_disk` that holds for a power failure too.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.part")  # differs between processes
    try:
        with naming(path):
            yield temporary
            if on_disk:
                sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` if the block succeeds.

    Args:
        out: A folder that is empty or not there.
    """
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(out.parent)
        part = out.with_name(f".{out.name}.{os.getpid()}.part")
        part.mkdir()
        try:
            yield part
            if out.exists():
                out.rmdir()
            part.rename(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of a full disk name what was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None or is_no_space(error):  # a write names no file, a copy its source
            error.filename, error.filename2 = str(path), None
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity become null."""
    write_bytes(path, (to_json(value) + "\n").encode())


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Return a value as JSON text; NaN and infinity become null."""
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """Return the sha256 (hex) of values as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def clear_parts(folder: Path, *, stale_seconds: float = STALE_SECONDS) -> None:
    """Delete partial files and folders of killed processes.

    Args:
        folder: Where they were being written.
        stale_seconds: Least time since the last write; 0 if only the caller may write there.
    """
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # another thread or process has finished with it since
            if stale_seconds and time.time() - _last_write(part) < stale_seconds:
                continue
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink()


def _last_write(part: Path) -> float:
    """Return the time of the last write to a file or folder."""
    within = part.rglob("*") if part.is_dir() and not part.is_symlink() else ()
    return max(path.lstat().st_mtime for path in (part, *within))


def inside(path: Path, folder: Path, *, error: type[UserError] = DataError) -> Path:
    """Return a path within a folder; raise `error` for links out of it."""
    # Unlike Path.resolve, realpath takes a loop of links for a file.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise error(f"{path} is a link out of {folder.name}; put the file itself in its place")
    return path


def beside(folder: Path, name: str) -> str:
    """Return a path relative to a folder; "" stays, and `~` is expanded."""
    return str(folder / os.path.expanduser(name)) if name else ""


def read_bytes(path: Path, *, error: type[UserError] = DataError, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most `max_bytes`."""
    if not path.exists():
        raise MissingFileError(f"{path}: no such file")
    if not path.is_file():
        raise error(f"{path} is not a file")
    size = path.stat().st_size
    if size > max_bytes:
        raise error(f"{path} has {size:,} bytes; at most {max_bytes:,} are read")
    return path.read_bytes()


def read_text(
    path: Path,
    *,
    error: type[UserError] = DataError,
    max_bytes: int = MAX_BYTES,
    by_people: bool = False,
) -> str:
    """Read UTF-8 text without byte order mark; line ends become LF.

    With `by_people`, a mark of UTF-16 or UTF-32 is followed too; other libraries read no such configuration.
    """
    raw = read_bytes(path, error=error, max_bytes=max_bytes)
    try:
        text = (in_utf8(raw) if by_people else raw).decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"{path} is not UTF-8 text (byte {wrong.start}); save it as UTF-8") from wrong
    return text.replace("\r\n", "\n").replace("\r", "\n")


def in_utf8(raw: bytes) -> bytes:
    """Return a text without its byte order mark, in UTF-8.

    PowerShell's `>` and Windows' editors write UTF-16. Without a mark, the text is returned as it is.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            with suppress(UnicodeDecodeError):
                return raw[len(mark) :].decode(encoding).encode()
            return raw[len(mark) :] if mark == codecs.BOM_UTF8 else raw
    return raw


def read_json(path: Path, kind: type = dict, *, error: type[UserError] = DataError) -> Any:
    """Read a JSON file of a `kind`: dict, list, str or int."""
    return parse_json(read_text(path, error=error), str(path), kind, error=error)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; blank ones are skipped, errors name file and line."""
    lines = enumerate(read_text(path).split("\n"), 1)
    return [parse_json(line, f"{path}:{number}") for number, line in lines if line.strip()]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    return parse_toml(read_text(path, error=UserError, by_people=True), str(path))


def parse_json(text: str, name: str, kind: type = dict, *, error: type[UserError] = DataError) -> Any:
    """Parse JSON of a `kind`; `name` is its place, for messages."""
    return _parse(json.loads, text, f"{name} is not JSON", kind, error)


def parse_toml(text: str, name: str, *, error: type[UserError] = UserError) -> dict[str, Any]:
    """Parse TOML from outside; see `parse_json`."""
    return _parse(tomllib.loads, text, f"{name} is not TOML", dict, error)


def _parse(parse: Callable[[str], Any], text: str, complaint: str, kind: type, error: type[UserError]) -> Any:
    try:
        value = parse(text)
    except RecursionError as wrong:
        raise error(f"{complaint} as read here: nested deeper than {MAX_DEPTH}") from wrong
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as wrong:
        reason = str(wrong)
        if isinstance(wrong, json.JSONDecodeError) and "\n" not in text.strip():
            reason = f"{wrong.msg} at column {wrong.colno}"  # its line may be any line of a file
        if isinstance(wrong, tomllib.TOMLDecodeError):
            reason += backslash_advice(wrong, text)
        elif "escape" in wrong.msg:
            reason += r"; a backslash is written twice, as in C:\\dogs"
        raise error(f"{complaint}: {reason}") from wrong
    except ValueError as wrong:  # of int(): Python's own bound
        raise error(f"{complaint} as read here: a number has over 4,300 digits") from wrong
    _refuse_depth_and_surrogates(value, complaint, error)
    if not isinstance(value, kind):
        raise error(f"{complaint} of the right type: {JSON_TYPES[kind]} is expected, not {_type_name(value)}")
    return value


def backslash_advice(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Return advice on TOML whose error a backslash may have caused."""
    is_cause = TOML_ESCAPE.search(str(error)) or (TOML_OPEN.search(str(error)) and '\\"' in text)
    return f"; {BACKSLASHES}" if is_cause else ""


def _refuse_depth_and_surrogates(value: Any, complaint: str, error: type[UserError]) -> None:
    """Refuse deep nesting and lone surrogates (`"\\ud83d"`)."""
    level = [value]
    for _ in range(MAX_DEPTH):
        texts = [item for item in level if isinstance(item, str)]
        texts += [key for item in level if isinstance(item, dict) for key in item]
        for text in texts:
            if LONE_SURROGATE.search(text):
                raise error(
                    f"{complaint} of whole characters: {ascii(text)[:80]} holds half a surrogate pair"
                )
        nested = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise error(f"{complaint} as read here: nested deeper than {MAX_DEPTH}")


def whole_characters(text: str) -> str:
    """Return a text; refuse lone surrogates, which no file can hold.

    Raises:
        ValueError: If it does.
    """
    if LONE_SURROGATE.search(text):
        raise ValueError("it holds half a character (a lone surrogate)")
    return text


def _type_name(value: Any) -> str:
    return next((name for kind, name in JSON_TYPES.items() if isinstance(value, kind)), type(value).__name__)
