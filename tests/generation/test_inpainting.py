"""Inpainting: what is white in a mask is repainted, as diffusers does it."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from image_world import generate, pixels, rows_of, stock_parts
from PIL import Image, ImageDraw

import clipgraft
import tiny
from clipgraft.files import file_sha256
from clipgraft.generation.generator import load_generators
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from helpers import call, import_openvino, refused


@pytest.fixture(scope="module")
def inpainting_base(tmp_path_factory):
    return tiny.write_inpainting_base(tmp_path_factory.mktemp("inpainting") / "base")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A striped picture and a mask that is white in its right half."""
    folder = tmp_path_factory.mktemp("images")
    picture, mask = Image.new("RGB", (64, 64), (200, 40, 40)), Image.new("L", (64, 64))
    for top in range(0, 64, 16):
        ImageDraw.Draw(picture).rectangle((0, top, 63, top + 7), fill=(20, 60, 180))
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)
    picture.save(folder / "picture.png")
    mask.save(folder / "mask.png")
    Image.new("L", (64, 72), 255).save(folder / "tall.png")
    (folder / "text.png").write_text("no picture")
    return folder


def stock_pixels(base, images, *, seed=0, strength=0.8, steps=3, guidance_scale=5.0, **arguments):
    """What diffusers' pipeline makes of the same inputs."""
    frozen = FrozenBase.load(str(base))
    pipeline = StableDiffusionInpaintPipeline(
        **stock_parts(frozen),
        feature_extractor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "A dog",
        image=Image.open(images / "picture.png").convert("RGB"),
        mask_image=Image.open(images / "mask.png"),
        height=64,
        width=64,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        **arguments,
    ).images[0]
    return np.asarray(drawn, int)


def plain_generator(base):
    """One without an engine, in float32."""
    return next(load_generators({"": None}, base=FrozenBase.load(str(base)), device="cpu"))[1]


def masked(images, **params):
    files = {"init_image": images / "picture.png", "mask_image": images / "mask.png"}
    return files | {"num_inference_steps": 3, "guidance_scale": 5.0} | params


def as_options(images):
    return ["--init-image", images / "picture.png", "--mask", images / "mask.png", "--guidance-scale", 5]


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_inpainting_equals_stock_diffusers(base, images, strength):
    drawn = plain_generator(base).generate("A dog", **masked(images, strength=strength))[0]
    expected = stock_pixels(base, images, strength=strength)
    assert np.abs(np.asarray(drawn.image, int) - expected).max() <= 1


def test_inpainting_base_equals_stock_diffusers(inpainting_base, images):
    drawn = plain_generator(inpainting_base).generate("A dog", **masked(images))[0]
    expected = stock_pixels(inpainting_base, images)
    assert np.abs(np.asarray(drawn.image, int) - expected).max() <= 1


@pytest.mark.integration
def test_inpainting_base_needs_a_mask(inpainting_base, images, tmp_path, capsys):
    command = ["generate", "A dog", "--base", inpainting_base, "--engine", "torch", "--out", tmp_path / "out"]
    for options in ([], ["--init-image", images / "picture.png"]):
        message = refused(capsys, *command, *options)
        assert (
            "U-Net takes 9 channels (inpainting), so it needs an image and a mask; name them with" in message
        )
    assert not list((tmp_path / "out").glob("*.png"))
    assert generate(inpainting_base, tmp_path / "out", "A dog", *as_options(images)) == 0
    original = tmp_path / "out" / "a-dog_seed0.png"
    again = ["--from-image", original, "--base", inpainting_base, *as_options(images)[:-2]]
    assert call("generate", "--out", tmp_path / "again", *again) == 0
    assert (tmp_path / "again" / original.name).read_bytes() == original.read_bytes()


@pytest.mark.slow
def test_inpainting_base_on_openvino_equals_stock_diffusers(inpainting_base, images, monkeypatch):
    import_openvino()
    monkeypatch.setattr("clipgraft.generation.engines.engine.openvino_dtype", lambda: torch.float32)
    inference = InferenceConfig(engine="openvino")
    drawn = clipgraft.load(inpainting_base, device="cpu", inference=inference).generate(
        "A dog", **masked(images)
    )
    assert np.abs(np.asarray(drawn[0].image, int) - stock_pixels(inpainting_base, images)).max() <= 1


@pytest.mark.integration
def test_only_what_is_white_changes_with_the_prompt(images):
    generator = clipgraft.load("flatland", device="cpu")
    first = generator.generate("A red boat on the lake", num_inference_steps=6)[0].image
    first.save(images / "first.png")
    mask = Image.new("L", first.size)
    ImageDraw.Draw(mask).rectangle((0, 0, first.width // 2 - 1, first.height), fill=255)
    mask.save(images / "left.png")
    params = {"init_image": images / "first.png", "mask_image": images / "left.png", "num_inference_steps": 6}
    dog, kite = (
        np.asarray(generator.generate(prompt, strength=1.0, **params)[0].image, float)
        for prompt in ("A dog on the beach at night", "A yellow kite in the park")
    )
    distance = np.abs(dog - kite).mean(axis=(0, 2))
    half = first.width // 2
    assert distance[: half - 8].mean() > 10 * distance[half + 8 :].mean()  # the VAE sees all


def test_images_of_a_batch_have_masks_of_their_own(base, images):
    generator = plain_generator(base)
    Image.new("L", (64, 64), 255).save(images / "white.png")
    requests = [
        ImageRequest("A dog", params)
        for params in (
            SamplingParams.build(masked(images)),
            SamplingParams.build(masked(images, mask_image=images / "white.png")),
        )
    ]
    together = list(generator.sample(requests, batch_size=2))
    assert [image.batch for image in together] == [(2, 0), (2, 1)]
    for image, request in zip(together, requests, strict=True):
        alone = next(generator.sample([request]))
        assert np.abs(np.asarray(image.image, int) - np.asarray(alone.image, int)).max() <= 1


def test_command_python_and_prompt_file_make_the_same_image(base, images, tmp_path):
    (tmp_path / "picture.png").symlink_to(images / "picture.png")
    (tmp_path / "mask.png").symlink_to(images / "mask.png")
    line = '{"prompt": "A dog", "init_image": "picture.png", "mask_image": "mask.png", "guidance_scale": 5}'
    (tmp_path / "prompts.jsonl").write_text(line)
    assert generate(base, tmp_path / "cli", "A dog", *as_options(images)) == 0
    assert generate(base, tmp_path / "file", "--from-file", tmp_path / "prompts.jsonl") == 0
    params = masked(images, num_inference_steps=2)
    inference = InferenceConfig(engine="torch")
    generator = clipgraft.load(base, device="cpu", inference=inference)
    drawn = np.asarray(generator.generate("A dog", **params)[0].image)
    assert np.array_equal(pixels(tmp_path / "cli" / "a-dog_seed0.png"), drawn)
    name = "a-dog_seed0.png"
    assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()
    assert rows_of(tmp_path / "cli")[0]["mask_image_sha256"] == file_sha256(images / "mask.png")


def test_inpainted_image_is_reproduced_with_its_files(base, images, tmp_path, capsys):
    assert generate(base, tmp_path / "a", "A dog", *as_options(images)) == 0
    original = tmp_path / "a" / "a-dog_seed0.png"
    again = ["generate", "--from-image", original, "--base", base, "--out", tmp_path / "b"]
    again += ["--init-image", images / "picture.png"]
    assert "was painted within a mask; name it with --mask" in refused(capsys, *again)
    message = refused(capsys, *again, "--mask", images / "picture.png")
    assert "picture.png is not the file that the image was made with" in message
    assert call(*again, "--mask", images / "mask.png") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--mask", "mask.png"],
            "mask_image (--mask) needs the image that it masks; name it with init_image",
        ),
        (
            ["--init-image", "picture.png", "--mask", "tall.png"],
            "must be of one size in pixels; got init_image 64x64 and mask_image 64x72",
        ),
        (
            ["--init-image", "picture.png", "--mask", "text.png"],
            "text.png: is no image of a known format; expected a JPEG",
        ),
        (["--init-image", "picture.png", "--mask", "none.png"], "none.png: no such image"),
    ],
)
def test_unusable_mask_is_one_line(base, images, tmp_path, capsys, options, message):
    named = [images / option if option.endswith(".png") else option for option in options]
    command = ["generate", "A dog", "--base", base, "--out", tmp_path / "out"]
    assert message in refused(capsys, *command, *named)
    assert not (tmp_path / "out").exists()
