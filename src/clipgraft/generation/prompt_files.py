"""Files of prompts in the forms that tools write.

Text with one prompt per line (and the options of A1111's "Prompts from file" or kohya's sample prompts), JSON
lines, a JSON list, or a table with a column `prompt` (PartiPrompts).
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipgraft.console import say
from clipgraft.data.tables import SEPARATORS, csv_rows, first_row
from clipgraft.errors import DataError, MissingFileError, UserError
from clipgraft.files import beside, in_utf8, parse_json, read_bytes
from clipgraft.generation.request_adapters import adapters_beside
from clipgraft.generation.request_files import IMAGES
from clipgraft.generation.request_guides import guides_beside
from clipgraft.generation.requests import RENAMED, ImageRequest, image_requests, with_changes
from clipgraft.sampling_params import DEFAULT_SAMPLING, SamplingParams

STANDARD_INPUT = Path("-")
JSON_LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
A1111_NAMES = {
    **RENAMED,
    **{name: name for name in SamplingParams.model_fields},
    **{"cfg_scale": "guidance_scale", "sampler_name": "scheduler", "n_iter": "num_images_per_prompt"},
}
A1111_OPTION = re.compile(rf"\s(--(?:{'|'.join(A1111_NAMES)}))\s")
KOHYA_NAMES = {
    **{"n": "negative_prompt", "w": "width", "h": "height", "d": "seed", "s": "num_inference_steps"},
    **{"l": "guidance_scale", "ss": "scheduler"},
}
KOHYA_OPTION = re.compile(r"\s+--(?P<name>[a-z]{1,2})\s+")
TABLE_NAMES = {"prompt", *SamplingParams.model_fields, *RENAMED}
TEXTS = ("prompt", "negative_prompt")
"""Which may be numbers, such as 1984."""


def read_requests(
    source: Path, params: SamplingParams, *, skip_bad_lines: bool = False
) -> tuple[list[ImageRequest], list[str]]:
    """Read requests from a file of prompts.

    Args:
        source: A file, or `-` for standard input. JSON lines where its name ends so or its first line begins
            with a brace, a list in `.json`, a table in `.csv` or `.tsv`; else one prompt per line, without
            empty lines and lines that begin with `#`.
        params: Hold where a line says nothing else.
        skip_bad_lines: Go on without lines that cannot be used.

    Returns:
        The requests, and a sentence for each line that was skipped.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If a line cannot be used, with its number; or if no prompt is left.
    """
    name, content = _content(source)
    folder = source.parent if source != STANDARD_INPUT else Path()
    unit = "entry" if source.suffix.lower() == ".json" else "line"
    requests: list[ImageRequest] = []
    skipped = []
    for number, entry in _entries(in_utf8(content), source.suffix.lower(), name):
        try:
            if isinstance(entry, UserError):
                raise entry
            requests += _requests(entry, params, folder)
        except UserError as error:
            problem = f"{name}, {unit} {number}: {error}"
            if not skip_bad_lines:
                raise DataError(
                    f"{problem}; correct it (generate leaves it out with --skip-bad-lines)"
                ) from error
            skipped.append(problem)
    if not requests:
        raise DataError(f"{name} holds no prompt; put one on each line")
    return requests, skipped


def read_prompts(source: Path) -> list[str]:
    """Read the texts of a file of prompts; raises as `read_requests`."""
    requests, _ = read_requests(source, DEFAULT_SAMPLING)
    return list(dict.fromkeys(request.prompt for request in requests))


def _content(source: Path) -> tuple[str, bytes]:
    if source == STANDARD_INPUT:
        return "standard input", sys.stdin.buffer.read()
    if not source.is_file():
        raise MissingFileError(f"file of prompts not found: {source}{' is a folder' * source.is_dir()}")
    return source.name, read_bytes(source)


def _entries(content: bytes, suffix: str, name: str) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yield the number and values of each line, or its error."""
    if suffix == ".json":
        values = parse_json(_text(content, f"{name}: "), name, list)
        for number, each in enumerate(values, start=1):
            yield number, each if isinstance(each, dict) else {"prompt": each}
    elif suffix in TABLES:
        yield from _rows(_text(content, f"{name}: "), name)
    else:
        is_json = suffix in JSON_LINES or content.lstrip().startswith(b"{")
        if not is_json:
            _say_other_form(content.lstrip().partition(b"\n")[0].decode("utf-8", "replace"), name)
        for number, line in enumerate(re.split(rb"\r\n|\n|\r", content), start=1):
            if not line.strip() or (line.startswith(b"#") and not is_json):
                continue
            try:
                text = _text(line).strip()
                yield number, parse_json(text, "the line") if is_json else _options(text)
            except UserError as error:
                yield number, error


def _say_other_form(first_line: str, name: str) -> None:
    """Say that lines read as prompts look like a table or JSON."""
    columns = {column.strip().lower() for column in re.split("[\t,]", first_line)}
    if "\t" in first_line or ("prompt" in columns and len(columns) > 1):
        say(f"{name} looks like a table and is read as one prompt per line; .csv or .tsv reads its columns")
    elif re.match(r'\[\s*(["{]|$)', first_line):
        say(f"{name} looks like a JSON list and is read as one prompt per line; .json reads its values")


def _text(content: bytes, place: str = "") -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None


def _rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table; columns other than `TABLE_NAMES` are left out.

    Its separator is the first one with which a column is called prompt, so that the prompts of a table with
    this column alone may have commas.
    """
    headers = {mark: [column.lower() for column in first_row(text, mark)] for mark in SEPARATORS.values()}
    separator = next((mark for mark, columns in headers.items() if "prompt" in columns), "")
    if not separator:
        longest = max(headers.values(), key=len)
        found = ", ".join(map(repr, longest)) or "none"
        raise DataError(f"{name} has no column 'prompt'; its columns are {found}")
    if others := [column for column in headers[separator] if column and column not in TABLE_NAMES]:
        say(f"{name}: columns that are no parameters are left out: {', '.join(others)}")
    for line, row in csv_rows(text, separator, headers[separator], name):
        known = {key: value.strip() for key, value in row.items() if key in TABLE_NAMES and value.strip()}
        yield line, {key: value if key in TEXTS else _value(value) for key, value in known.items()}


def _options(line: str) -> dict[str, Any]:
    """Return the prompt and the options of a line of text."""
    if re.match(r"--[a-z]", line):
        return _a1111_options(line)
    if named := A1111_OPTION.search(line):
        raise UserError(
            f'{named[1]} stands behind a prompt; A1111\'s form is --prompt "a dog" {named[1]} ...'
        )
    found = list(KOHYA_OPTION.finditer(line))
    if not found:
        return {"prompt": line}
    values: dict[str, Any] = {"prompt": line[: found[0].start()]}
    for option, following in zip(found, [*found[1:], None], strict=True):
        key = _known(option["name"], KOHYA_NAMES)
        text = line[option.end() : following.start() if following else None].strip()
        values[key] = text if key in TEXTS else _value(text)
    return values


def _a1111_options(line: str) -> dict[str, Any]:
    try:
        words = iter(shlex.split(line))
    except ValueError as error:
        raise UserError(f"options cannot be read ({error})") from None
    values: dict[str, Any] = {}
    for word in words:
        key = word.removeprefix("--")
        if key == word:
            raise UserError(f"{word!r} is no option; put the prompt in quotes after --prompt")
        value = next(words, None)
        if value is None:
            raise UserError(f"{word} has no value")
        key = "prompt" if key == "prompt" else _known(key, A1111_NAMES)
        values[key] = value if key in TEXTS else _value(value)
    return values


def _known(name: str, names: Mapping[str, str]) -> str:
    if name not in names:
        allowed = ", ".join(f"--{each}" for each in names)
        raise UserError(f"option --{name} is not known; known are {allowed}")
    return names[name]


def _value(text: str) -> str | int | float:
    """Return a number or a bool where a text is one."""
    if text.lower() in ("true", "false"):  # spreadsheets write TRUE
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _requests(values: dict[str, Any], params: SamplingParams, folder: Path) -> list[ImageRequest]:
    if "prompt" not in values:
        raise UserError('no object with a "prompt"')
    prompt = values.pop("prompt")
    for name in (*IMAGES, "wildcards"):
        if isinstance(values.get(name), str):
            values[name] = beside(folder, values[name])
    values |= adapters_beside(values, folder)
    try:
        values |= guides_beside(values, folder)
    except ValueError as error:
        raise UserError(f"'controls' or 'ip_adapters': {error}") from error
    return image_requests([prompt], with_changes(params, values))
