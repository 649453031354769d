"""JPEG and WebP with the settings inside, redrawn to the byte."""

import io
import json

import numpy as np
import pytest
from image_world import generate, pixels, rows_of
from PIL import Image

import clipgraft
from clipgraft.errors import DataError, UserError
from clipgraft.generation.generate import GenerateOptions
from clipgraft.generation.grid import generate_grid, parse_axis
from clipgraft.generation.image_encoding import (
    PARAMETERS_KEY,
    RECORD_KEY,
    encode_image,
    read_image_texts,
    write_image,
)
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from helpers import call, refused

SUFFIXES = {"jpeg": "jpg", "webp": "webp"}
EXIF_USER_COMMENT, EXIF_POINTER = 0x9286, 0x8769
GRADIENT = Image.radial_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def drawn(base, tmp_path_factory):
    """The same image in each format, by suffix."""
    out = tmp_path_factory.mktemp("formats")
    for image_format in ("png", "jpeg", "webp"):
        assert generate(base, out, "A dög", "--negative-prompt", "rain", "--format", image_format) == 0
    return {suffix: out / f"a-dög_seed0.{suffix}" for suffix in ("png", "jpg", "webp")}


def test_formats_lie_side_by_side_with_a_row_each(drawn):
    rows = rows_of(drawn["png"].parent)
    assert {row["file"] for row in rows} == {path.name for path in drawn.values()}
    assert len({row["key"] for row in rows}) == 1
    for suffix, image_format in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")):
        with Image.open(drawn[suffix]) as image:
            assert image.format == image_format


def test_webp_has_the_pixels_of_png_and_jpeg_nearly(drawn):
    expected = pixels(drawn["png"])
    assert np.array_equal(pixels(drawn["webp"]), expected)
    difference = pixels(drawn["jpg"]).astype(float) - expected
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 35


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_tools_find_the_parameters_in_exif(drawn, suffix):
    with Image.open(drawn["png"]) as image:
        expected = image.info[PARAMETERS_KEY]
    with Image.open(drawn[suffix]) as image:
        assert image.info["exif"].removeprefix(b"Exif\0\0").startswith(b"MM")
        assert b"\x92\x86\0\x07" in image.info["exif"]  # of the type UNDEFINED, else piexif gives numbers
        comment = image.getexif().get_ifd(EXIF_POINTER)[EXIF_USER_COMMENT]
    # As piexif.helper.UserComment.load, with which A1111 and Forge read it (modules/images.py).
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == expected


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_each_format_is_redrawn_to_the_byte(base, drawn, tmp_path, suffix):
    assert call("generate", "--from-image", drawn[suffix], "--base", base, "--out", tmp_path) == 0
    assert (tmp_path / drawn[suffix].name).read_bytes() == drawn[suffix].read_bytes()


def test_an_image_is_redrawn_in_the_format_it_has(base, drawn, tmp_path):
    renamed = tmp_path / "mine.png"
    renamed.write_bytes(drawn["jpg"].read_bytes())
    assert call("generate", "--from-image", renamed, "--base", base, "--out", tmp_path / "b") == 0
    assert (tmp_path / "b" / "mine.jpg").read_bytes() == renamed.read_bytes()


def test_nothing_is_generated_again_in_the_same_format(base, drawn, capsys):
    capsys.readouterr()
    generate(base, drawn["jpg"].parent, "A dög", "--negative-prompt", "rain", "--format", "jpeg")
    assert "0 generated" in capsys.readouterr().out


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_without_metadata_there_are_pixels_alone(base, tmp_path, image_format):
    generate(base, tmp_path, "A dog", "--no-metadata", "--format", image_format)
    assert read_image_texts(tmp_path / f"a-dog_seed0.{SUFFIXES[image_format]}") == ({}, image_format)


@pytest.mark.parametrize("name", ["x.png", "x.JPEG", "x.webp"])
def test_python_saves_what_the_command_writes(base, drawn, tmp_path, name):
    generator = clipgraft.load(base, inference=InferenceConfig(engine="torch"))
    [image] = generator.generate("A dög", negative_prompt="rain", num_inference_steps=2)
    clipgraft.save_image(image, tmp_path / name)
    suffix = name.lower().partition(".")[2].replace("jpeg", "jpg")
    assert (tmp_path / name).read_bytes() == drawn[suffix].read_bytes()
    with pytest.raises(UserError, match=r"x\.tiff ends in none of \.png, \.jpg, \.jpeg and \.webp"):
        clipgraft.save_image(image, tmp_path / "x.tiff")


def test_grids_of_every_format_are_one_sheet(base, tmp_path):
    options = GenerateOptions(str(base), image_format="jpeg", inference=InferenceConfig(engine="torch"))
    params = SamplingParams(num_inference_steps=1)
    generate_grid([parse_axis("seed=0-1")], params, tmp_path, options, prompt="A dog")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a-dog_seed0.jpg", "a-dog_seed1.jpg", "grid.png", "grid.html", "images.json")
    }
    assert (tmp_path / "grid.html").read_text().count("data:image/jpeg;base64,") == 2


def test_an_unknown_format_is_refused_by_name(base, tmp_path, capsys):
    message = refused(capsys, "generate", "A dog", "--base", base, "--out", tmp_path, "--format", "tiff")
    assert "image format must be one of png, jpeg, webp; got 'tiff'" in message


def test_a_prompt_beyond_exif_is_refused_for_jpeg_alone(base, tmp_path, capsys):
    long = "A dog " * 2500
    options = ["generate", long, "--base", base, "--steps", 1, "--long-prompts", "cut", "--dry-run"]
    message = refused(capsys, *options, "--out", tmp_path, "--format", "jpeg")
    assert "a prompt of 15,000 characters does not fit into a JPEG's settings" in message
    assert "--format png or webp" in message
    assert call(*options, "--out", tmp_path, "--format", "webp") == 0


def test_texts_of_any_script_come_back(tmp_path):
    texts = {PARAMETERS_KEY: "狗 🐕\nSteps: 2", RECORD_KEY: json.dumps({"a": "狗 🐕"}, ensure_ascii=False)}
    for image_format in ("png", "jpeg", "webp"):
        write_image(GRADIENT, tmp_path / "x", image_format, texts)
        assert read_image_texts(tmp_path / "x") == (texts, image_format)


def test_a_jpeg_too_small_for_its_texts_is_one_line():
    with pytest.raises(UserError, match="settings do not fit into a JPEG"):
        encode_image(GRADIENT, "jpeg", {RECORD_KEY: "x" * 66_000})
    assert encode_image(GRADIENT, "webp", {RECORD_KEY: "x" * 66_000})


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "Steps: 2".encode("utf-16-be"),
        b"UNICODE\0" + "Steps: 2".encode("utf-16-le"),
        b"ASCII\0\0\0Steps: 2",
        bytes(8) + b"Steps: 2",
    ],
)
def test_comments_of_other_writers_are_read(tmp_path, comment):
    exif = Image.Exif()
    exif.get_ifd(EXIF_POINTER)[EXIF_USER_COMMENT] = comment
    GRADIENT.save(tmp_path / "x.jpg", exif=exif)
    assert read_image_texts(tmp_path / "x.jpg")[0] == {PARAMETERS_KEY: "Steps: 2"}


def test_damaged_exif_is_no_text(tmp_path):
    GRADIENT.save(tmp_path / "x.jpg", exif=b"Exif\0\0garbage!")
    assert read_image_texts(tmp_path / "x.jpg") == ({}, "jpeg")


def test_a_format_without_settings_is_named(tmp_path):
    file = io.BytesIO()
    GRADIENT.save(file, "AVIF")
    (tmp_path / "x.avif").write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"x\.avif: is of the format AVIF; settings are read from PNG, JPEG"):
        read_image_texts(tmp_path / "x.avif")
