"""User-facing errors, and the wording of messages."""

import datetime
import difflib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, get_args

if TYPE_CHECKING:  # pydantic takes a tenth of a second, which --help does without
    from pydantic import BaseModel, ValidationError

NO_SPACE = "no space left on the disk"
"""Beginning of every message about a full disk."""
NO_SPACE_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota and a file at its size limit."""
_PLAIN = {
    "a valid (tuple|list)": "a list",
    r"a valid dictionary( or [\w ]+)?": "a table of keys and values",
    "a valid boolean(, unable to interpret input)?": "true or false",
    "a valid (integer|number), unable to parse.*": r"a valid \1",
    "a valid string, unable to parse.*": "whole characters; it holds half of one (a lone surrogate)",
    "^(Tuple|List) (.*) after validation, not (more than )?": r"List \2, not \3",
}
"""Patterns in pydantic's reasons, and plain words for them."""
MAX_SHOWN = 100
"""Characters of a wrong value; a list may have any length."""


class UserError(ValueError):
    """A mistake the user can fix: what, which value, allowed, remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named is not there."""

    __str__ = Exception.__str__  # OSError's own puts errno first


class DataError(UserError):
    """A dataset, a caption file or an image cannot be used."""


class CheckpointError(UserError):
    """Weights or training state are missing, damaged or of another model."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Name the extra that installs a missing package.

    Args:
        extra: Such as "data".
        what: The package, or what needs it.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what} is not installed; pip install 'clipgraft[{extra}]'") from error


def one_line(error: Exception) -> str:
    """Format an error as one line; control characters are escaped.

    A file name of a stranger may hold terminal escapes, and ends up in messages.
    """
    if is_no_space(error):
        return f"{NO_SPACE} ({error.filename or 'while writing'}); free some and run again"
    if isinstance(error, OSError) and error.filename and error.strerror and not isinstance(error, UserError):
        place = error.filename2 or error.filename  # of a file written beside its place, the place
        return printable(f"{os.fsdecode(place) if isinstance(place, bytes) else place}: {error.strerror}")
    return printable(" ".join(str(error).split()))


def is_no_space(error: BaseException) -> TypeGuard[OSError]:
    """Whether a disk, quota or file size limit is exhausted."""
    return isinstance(error, OSError) and error.errno in NO_SPACE_NUMBERS


def printable(text: str) -> str:
    """Escape control characters and lone surrogates for a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun: `1 image`, `2,000 images`."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def some_of(texts: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """Join texts; beyond `most`, dots stand for the rest."""
    return separator.join([*texts[:most], *["..."] * (len(texts) > most)])


def is_user_error(error: Exception) -> bool:
    """Whether it is a `UserError` or a refusal of the operating system.

    Everything else, also a `ValueError` raised by our own code, is a bug of ours and keeps its traceback.
    """
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)


def explain(error: "ValidationError", model: "type[BaseModel]", kind: str) -> str:
    """Format the first problem of a validation as one line.

    Args:
        error: Raised by `model`.
        model: Its field names are offered in place of an unknown one.
        kind: What a field is called, such as "recipe key".
    """
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _names_beside(location, model)
        nearest = difflib.get_close_matches(location[-1], known, n=1) or _places_of(location[-1], model)
        hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        hint = hint or f"known here: {', '.join(known)}"
        return f"unknown {kind} {_cut(dotted)!r}; {hint}"
    message = plain_reason(first["msg"])
    found = first["input"]
    shown = str(found) if isinstance(found, datetime.date | datetime.time) else repr(found)
    return f"{kind} {dotted!r}: {message[0].lower()}{message[1:]}; got {_cut(shown)}"


def plain_reason(message: str) -> str:
    """Return a reason of pydantic's without words of Python's."""
    message = message.removeprefix("Value error, ").replace("Extra inputs are not permitted", "Unknown field")
    for pattern, plain in _PLAIN.items():
        message = re.sub(pattern, plain, message)
    return message


def _cut(text: str) -> str:
    return f"{text[:MAX_SHOWN]}..." if len(text) > MAX_SHOWN else text


def _places_of(name: str, model: "type[BaseModel]") -> list[str]:
    """Return the keys of that name in a model and its sections."""
    sections = {
        key: getattr(field.annotation, "model_fields", {}) for key, field in model.model_fields.items()
    }
    own = [name] if name in sections else []
    return own + [f"{key}.{name}" for key, keys in sections.items() if name in keys]


def _names_beside(location: list[str], model: "type[BaseModel]") -> list[str]:
    for part in location[:-1]:
        is_index = part.isdecimal()  # in a tuple of models
        model = get_args(model)[0] if is_index else model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
