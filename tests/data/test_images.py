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

from clipgraft.data.containers import JPEG_SCAN, parts_of
from clipgraft.data.images import (
    MAX_ASPECT,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MIN_SIDE,
    open_image,
)
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


def gray_png(samples: np.ndarray, depth: int, transparent: int | None) -> bytes:
    """A grayscale PNG by hand, of samples of 1 to 16 bits, one of which may be transparent."""
    height, width = samples.shape
    bits = ((samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    chunks = [
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
        png_chunk(b"tRNS", struct.pack(">H", transparent)) if transparent is not None else b"",
        png_chunk(b"IDAT", zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("transparent", [None, 0, 300, 65535])
def test_16_bit_grayscale_is_divided_by_257_and_rounded(tmp_path: Path, transparent: int | None) -> None:
    values = np.arange(65536).reshape(256, 256)
    (tmp_path / "a.png").write_bytes(gray_png(values, 16, transparent))
    expected = np.rint(values / 65535 * 255)
    if transparent is not None:
        expected[values == transparent] = 255
    opened = np.asarray(open_image(tmp_path / "a.png"))
    assert np.array_equal(opened, np.broadcast_to(expected[..., None], (256, 256, 3)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_sample_of_any_depth_is_white(tmp_path: Path, depth: int) -> None:
    samples = np.arange(32 * 32).reshape(32, 32) % 2**depth
    for transparent in {0, 1, 2**depth - 1}:
        (tmp_path / "a.png").write_bytes(gray_png(samples, depth, transparent))
        expected = np.where(samples == transparent, 255, samples * 255 // (2**depth - 1))
        assert np.array_equal(np.asarray(open_image(tmp_path / "a.png"))[..., 0], expected)


def test_transparent_colour_of_16_bits_is_white(tmp_path: Path) -> None:
    samples = np.full((16, 16, 3), 0x1234, dtype=">u2")
    samples[:8] = 0xABCD
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    clear = png_chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x1234, 0x1234))
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + clear + data + png_chunk(b"IEND", b""))
    opened = np.asarray(open_image(tmp_path / "a.png"))
    assert (opened[8:] == 255).all()
    assert (opened[:8] == 0xAB).all()


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
    return {
        "empty": (b"", r"is empty \(0 bytes\)"),
        "truncated-jpeg": (jpeg[: len(jpeg) // 2], "is damaged"),
        "truncated-png": (png[: len(png) // 2], "is damaged"),
        "header-only": (jpeg[:20], "is damaged"),
        "gif": (encoded(picture(), "GIF"), "is a GIF; expected a JPEG, PNG, WebP, AVIF or HEIC image"),
        "bmp": (encoded(picture(), "BMP"), "is a BMP; expected"),
        "tiff": (encoded(picture(), "TIFF"), "is a TIFF; expected"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG; expected"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", r"is a HEIC image; pip install|is damaged"),
        "mp4": (b"\0\0\0\x18ftypisom\0\0\0\0", r"is an ISO media file \(isom\); expected"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", r"Git LFS pointer .* expected"),
        "rubbish": (b"no image at all", "is no image of a known format; expected"),
        "one-pixel": (
            encoded(picture(side=1), "PNG"),
            f"has 1x1 pixels; each side needs at least {MIN_SIDE}",
        ),
        "thin": (encoded(Image.new("RGB", (100, 15)), "PNG"), "has 100x15 pixels; each side needs"),
        "huge": (png_of_size(30_000, 30_000), "has more than 100,000,000 pixels; make it smaller"),
        "large": (
            png_of_size(12_000, 10_000),
            "has 12000x10000 pixels; at most 100,000,000 are taken; make it smaller",
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
    # 1000 x 100,001 is one row too many; the header alone decides.
    (tmp_path / "a.png").write_bytes(png_of_size(1000, MAX_PIXELS // 1000 + 1))
    with pytest.raises(DataError, match="has 1000x100001 pixels; at most 100,000,000 are taken"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("turned", [False, True])
def test_long_strip_is_refused_by_its_header(tmp_path: Path, turned: bool) -> None:
    # Resized to a short side of 224, 16 x 800,000 would be 11.2 million pixels wide.
    for length, is_taken in ((16 * MAX_ASPECT, True), (16 * MAX_ASPECT + 1, False), (800_000, False)):
        size = (16, length) if turned else (length, 16)
        (tmp_path / "a.png").write_bytes(png_of_size(*size))
        with pytest.raises(DataError, match="damaged" if is_taken else "one side may be 100 times the other"):
            open_image(tmp_path / "a.png")


def jpeg_of_scans(number: int) -> bytes:
    """A progressive JPEG whose first scan comes again and again, as decoders take it."""
    content = encoded(picture(), "JPEG", progressive=True)
    first = content.index(b"\xff\xda")
    second = content.index(b"\xff\xda", first + 2)
    own = sum(marker == JPEG_SCAN for marker in parts_of(content))
    return content[:second] + content[first:second] * (number - own) + content[second:]


def test_scans_of_a_jpeg_are_counted_by_its_markers() -> None:
    baseline = encoded(picture(side=200), "JPEG")
    progressive = encoded(picture(side=200), "JPEG", progressive=True)
    # libjpeg's own script for three components has 10 scans; behind the end and in EXIF data are none.
    hidden = encoded(
        picture(), "JPEG", exif=b"Exif\0\0" + b"\xff\xda\0\2" * 200, comment=b"\xff\xda\0\2" * 200
    )
    for content, number in (
        (baseline, 1),
        (progressive, 10),
        (progressive + b"\xff\xda\0\2" * 200, 10),
        (hidden, 1),
    ):
        assert sum(marker == JPEG_SCAN for marker in parts_of(content)) == number
    # TEM has no length: what follows it is not hidden, neither from us nor from libjpeg.
    start = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    masked = progressive[:start] + b"\xff\x01" * 2 + progressive[start:]
    assert np.array_equal(
        np.asarray(Image.open(BytesIO(masked))), np.asarray(Image.open(BytesIO(progressive)))
    )
    assert sum(marker == JPEG_SCAN for marker in parts_of(masked)) == 10


def test_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of_scans(100))
    assert open_image(tmp_path / "a.jpg").size == (SIDE, SIDE)
    (tmp_path / "a.jpg").write_bytes(jpeg_of_scans(101))
    with pytest.raises(DataError, match="has more than 100 scans; save it anew"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_file_of_many_small_parts_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    content = encoded(picture(), kind)
    place, part = (33, png_chunk(b"abCd", b"")) if kind == "png" else (2, b"\xff\xe5\0\2")
    (tmp_path / "a").write_bytes(content[:place] + part * 900 + content[place:])
    assert open_image(tmp_path / "a").size == (SIDE, SIDE)
    (tmp_path / "a").write_bytes(content[:place] + part * 300_000 + content[place:])
    start = time.process_time()
    with pytest.raises(DataError, match=r"is cut into more than [\d,]+ parts; save it anew"):
        open_image(tmp_path / "a")
    assert time.process_time() - start < 1


def test_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(DataError, match="has 268,435,457 bytes; at most 268,435,456 are read"):
        open_image(tmp_path / "a.jpg")


def test_garbage_in_the_exif_data_leaves_the_pixels_as_they_lie(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG", exif=b"Exif\0\0garbage!"))
    plain = Image.open(BytesIO(encoded(picture(), "JPEG")))
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.jpg")), np.asarray(plain))
    assert not recwarn.list


def test_palette_image_without_a_palette_is_damaged(tmp_path: Path) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 3, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes((SIDE + 1) * SIDE)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b""))
    with pytest.raises(DataError, match="is damaged"):
        open_image(tmp_path / "a.png")


def test_real_photographs_open(flickr8k_dir: Path) -> None:
    sizes = [open_image(path).size for path in (flickr8k_dir / "Images").iterdir()]
    assert len(sizes) == 50
    assert max(max(size) for size in sizes) == 500
