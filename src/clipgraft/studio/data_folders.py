"""Data sets of the server's own folder, by name.

A browser sends names; which folder a name stands for is decided here alone, so no path comes from outside.
"""

import os
from pathlib import Path

from clipgraft.errors import MissingFileError, UserError
from clipgraft.files import LONE_SURROGATE, inside

MAX_NAMES = 500
"""Data sets listed."""


class DataFolders:
    """A folder whose subfolders are data sets, as is the folder itself.

    Args:
        root: None = there is no such folder, and nothing is trained.
    """

    def __init__(self, root: Path | None):
        if root is not None and not root.is_dir():
            raise MissingFileError(f"--data {root}: no such folder")
        self.root = root and root.resolve()

    def names(self) -> list[str]:
        """Return data sets by name; the folder itself, "", comes first."""
        if self.root is None:
            return []
        names = sorted(path.name for path in self._root().iterdir() if self._is_data_set(path))
        return ["", *names[:MAX_NAMES]]

    def folder(self, name: str) -> Path:
        """Return a data set's folder.

        Raises:
            UserError: If the studio has no data, or the name has path parts or is a link out of the folder.
            MissingFileError: If there is no such folder.
        """
        root = self._root()
        if not name:
            return root
        if name in (".", "..") or any(part in name for part in "/\\\0"):
            raise UserError(f"data set {name!r}: a name has no path parts")
        # os.path.isdir is also false for a name that is too long, or not UTF-8.
        if name.startswith(".") or not os.path.isdir(root / name):
            raise MissingFileError(f"there is no data set {name!r} in the studio's data folder")
        return inside(root / name, root, error=UserError)

    def _root(self) -> Path:
        if self.root is None:
            raise UserError("this studio trains nothing; start it with --data and a folder of data sets")
        if not self.root.is_dir():
            raise MissingFileError("the studio's data folder is gone")
        return self.root

    def _is_data_set(self, path: Path) -> bool:
        if path.name.startswith(".") or LONE_SURROGATE.search(path.name) or not path.is_dir():
            return False
        return path.resolve().is_relative_to(self._root())
