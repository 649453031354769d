"""A folder of captioned images: which of its files may be read, and their text.

Folders come from strangers: nothing outside is read, whatever links say.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from clipgraft.data.dataset import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from clipgraft.errors import DataError
from clipgraft.files import read_bytes

NUM_EXAMPLES = 3
"""Names that stand for all files with the same note."""


class DataFolder:
    """A folder, and notes on what was found odd in it.

    Args:
        root: The folder, or a link to it.
    """

    def __init__(self, root: Path):
        self.root = root
        self._real_root = os.path.realpath(root)
        self._notes: dict[str, list[str]] = {}

    def note(self, note: str, name: str = "") -> None:
        """Keep a note on the folder or one of its files; those of one kind are told together."""
        self._notes.setdefault(note, []).append(name)

    @property
    def notes(self) -> list[str]:
        """What was noted, a few of the files each is about by name."""
        return [
            f"{note}{', '.join(names[:NUM_EXAMPLES])}"
            + (f" and {len(names) - NUM_EXAMPLES:,} more" if len(names) > NUM_EXAMPLES else "")
            for note, names in self._notes.items()
        ]

    def inside(self, path: Path) -> Path:
        """Return a path below the root, or refuse it.

        Raises:
            DataError: If it is, or lies behind, a link that points out of the folder.
        """
        real = os.path.realpath(path)  # unlike Path.resolve, it takes a loop of links for a file
        if not Path(real).is_relative_to(self._real_root):
            raise DataError(f"{path}: links to {real}, outside of {self.root}; copy it into the folder")
        return path

    def name(self, path: Path) -> str:
        """Return a path relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def list_images(self, folder: Path) -> dict[str, Path]:
        """Return every file below a folder whose name says that it is an image.

        Linked folders are not followed; a linked file may point anywhere inside the root.

        Args:
            folder: The root or a folder below it.

        Returns:
            Name relative to `folder` with forward slashes -> path, sorted by name. Hidden files and images of
            formats that cannot be used are among them, since they are to be counted out by name; what is no
            file is noted.

        Raises:
            DataError: If a linked file points out of the root.
        """
        images: dict[str, Path] = {}
        folders = [str(self.inside(folder))]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif path.suffix.lower() in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
                        if entry.is_symlink():
                            self.inside(path)
                        if path.is_file():
                            images[path.relative_to(folder).as_posix()] = path
                        else:
                            self.note("no file, or a link to none: ", self.name(path))
        return dict(sorted(images.items()))

    def read_text(self, path: Path) -> str:
        """Return a file's text, in UTF-8 or else in Windows-1252, which is noted.

        Raises:
            DataError: If it is outside of the folder, no file, in another encoding, or holds NUL bytes as
                UTF-16 does.
        """
        raw = read_bytes(self.inside(path))
        if b"\0" in raw:
            raise DataError(f"{path}: holds NUL bytes, so it is UTF-16 or no text; save it as UTF-8")
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.note("not UTF-8, so read as Windows-1252: ", self.name(path))
        try:
            return raw.decode("cp1252")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: is neither UTF-8 nor Windows-1252 ({error}); save it as UTF-8"
            ) from None

    def read_lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield number (from 1) and text of each line that is not blank; ends are LF, CRLF or CR.

        Raises:
            DataError: As `read_text`.
        """
        for number, line in enumerate(re.split(r"\r\n|\n|\r", self.read_text(path)), start=1):
            if line.strip():
                yield number, line


def tidy(caption: str) -> str:
    """Return a caption with single spaces and none around it."""
    return " ".join(caption.split())
