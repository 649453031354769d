"""Image files: generated ones by id; uploads, inspected before decoding.

The formats of a data folder are taken; a file that is cut off is refused. Their size is bounded by the header
before a pixel is decoded, and only pixels are kept: no EXIF, and nothing that follows a file's end, such as a
phone's short video.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from clipgraft.data.containers import is_whole
from clipgraft.data.images import decode, read_header
from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import clear_parts
from clipgraft.generation.image_encoding import encode_image, read_texts, write_image
from clipgraft.generation.metadata import texts_of
from clipgraft.generation.pipeline import GeneratedImage

FILE_QUALITY = 95
"""Of JPEG and WebP files; from there on they grow faster than they get better (guess)."""
_SEVERAL_IMAGES = ("MPO", "HEIF")
"""Formats that may hold more images than the one to show, and are no animations."""


class ImageFiles:
    """Files of generated images by id; ids come from the queue alone.

    Args:
        folder: Created if missing; what a killed process left half written is deleted.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder, stale_seconds=0)

    def path(self, image_id: str) -> Path:
        assert image_id.isalnum(), image_id
        return self.folder / f"{image_id}.png"

    def is_there(self, image_id: str) -> bool:
        return self.path(image_id).is_file()

    def save(self, image_id: str, image: GeneratedImage, studio: dict[str, Any]) -> None:
        """Write an image atomically, with everything needed to reproduce it.

        Args:
            image_id: Names its file.
            image: The image.
            studio: Names that only this studio knows: of its model, ControlNets and IP-Adapters.
        """
        record = {**(image.metadata or {}), "studio": studio}
        write_image(image.image, self.path(image_id), texts=texts_of(record))

    def read(
        self, image_id: str, image_format: str, *, with_metadata: bool = True, quality: int = FILE_QUALITY
    ) -> bytes:
        """Read an image as png, jpeg or webp; PNG has no quality."""
        try:
            content = self.path(image_id).read_bytes()
        except FileNotFoundError:
            raise MissingFileError(f"the file of image {image_id} is gone") from None
        if image_format == "png" and with_metadata:
            return content
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            texts = read_texts(image) if with_metadata else {}
            pixels = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
        return encode_image(pixels, image_format, texts, quality=quality)

    def delete(self, *image_ids: str) -> None:
        for image_id in image_ids:
            self.path(image_id).unlink(missing_ok=True)


def decode_upload(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an image: RGB, upright, nothing but its pixels.

    Raises:
        DataError: If it is no whole image of a format that is read, or has more pixels.
    """
    with opened_upload(content, max_pixels) as image:
        upright = decode(image)
    # A copy of the pixels: `upright.info` still holds what the file says of itself.
    return Image.frombytes("RGB", upright.size, upright.tobytes())


def decode_mask(content: bytes, max_pixels: int, *, is_mask: bool) -> Image.Image | None:
    """Decode a mask (8-bit grey): white where transparent, else where white.

    Args:
        content: Of a mask, or of an image that may hold one in its transparency.
        max_pixels: At most.
        is_mask: Whether it is a mask; else None is returned where nothing is transparent.

    Raises:
        DataError: As `decode_upload`.
    """
    with opened_upload(content, max_pixels) as image:
        pixels = decode(image)  # turns `image` upright too
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            if alpha.getextrema()[0] != 255:
                return ImageOps.invert(alpha)
        return pixels.convert("L") if is_mask else None


def count_pixels(content: bytes, max_pixels: int) -> int:
    """Return an image's pixel count by its header; errors as `decode_upload`."""
    with opened_upload(content, max_pixels) as image:
        return image.width * image.height


def read_base64(text: str) -> bytes:
    """Decode base64, also of a `data:image/...;base64,` address, or raise a `DataError`."""
    head, comma, rest = text.partition(",")
    if comma and head.startswith("data:"):
        text = rest
    elif "://" in text[:64]:
        raise DataError("images are taken as base64 in the request; nothing is fetched from an address")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("the image is not base64") from None


def encode(image: Image.Image, image_format: str, *, quality: int = FILE_QUALITY) -> bytes:
    """Encode the pixels alone; a PNG ignores `quality`."""
    file = io.BytesIO()
    image.save(file, format=image_format, quality=quality)
    return file.getvalue()


@contextmanager
def opened_upload(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Give an image with header and end checked; errors name the image."""
    try:
        image = read_header(content, max_pixels)
        if image.format not in _SEVERAL_IMAGES and getattr(image, "n_frames", 1) > 1:
            raise DataError("is animated; upload a still one")
        if not is_whole(content, str(image.format)):
            raise DataError("is cut off; save it anew and upload that")
        yield image
    except DataError as error:
        raise DataError(f"the image {error}") from error.__cause__
