"""Text files with one caption or prompt a line."""

from pathlib import Path

from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import read_text


def read_lines(path: Path, kind: str) -> list[str]:
    """Read what a text file holds, one a line; blank lines are left out.

    Args:
        path: The file.
        kind: What a line is, for messages: "caption" or "prompt".

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it is not UTF-8 text, or holds nothing.
    """
    if not path.is_file():
        raise MissingFileError(f"{kind}s file not found: {path}; it is a text file with one {kind} a line")
    found = list(filter(None, map(str.strip, read_text(path).splitlines())))
    if not found:
        raise DataError(f"{path} holds no {kind}; write one a line")
    return found
