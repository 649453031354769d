"""Captions without images: any text file with one a line."""

from pathlib import Path

from clipgraft.errors import DataError


def read_caption_lines(path: Path) -> list[str]:
    """Read captions, one a line; blank lines and repetitions are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it is not UTF-8 text, or holds no caption.
    """
    if not path.is_file():
        raise FileNotFoundError(f"captions file not found: {path}; it is a text file with one caption a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); write it as UTF-8") from error
    captions = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not captions:
        raise DataError(f"{path} holds no caption; write one a line")
    return captions
