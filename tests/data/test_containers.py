"""Whatever phones and browsers write beside the pixels, the pixels are read."""

import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipgraft.data.containers import is_whole, pixels_alone, without_extras
from clipgraft.data.dataset import Excluded
from clipgraft.data.formats import load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.raw import OTHER_FORMAT
from clipgraft.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "MPO", "HEIF")
WIDTH, HEIGHT = 48, 32
ORIENTED = {
    1: [0, 1, 2, 3],
    2: [1, 0, 3, 2],
    3: [3, 2, 1, 0],
    4: [2, 3, 0, 1],
    5: [0, 2, 1, 3],
    6: [2, 0, 3, 1],
    7: [3, 1, 2, 0],
    8: [1, 3, 0, 2],
}
"""EXIF orientation -> stored corners as shown: top left, top right, bottom left, bottom right."""
CORNERS = ("red", "lime", "blue", "white")


def corners(orientation: int = 1) -> Image.Image:
    """A picture with a colour in each quarter."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for place, color in enumerate(CORNERS):
        left, top = place % 2 * WIDTH // 2, place // 2 * HEIGHT // 2
        image.paste(color, (left, top, left + WIDTH // 2, top + HEIGHT // 2))
    return image


def encoded(image_format: str, image: Image.Image | None = None, **options: object) -> bytes:
    if image_format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if image_format == "MPO":
        options |= {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT), "black")]}
    buffer = BytesIO()
    (image or corners()).save(buffer, image_format, **options)
    return buffer.getvalue()


def opened(folder: Path, content: bytes) -> np.ndarray:
    path = folder / "a.jpg"
    path.write_bytes(content)
    return np.asarray(open_image(path)).astype(int)


def png_chunk(kind: bytes, data: bytes, *, is_damaged: bool = False) -> bytes:
    check_sum = zlib.crc32(kind + data) ^ is_damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check_sum)


def with_chunk(*chunks: bytes, behind: int = 33) -> bytes:
    content = encoded("PNG")
    return content[:behind] + b"".join(chunks) + content[behind:]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTED)
def test_every_orientation_is_shown_upright(tmp_path: Path, image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = opened(tmp_path, encoded(image_format, exif=exif.tobytes()))
    height, width, _ = pixels.shape
    assert (width, height) == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
    for place, color in enumerate(ORIENTED[orientation]):
        shown = pixels[height * (1 + place // 2 * 2) // 4, width * (1 + place % 2 * 2) // 4]
        expected = np.asarray(Image.new("RGB", (1, 1), CORNERS[color]))[0, 0]
        assert abs(shown - expected).max() < 60, (place, shown)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_phones_short_video_behind_the_end_is_left(tmp_path: Path, image_format: str) -> None:
    content = encoded(image_format)
    found = opened(tmp_path, content + b"\0\0\0\x18ftypmp42" + bytes(1000))
    assert np.array_equal(found, opened(tmp_path, content))


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_cut_at_every_tenth_is_damaged(tmp_path: Path, image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = {} if image_format == "MPO" else {"image": Image.fromarray(noise)}
    content = encoded(image_format, **options)
    end = content.index(b"\xff\xd9") + 2 if image_format == "MPO" else len(content)
    assert is_whole(content, image_format)
    for tenth in range(10):
        with pytest.raises(DataError, match=r"is damaged|is empty"):
            opened(tmp_path, content[: end * tenth // 10])
        assert not is_whole(content[: end * tenth // 10], image_format)


@cache
def pngs_with_extras() -> dict[str, bytes]:
    packed = zlib.compress(bytes(3_000_000))
    unpacked_text = png_chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000)
    header = b"XML:com.adobe.xmp\0"
    return {
        "a printer's profile of 3 MB": with_chunk(png_chunk(b"iCCP", b"icc\0\0" + packed)),
        "a profile that is cut": with_chunk(png_chunk(b"iCCP", b"icc\0\0" + packed[:20])),
        "a profile without a name": with_chunk(png_chunk(b"iCCP", b"")),
        "a packed text of 3 MB": with_chunk(png_chunk(b"zTXt", b"workflow\0\0" + packed)),
        "a text of 3 MB": with_chunk(unpacked_text),
        "thirty texts of 3 MB": with_chunk(unpacked_text * 30),
        "a hundred texts of 1 MB": with_chunk(png_chunk(b"tEXt", b"a\0" + b"x" * 1_000_000) * 100),
        "a packed international text": with_chunk(png_chunk(b"iTXt", header + b"\1\0\0\0" + packed)),
        "a text behind the pixels": with_chunk(png_chunk(b"zTXt", b"a\0\0" + packed), behind=-12),
        "a text with a wrong check sum": with_chunk(png_chunk(b"tEXt", b"a\0b", is_damaged=True)),
        "a size in no unit": with_chunk(png_chunk(b"pHYs", b"\0")),
        "EXIF with a wrong check sum": with_chunk(png_chunk(b"eXIf", b"II*\0", is_damaged=True)),
        "an unknown chunk": with_chunk(png_chunk(b"vpAg", bytes(9), is_damaged=True)),
        "an animation out of order": with_chunk(
            png_chunk(b"acTL", struct.pack(">II", 2, 0)), png_chunk(b"fcTL", struct.pack(">I", 7) + bytes(22))
        ),
    }


@pytest.mark.parametrize("kind", pngs_with_extras())
def test_extras_of_a_png_take_nothing_from_its_pixels(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(opened(tmp_path, pngs_with_extras()[kind]), np.asarray(corners()))


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data by hand: tag, type, count and the four bytes of a value or of its place."""
    fields = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)


BAD_EXIF = {
    "garbage": b"Exif\0\0garbage!",
    "nothing": b"Exif\0\0",
    "a place behind the end": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "a resolution divided by zero": tiff((0x011A, 5, 1, b"\x08")),
    "a resolution that is a text": tiff((0x011A, 2, 4, b"abc")),
    "four billion numbers": tiff((0x8769, 4, 2**32 - 1, b"\x08")),
    "a folder in itself": tiff((0x8769, 4, 1, b"\x08")),
    **{f"a rotation of type {kind}": tiff((0x0112, kind, 1, b"\xff\0")) for kind in range(15)},
}


@pytest.mark.parametrize("kind", BAD_EXIF)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_unreadable_exif_is_no_damage(
    tmp_path: Path, image_format: str, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    content, exif = encoded(image_format), BAD_EXIF[kind]
    if image_format == "JPEG":
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        odd = content[:2] + segment + content[2:]
    elif image_format == "PNG":
        odd = content[:33] + png_chunk(b"eXIf", exif[6:]) + content[33:]
    else:
        odd = encoded("WEBP", exif=exif)
    assert np.array_equal(opened(tmp_path, odd), opened(tmp_path, content))
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_without_its_metadata_has_its_pixels(mode: str) -> None:
    image, noise = corners().convert(mode), bytes(range(256)) * 200
    content = encoded("JPEG", image, icc_profile=noise, comment=b"\xff\xd9", exif=b"Exif\0\0" + noise[:9999])
    plain = pixels_alone(content)
    assert len(plain) < len(content) - len(noise)
    found, expected = (np.asarray(Image.open(BytesIO(file))) for file in (plain, content))
    assert np.array_equal(found, expected)


def test_a_png_that_needs_nothing_left_out_is_not_copied() -> None:
    content = with_chunk(png_chunk(b"tEXt", b"who\0me"))
    assert without_extras(content) is content


def test_animations_are_read_as_their_first_picture(tmp_path: Path) -> None:
    more = [Image.new("RGB", (WIDTH, HEIGHT), "black")]
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})):
        content = encoded(image_format, save_all=True, append_images=more, duration=100, **options)
        assert abs(opened(tmp_path, content) - np.asarray(corners())).mean() < 5


@pytest.mark.parametrize(
    "name", ["a.gif", "a.heic", "a.tiff", "a.jfif", "a.jpe", "a.mpo", "a.AVIF", "a.apng"]
)
@pytest.mark.parametrize("image_format", FORMATS)
def test_pixels_decide_and_never_the_extension(tmp_path: Path, name: str, image_format: str) -> None:
    (tmp_path / name).write_bytes(encoded(image_format))
    (tmp_path / "a.txt").write_text("Four colours.")
    (tmp_path / "b.gif").write_bytes(encoded("GIF"))
    (tmp_path / "b.txt").write_text("Is excluded.")
    dataset = load_dataset(tmp_path)
    assert [image.image_id for image in dataset.images] == [name]
    assert open_image(dataset.images[0].file).size == (WIDTH, HEIGHT)
    assert Excluded("image", "b.gif", OTHER_FORMAT) in dataset.excluded


def test_a_decoders_message_of_several_lines_becomes_one(tmp_path: Path) -> None:
    content = encoded("HEIF")
    place = content.index(b"iloc") + 20
    (tmp_path / "a.heic").write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
    with pytest.raises(DataError, match="is damaged") as error:
        open_image(tmp_path / "a.heic")
    assert "\n" not in str(error.value)
