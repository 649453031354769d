"""Photographs are found, checked before they are decoded, and opened as they are meant to be seen."""

import struct
import time
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipgraft.data.images import MAX_PIXELS, MIN_SIDE, list_images, open_image
from clipgraft.errors import DataError

SIDE = 24


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG header that claims a size, 1 bit for each pixel, without the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_photograph_opens_to_its_very_pixels(tmp_path: Path, format: str) -> None:
    (tmp_path / "a").write_bytes(
        encoded(picture(), format, **({"lossless": True} if format == "WEBP" else {}))
    )
    assert np.array_equal(np.asarray(open_image(tmp_path / "a")), np.asarray(picture()))


def test_jpeg_opens_whatever_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(), "JPEG"))
    image = open_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to display"
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG", exif=exif))
    upright = open_image(tmp_path / "a.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (0, 0, 255)
    assert upright.getpixel((10, 35)) == (255, 0, 0)


def test_grayscale_becomes_rgb_with_equal_channels(tmp_path: Path) -> None:
    gray = picture().convert("L")
    (tmp_path / "a.png").write_bytes(encoded(gray, "PNG"))
    assert np.array_equal(
        np.asarray(open_image(tmp_path / "a.png")), np.asarray(gray)[..., None].repeat(3, axis=2)
    )


def test_16_bit_grayscale_keeps_its_brightness(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(values), "PNG"))
    opened = np.asarray(open_image(tmp_path / "a.png"))[..., 0]
    assert np.abs(opened.astype(float) - values / 257).max() <= 1


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG"))
    image = open_image(tmp_path / "a.jpg")
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((5, 5))
    assert red > 200 > 60 > max(green, blue)  # no cyan, full magenta and yellow is red


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, SIDE // 2, SIDE))
    (tmp_path / "a.png").write_bytes(encoded(image.convert(mode), "PNG"))
    opened = open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert opened.getpixel((2, 2)) == (0, 0, 0)
    assert opened.getpixel((SIDE - 2, 2)) == (255, 255, 255)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.jpg: no such image"):
        open_image(tmp_path / "gone.jpg")


@cache
def broken_files() -> dict[str, tuple[bytes, str]]:
    jpeg, png = encoded(picture(side=100), "JPEG"), encoded(picture(side=100), "PNG")
    huge_text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 50_000_000))
    return {
        "empty": (b"", r"the file is empty \(0 bytes\)"),
        "truncated-jpeg": (jpeg[: len(jpeg) // 2], "the image is damaged"),
        "truncated-png": (png[: len(png) // 2], "the image is damaged"),
        "header-only": (jpeg[:20], "the image is damaged|is no image of a known format"),
        "text-bomb": (png_of_size(32, 32, huge_text), "the image is damaged"),
        "gif": (encoded(picture(), "GIF"), "is a GIF; expected a JPEG, PNG or WebP image"),
        "bmp": (encoded(picture(), "BMP"), "is a BMP; expected"),
        "tiff": (encoded(picture(), "TIFF"), "is a TIFF; expected"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG; expected"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", r"is an ISO media file \(heic\); expected"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", r"Git LFS pointer .* expected"),
        "rubbish": (b"no image at all", "is no image of a known format; expected"),
        "one-pixel": (
            encoded(picture(side=1), "PNG"),
            f"1x1 is too small; each side needs at least {MIN_SIDE} pixels",
        ),
        "thin": (encoded(Image.new("RGB", (100, 15)), "PNG"), "100x15 is too small"),
        "huge": (png_of_size(30_000, 30_000), "has more than 100,000,000 pixels; make it smaller"),
        "large": (
            png_of_size(12_000, 10_000),
            "12000x10000 is more than 100,000,000 pixels; make it smaller",
        ),
    }


@pytest.mark.parametrize("kind", broken_files())
def test_broken_image_is_refused_by_name_and_at_once(
    tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    content, message = broken_files()[kind]
    path = tmp_path / f"{kind}.jpg"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(DataError, match=message) as error:
        open_image(path)
    assert time.perf_counter() - start < 1
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not recwarn.list


def test_image_of_the_least_side_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(side=MIN_SIDE), "PNG"))
    assert open_image(tmp_path / "a.png").size == (MIN_SIDE, MIN_SIDE)


def test_size_limit_is_by_pixels_not_by_side(tmp_path: Path) -> None:
    # 16 x 6,250,001 is one row too many; the header alone decides.
    (tmp_path / "a.png").write_bytes(png_of_size(16, MAX_PIXELS // 16 + 1))
    with pytest.raises(DataError, match="16x6250001 is more than 100,000,000 pixels"):
        open_image(tmp_path / "a.png")


def test_listing_finds_images_in_subfolders_by_their_relative_names(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/d.gif", "._a.png", "notes.txt", "2258277193.jpg.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_images(tmp_path)) == ["._a.png", "a.png", "b.JPG", "sub/c.webp", "sub/d.gif"]


def test_link_that_leaves_the_image_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").touch()
    folder = tmp_path / "Images"
    folder.mkdir()
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(
        DataError, match=r"a.jpg: links to a file outside of .*Images; copy the file into the folder"
    ):
        list_images(folder)


def test_link_inside_the_image_folder_is_followed_and_linked_folders_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "Images"
    folder.mkdir()
    (folder / "a.jpg").touch()
    (folder / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.jpg").touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(list_images(folder)) == ["a.jpg", "b.jpg"]


def test_real_photographs_open(flickr8k_dir: Path) -> None:
    sizes = [open_image(path).size for path in list_images(flickr8k_dir / "Images").values()]
    assert len(sizes) == 50
    assert max(max(size) for size in sizes) == 500
