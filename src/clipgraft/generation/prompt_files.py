"""Prompts from a file or standard input: one a line, or JSONL with settings of their own."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipgraft.errors import DataError, MissingFileError, UserError
from clipgraft.files import parse_json, read_bytes
from clipgraft.generation.params import Job, make_jobs

STANDARD_INPUT = Path("-")


def read_jobs(
    source: Path, settings: Mapping[str, Any], *, skip_bad_lines: bool = False
) -> tuple[list[Job], list[str]]:
    """Read the jobs of a file of prompts.

    Args:
        source: A file, or `-` for standard input. JSONL where its name ends so, or standard input begins
            with a brace: objects with `prompt` and the words of `make_jobs`. Else a prompt a line; empty
            lines are none.
        settings: The words of `make_jobs` that hold where a line says nothing else.
        skip_bad_lines: Go on without lines that cannot be used.

    Returns:
        The jobs, and a sentence for each line that was left out.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If a line cannot be used, with its number; or if no prompt is left.
    """
    name, content = _content(source)
    is_jsonl = source.suffix == ".jsonl" or (source == STANDARD_INPUT and content.lstrip().startswith(b"{"))
    folder = source.parent if source != STANDARD_INPUT else Path()
    jobs: list[Job] = []
    skipped = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8").strip()
            jobs += _jobs_of_object(text, settings, folder) if is_jsonl else make_jobs(text, **settings)
        except (UserError, UnicodeDecodeError) as error:
            problem = f"{name}, line {number}: {_reason(error)}"
            if not skip_bad_lines:
                raise DataError(f"{problem}; mend it, or add --skip-bad-lines") from error
            skipped.append(problem)
    if not jobs:
        raise DataError(f"{name} holds no prompt that can be drawn; put one on each line")
    return jobs, skipped


def _content(source: Path) -> tuple[str, bytes]:
    if source == STANDARD_INPUT:
        return "standard input", sys.stdin.buffer.read()
    if not source.is_file():
        raise MissingFileError(f"file of prompts not found: {source}")
    return source.name, read_bytes(source)


def _jobs_of_object(text: str, settings: Mapping[str, Any], folder: Path) -> list[Job]:
    values = parse_json(text, "the line")
    if "prompt" not in values:
        raise UserError('no object with a "prompt"')
    init_image = values.get("init_image")
    if init_image and isinstance(init_image, str):
        values["init_image"] = folder / init_image
    return make_jobs(**{**settings, **values})


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 (byte {error.start + 1})"
    return str(error)
