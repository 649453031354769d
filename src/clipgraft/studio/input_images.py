"""Images that clients upload to start from, kept by their sums."""

import io
import time
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from clipgraft.data.images import MIN_SIDE
from clipgraft.errors import DataError
from clipgraft.files import atomic_write
from clipgraft.generation.request_files import IMAGES

SECONDS_TO_QUEUE = 60.0
"""After it was kept, an image may wait so long for its job (guess)."""


class InputImages:
    """Uploaded images as PNG files, named after their sums.

    Args:
        folder: Created if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, image: Image.Image) -> Path:
        """Keep an image's pixels; return its file.

        Raises:
            DataError: If it is too small.
        """
        if min(image.size) < MIN_SIDE:
            width, height = image.size
            raise DataError(f"the image has {width}x{height} pixels; each side needs at least {MIN_SIDE}")
        content = io.BytesIO()
        image.save(content, "PNG", compress_level=1)
        path = self._path(sha256(content.getvalue()).hexdigest())
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.getvalue())
        return path

    def files_of(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Return the files of a queued image's settings, by parameter."""
        sums = {name: settings.get(f"{name}_sha256") for name in IMAGES}
        return {name: str(self._path(found)) for name, found in sums.items() if found}

    def delete_others(self, sums: Collection[str]) -> None:
        """Delete images that no settings name any more."""
        latest = time.time() - SECONDS_TO_QUEUE
        for path in self.folder.glob("*.png"):
            if path.stem not in sums and path.stat().st_mtime < latest:
                path.unlink(missing_ok=True)

    def _path(self, found: str) -> Path:
        assert found.isalnum(), found
        return self.folder / f"{found}.png"
