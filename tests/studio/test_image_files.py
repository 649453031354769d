"""Images from strangers: bombs, cut-off files, files in files, places in EXIF, addresses to fetch."""

import base64
import io
import time
import zlib

import pytest
from PIL import Image

from clipgraft.errors import DataError
from clipgraft.studio.file_settings import settings_from_file
from clipgraft.studio.image_files import count_pixels, decode_upload, encode, read_base64
from clipgraft.studio.model_folder import ModelFolder
from clipgraft.studio.named_files import NamedFiles
from clipgraft.studio.uploads import Uploads

MAX_PIXELS = 16_000_000


def file_of(image_format: str, size=(40, 30), **options) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(file, image_format, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, one bit a pixel."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in parts
    )


@pytest.fixture
def files(tmp_path):
    return NamedFiles(ModelFolder(None), Uploads(tmp_path, max_bytes=1, max_pixels=1))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_the_formats_are_taken(image_format):
    assert decode_upload(file_of(image_format), MAX_PIXELS).size == (40, 30)


BOMB = png(30_000, 30_000, zlib.compress(bytes(30_000 * 3751), 9))
BAD = {
    "a bomb of 900 million pixels": (BOMB, "more than 16,000,000 pixels|at most 16,000,000"),
    "an empty file": (b"", "empty"),
    "a cut-off JPEG": (file_of("JPEG", (400, 300))[:-200], "cut off"),
    "a cut-off PNG": (file_of("PNG")[:-40], "cut off"),
    "a cut-off WebP": (file_of("WEBP")[:-10], "cut off|damaged"),
    "a GIF": (file_of("GIF"), "is a GIF; expected a JPEG, PNG, WebP, AVIF or HEIC"),
    "a TIFF": (file_of("TIFF"), "is a TIFF; expected"),
    "an SVG": (
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "is an SVG; expected",
    ),
    "a page that begins like a PNG": (b"\x89PNG\r\n\x1a\n<html>", "is damaged"),
    "a line of a million pixels": (png(1_000_000, 1, b""), "1000000x1 pixels; one side may be 100 times"),
    "noise": (bytes(range(256)) * 40, "is no image of a known format"),
    "an animation": (
        file_of("WEBP", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")], duration=10),
        "animated",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plain_image_is_refused_at_once(name):
    content, message = BAD[name]
    begun = time.process_time()
    with pytest.raises(DataError, match=message):
        decode_upload(content, MAX_PIXELS)
    assert time.process_time() - begun < 1


BEHIND_THE_END = {
    "nothing": b"",
    "a page": b"<script>alert(1)</script>",
    "an archive": b"PK\x03\x04",
    "a phone's short video": b"\0\0\0\x18ftypmp42" + bytes(1000),
}


@pytest.mark.parametrize("behind", BEHIND_THE_END)
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF", "MPO"])
def test_what_follows_the_end_is_left_unread(image_format, behind):
    content = file_of(image_format)
    expected = decode_upload(content, MAX_PIXELS)
    found = decode_upload(content + BEHIND_THE_END[behind], MAX_PIXELS)
    assert found.tobytes() == expected.tobytes()
    assert found.size == (40, 30)


def test_a_text_of_80_mb_in_80_kb_is_left_unread(files):
    text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000), 9))
    content = png(8, 8, zlib.compress(b"\0\0" * 8), text, (b"tEXt", b"who\0me"))
    begun = time.process_time()
    assert decode_upload(content, MAX_PIXELS).size == (8, 8)
    with pytest.raises(DataError, match="does not hold its settings"):
        settings_from_file(content, MAX_PIXELS, files)
    assert time.process_time() - begun < 1


def test_a_broken_middle_is_found_when_it_is_decoded():
    content = bytearray(file_of("PNG", (200, 200)))
    content[200:260] = bytes(60)
    with pytest.raises(DataError, match="damaged"):
        decode_upload(bytes(content), MAX_PIXELS)


def test_exif_is_dropped_and_its_rotation_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    exif[0x010F] = "SECRET CAMERA"
    content = file_of("JPEG", exif=exif, comment=b"SECRET COMMENT")
    assert b"SECRET CAMERA" in content
    image = decode_upload(content, MAX_PIXELS)
    assert image.size == (30, 40)
    assert image.info == {}
    assert not image.getexif()
    for image_format in ("PNG", "JPEG", "WEBP"):
        assert b"SECRET" not in encode(image, image_format)


@pytest.mark.parametrize(
    "text",
    [
        "http://169.254.169.254/latest",
        "https://evil.example/x.png",
        "file:///etc/passwd",
        "gopher://x",
        "FILE://x",
        "//evil/x",
    ],
)
def test_nothing_is_fetched_from_an_address(text):
    # pytest-socket forbids every connection here.
    with pytest.raises(
        DataError, match=r"nothing is fetched from an address|not base64|is no image of a known format"
    ):
        count_pixels(read_base64(text), MAX_PIXELS)


def test_base64_comes_plain_or_as_a_data_address():
    text = base64.b64encode(file_of("PNG")).decode()
    for form in (text, f"data:image/png;base64,{text}"):
        assert count_pixels(read_base64(form), MAX_PIXELS) == 40 * 30
    for bad in ("", "%%%", text[:-3] + "\n", "data:image/png;base64,", "data:,x"):
        with pytest.raises(DataError):
            count_pixels(read_base64(bad), MAX_PIXELS)


def test_an_image_without_settings_says_so(files):
    for image_format in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(DataError, match="does not hold its settings"):
            settings_from_file(file_of(image_format), MAX_PIXELS, files)
    with pytest.raises(DataError, match="is of the format AVIF; settings are read from PNG, JPEG and WebP"):
        settings_from_file(file_of("AVIF"), MAX_PIXELS, files)


def test_transparent_parts_are_white_as_in_training():
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    file = io.BytesIO()
    clear.save(file, "PNG")
    assert decode_upload(file.getvalue(), MAX_PIXELS).getpixel((3, 3)) == (255, 255, 255)


def test_a_telephones_jpeg_of_several_images_gives_the_first():
    content = file_of("MPO", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")])
    assert decode_upload(content, MAX_PIXELS).getpixel((20, 15)) != (255, 0, 0)


def test_garbage_in_the_exif_data_is_no_damage():
    assert decode_upload(file_of("JPEG", exif=b"Exif\0\0garbage!"), MAX_PIXELS).size == (40, 30)
