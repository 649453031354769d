"""User-facing errors and their one-line messages."""

import errno
from typing import TypeGuard

NO_SPACE = "no space left on the disk"
"""So begins what is said of a full disk."""


class UserError(ValueError):
    """Something that the user can mend: one line saying what, which value, what is allowed, what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named is not there."""

    __str__ = Exception.__str__  # OSError's own puts errno first


class DataError(UserError):
    """A captioned-image source, a caption file or an image cannot be used as it is."""


class CheckpointError(UserError):
    """Saved weights or training state are missing, damaged or made for something else."""


def one_line(error: Exception) -> str:
    """Format an error as one line; control characters are escaped.

    A file name of a stranger may hold terminal escapes, and ends up in messages.
    """
    if is_no_space(error):
        return f"{NO_SPACE} ({error.filename or 'while writing'}); free some and run again"
    return printable(" ".join(str(error).split()))


def is_no_space(error: Exception) -> TypeGuard[OSError]:
    """Whether the operating system refused to write more: a full disk, a quota, a limit of file sizes."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show: control characters, lone surrogates."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def is_user_error(error: Exception) -> bool:
    """Whether the user can mend it: a `UserError`, or a refusal of the operating system.

    Everything else, also a `ValueError` raised by our own code, is a bug of ours and keeps its traceback.
    """
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)
