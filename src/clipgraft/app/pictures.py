"""Drawn pictures on disk, by id: PNG files that are whole or not there."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from clipgraft.app.uploads import encode, read_png_texts
from clipgraft.errors import DataError
from clipgraft.generation.pipeline import Picture


class PictureFiles:
    """Files of drawn pictures; ids come from the queue alone, so they are no paths.

    Args:
        folder: Made where there is none.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, picture_id: str) -> Path:
        """Where a picture lies."""
        assert picture_id.isalnum(), picture_id
        return self.folder / f"{picture_id}.png"

    def is_there(self, picture_id: str) -> bool:
        """Whether a picture was written, whole."""
        return self.path(picture_id).is_file()

    def save(self, picture_id: str, picture: Picture) -> None:
        """Write a picture whole or not at all."""
        path = self.path(picture_id)
        temporary = path.with_suffix(".part")
        picture.image.save(temporary, format="PNG")
        temporary.replace(path)

    def read(self, picture_id: str, image_format: str, *, with_metadata: bool = True) -> bytes:
        """Read a picture as a file of a format; how it was drawn is told by PNG files alone.

        Args:
            picture_id: Of a drawn picture.
            image_format: png, jpeg or webp.
            with_metadata: False to leave out how it was drawn.
        """
        content = self.path(picture_id).read_bytes()
        if image_format == "png" and with_metadata:
            return content
        with Image.open(self.path(picture_id), formats=["PNG"]) as image:
            pixels = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
        options = {"jpeg": {"quality": 95}, "webp": {"quality": 95}}.get(image_format, {})
        return encode(pixels, image_format.upper(), **options)

    def delete(self, *picture_ids: str) -> None:
        """Delete files; those that are not there do not matter."""
        for picture_id in picture_ids:
            self.path(picture_id).unlink(missing_ok=True)


def settings_from_png(content: bytes, max_pixels: int) -> dict[str, Any]:
    """Read from a PNG how it was drawn.

    Raises:
        DataError: If it is none that clipgraft drew, or was written without that.
    """
    text = read_png_texts(content, max_pixels).get("clipgraft")
    try:
        job = json.loads(text or "")["job"]
    except (ValueError, KeyError, TypeError):
        raise DataError("this picture does not say how it was drawn; PNGs that clipgraft drew do") from None
    return job
