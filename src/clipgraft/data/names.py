"""Image names in caption files, matched as file systems match them.

macOS writes accents as two characters and Windows as one, both take `A.JPG` for `a.jpg`, and Windows writes
backslashes. An exact name always wins; a name that may mean two files means none.
"""

import re
import unicodedata
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import PurePosixPath

from clipgraft.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif"}
)
OTHER_IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jxl", ".svg", ".tif", ".tiff"})
"""Suffixes of formats that are not read; the file counts by its content."""


def check_image_name(name: str, where: str) -> str:
    """Normalise an image name to forward slashes; refuse paths outside.

    Such a name is absolute, has a drive letter, `..` or a NUL, or is a UNC path.
    """
    plain = name.replace("\\", "/")
    is_unsafe = plain.startswith("/") or "\0" in plain or re.match(r"[A-Za-z]:", plain)
    if is_unsafe or ".." in plain.split("/"):
        raise DataError(
            f"{where}: image name {name[:120]!r} points out of the image folder; "
            "expected a name inside it, without '..'"
        )
    return "/".join(part for part in plain.split("/") if part not in ("", ".")) if "/" in plain else plain


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _folded(name: str) -> str:
    return _composed(_composed(name).casefold())


def has_image_suffix(name: str) -> bool:
    """Whether a name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES


class NameIndex:
    """Images of a folder, found by their names in caption files."""

    def __init__(self, names: Collection[str]):
        self._names = names if isinstance(names, (set, frozenset, dict)) else set(names)

    def _keys(self, key: Callable[[str], str]) -> dict[str, str | None]:
        keys: dict[str, str | None] = {}
        for name in self._names:
            keys[key(name)] = None if key(name) in keys else name
        return keys

    @cached_property
    def _spellings(self) -> tuple[tuple[Callable[[str], str], dict[str, str | None]], ...]:
        return tuple((key, self._keys(key)) for key in (_composed, _folded))

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        """Images by file name, and by file name without its suffix."""
        found: dict[str, list[str]] = {}
        for name in self._names:
            last = _folded(name.rsplit("/", 1)[-1])
            for key in (last, f"{PurePosixPath(last).stem}/"):
                found.setdefault(key, []).append(name)
        return found

    def same_file(self, name: str) -> str | None:
        """Return the image that a file system would take the name for."""
        if name in self._names:
            return name
        for key, names in self._spellings:
            if key(name) in names:
                return names[key(name)]
        return None

    def below(self, base: str, name: str, where: str) -> str:
        """Return the image of a name below a folder, else the path.

        Args:
            base: The folder, "" or with a slash at its end.
            name: Relative to it, to the root, or to one of its subfolders (if only one has such an image);
                it may lack the image's suffix.
            where: For messages.

        Raises:
            DataError: If images in several subfolders fit.
        """
        found = self.same_file(base + name)
        if found is None and base and _folded(name).startswith(_folded(base)):
            found = self.same_file(name)
        if found is not None:
            return found
        wanted = _folded(name)
        last = wanted.rsplit("/", 1)[-1]
        if not has_image_suffix(last):
            last += "/"
        fits = [
            image
            for image in self._by_last_part.get(last, [])
            if image.startswith(base) and _ends_with(_folded(image), wanted)
        ]
        if len(fits) > 1:
            raise DataError(
                f"{where}: image name {name!r} may be {' or '.join(sorted(fits)[:3])}; name its folder too"
            )
        return fits[0] if fits else base + name


def _ends_with(image: str, wanted: str) -> bool:
    if not has_image_suffix(wanted):
        image = image[: -len(PurePosixPath(image).suffix)]
    return f"/{image}".endswith(f"/{wanted}")
