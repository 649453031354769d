"""Drawn pictures on disk, by id: PNG files that are whole or not there."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from clipgraft.errors import DataError, MissingFileError
from clipgraft.generation.metadata import RECORD_KEY, save_png
from clipgraft.generation.params import Job
from clipgraft.generation.pipeline import Picture
from clipgraft.studio.uploads import encode, read_png_texts

SETTINGS = (
    "prompt",
    "negative_prompt",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "height",
    "width",
)
"""Fields of a job that a client decides."""


class PictureFiles:
    """Files of drawn pictures; ids come from the queue alone, so they are no paths.

    Args:
        folder: Made where there is none; what a killed process left half written is deleted.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*.part"):
            unfinished.unlink()

    def path(self, picture_id: str) -> Path:
        """Where a picture lies."""
        assert picture_id.isalnum(), picture_id
        return self.folder / f"{picture_id}.png"

    def is_there(self, picture_id: str) -> bool:
        """Whether a picture was written, whole."""
        return self.path(picture_id).is_file()

    def save(self, picture_id: str, picture: Picture, model: str) -> None:
        """Write a picture whole or not at all, with all that is needed to draw it again."""
        record = {**(picture.metadata or {}), "studio": {"model": model}}
        save_png(picture.image, self.path(picture_id), record)

    def read(self, picture_id: str, image_format: str, *, with_metadata: bool = True) -> bytes:
        """Read a picture as a file of a format; how it was drawn is told by PNG files alone.

        Args:
            picture_id: Of a drawn picture.
            image_format: png, jpeg or webp.
            with_metadata: False to leave out how it was drawn.

        Raises:
            FileNotFoundError: If its file is gone.
        """
        try:
            content = self.path(picture_id).read_bytes()
        except FileNotFoundError:
            raise MissingFileError(f"the file of picture {picture_id} is gone") from None
        if image_format == "png" and with_metadata:
            return content
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            pixels = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
        options = {"jpeg": {"quality": 95}, "webp": {"quality": 95}}.get(image_format, {})
        return encode(pixels, image_format.upper(), **options)

    def count_pixels(self, picture_id: str) -> int:
        """Width times height of a picture, by its header; 0 where its file is gone."""
        if not self.is_there(picture_id):
            return 0
        with Image.open(self.path(picture_id), formats=["PNG"]) as image:
            return image.width * image.height

    def delete(self, *picture_ids: str) -> None:
        """Delete files; those that are not there do not matter."""
        for picture_id in picture_ids:
            self.path(picture_id).unlink(missing_ok=True)


def settings_from_png(content: bytes, max_pixels: int) -> dict[str, Any]:
    """Read from a PNG how it was drawn.

    Raises:
        DataError: If it is none that clipgraft drew, or was written without that.
    """
    text = read_png_texts(content, max_pixels).get(RECORD_KEY)
    try:
        record = json.loads(text or "")
        job, studio = record["job"], record.get("studio", {})
        # What the form takes; a damaged value is refused here as it would be when drawing.
        settings = asdict(Job(**{name: job[name] for name in SETTINGS}))
        if None in (settings["num_inference_steps"], settings["guidance_scale"]):
            raise ValueError  # no picture is drawn without numbers
        model = str(studio.get("model", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError("this picture does not say how it was drawn; PNGs that clipgraft drew do") from None
    return {name: settings[name] for name in SETTINGS} | {"model": model}
