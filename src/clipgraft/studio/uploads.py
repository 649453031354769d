"""Images that clients uploaded, for requests to name.

A file is kept as it came, because its sha256 is in the record of each image made with it and is its id too.
Only its pixels are ever sent back.
"""

import hashlib
import io
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipgraft.data.images import MIN_SIDE, open_image
from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import clear_parts, write_bytes
from clipgraft.section import Like
from clipgraft.studio.image_files import decode_upload, encode

UPLOAD_ID = Like("^[0-9a-f]{64}$", "the id of an uploaded image, 64 digits of 0-9 and a-f")
SECONDS_UNUSED = 86_400.0
"""After it was uploaded or used, an image may wait so long for a job: of a page that stays open (guess)."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded image."""

    id: str
    """sha256 of the file."""
    width: int
    """Pixels, upright."""
    height: int


class Uploads:
    """Uploaded files by id.

    Args:
        folder: Created if missing; what a killed process left half written is deleted.
        max_bytes: Of all files; those not used for longest are deleted first.
        max_pixels: Of one image.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_pixels: int):
        self.folder, self.max_bytes, self.max_pixels = folder, max_bytes, max_pixels
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder, stale_seconds=0)

    def add(self, content: bytes) -> Upload:
        """Keep an image.

        Raises:
            DataError: If it is too small, or as `decode_upload`.
        """
        image = decode_upload(content, self.max_pixels)
        if min(image.size) < MIN_SIDE:
            raise DataError(
                f"the image has {image.width}x{image.height} pixels; each side needs at least {MIN_SIDE}"
            )
        upload = Upload(hashlib.sha256(content).hexdigest(), image.width, image.height)
        write_bytes(self.folder / upload.id, content)
        self._prune()
        return upload

    def add_image(self, image: Image.Image) -> Upload:
        """Keep pixels as a PNG."""
        return self.add(encode(image, "PNG"))

    def has(self, upload_id: str) -> bool:
        """Whether there is such a file."""
        return _is_id(upload_id) and (self.folder / upload_id).is_file()

    def path(self, upload_id: str) -> Path:
        """Return a file, which is in use from now on.

        Raises:
            MissingFileError: If it was never uploaded, or deleted since.
        """
        path = self.folder / upload_id
        try:
            os.utime(path)
        except FileNotFoundError:
            raise MissingFileError(f"there is no uploaded image {upload_id[:10]}; upload it again") from None
        return path

    def png(self, upload_id: str) -> bytes:
        """Return an image's pixels alone, as PNG."""
        file = io.BytesIO()
        open_image(self.path(upload_id)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def delete_others(self, ids: Collection[str]) -> None:
        """Delete images that no settings name, unused for long."""
        latest = time.time() - SECONDS_UNUSED
        for path, found in self._files():
            if path.name not in ids and found.st_mtime < latest:
                path.unlink(missing_ok=True)

    def _prune(self) -> None:
        total = 0
        for path, found in sorted(self._files(), key=lambda each: each[1].st_mtime_ns, reverse=True):
            total += found.st_size
            if total > self.max_bytes:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Return the uploaded files; another thread may write or delete some."""
        files = []
        for path in self.folder.iterdir():
            if _is_id(path.name):
                with suppress(FileNotFoundError):
                    files.append((path, path.stat()))
        return files


def _is_id(name: str) -> bool:
    return re.fullmatch(UPLOAD_ID.pattern, name) is not None
