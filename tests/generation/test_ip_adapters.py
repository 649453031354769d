"""IP-Adapters: an image in place of words, as diffusers runs them, and gone after the request."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetInpaintPipeline, StableDiffusionPipeline
from image_world import generate, pixels, rows_of, stock_parts
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

import clipgraft
import tiny
from clipgraft.models.base import FrozenBase
from clipgraft.models.controlnet import load_controlnet
from clipgraft.sampling_params import InferenceConfig
from helpers import call, import_openvino, refused
from lora_world import write_kohya

COMMON = {"num_inference_steps": 3, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def world(base, tmp_path_factory):
    """IP-Adapters, one for another base, a ControlNet and images."""
    folder = tmp_path_factory.mktemp("adapters")
    unet = FrozenBase.load(str(base), components=["unet"]).unet
    tiny.write_ip_adapter(folder / "plain", unet)
    tiny.write_ip_adapter(folder / "plus", unet, is_plus=True)
    tiny.write_ip_adapter(folder / "wide", tiny.build_pipeline(width=32).unet)
    tiny.build_controlnet(unet).save_pretrained(folder / "edges")
    for name, color in (("red", "red"), ("blue", "blue")):
        image = Image.new("RGB", (64, 64), color)
        ImageDraw.Draw(image).rectangle((8, 8, 30, 40), fill="white")
        image.save(folder / f"{name}.png")
    return folder


def adapter(world, kind="plain", image="red", scale=0.8):
    return f"{world}/{kind}/adapter.safetensors={world}/{image}.png@{scale}"


def drawn(generator, adapters, **params):
    return np.asarray(generator.generate("A dog", ip_adapters=adapters, **COMMON | params)[0].image, int)


def stock(base, world, kind, pipeline_class=StableDiffusionPipeline, **components):
    """Diffusers' pipeline of its own copy of the base, with an IP-Adapter."""
    frozen = FrozenBase.load(str(base))
    size = {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE}
    pipeline = pipeline_class(
        **stock_parts(frozen),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(world / kind / "image_encoder"),
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": tiny.IMAGE_SIZE}, crop_size=size),
        **components,
    )
    pipeline.load_ip_adapter(str(world / kind), subfolder="", weight_name="adapter.safetensors")
    pipeline.set_ip_adapter_scale(0.8)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_ip_adapter_equals_stock_diffusers(base, generator, world, kind):
    expected = stock(base, world, kind)(
        "A dog",
        ip_adapter_image=Image.open(world / "red.png"),
        generator=torch.Generator().manual_seed(0),
        **COMMON,
    ).images[0]
    without = drawn(generator, [])
    found = drawn(generator, [adapter(world, kind)])
    assert np.abs(found - np.asarray(expected, int)).max() <= 1
    assert not np.array_equal(found, without)
    assert np.array_equal(drawn(generator, []), without)  # nothing of it is left


@pytest.mark.integration
def test_all_kinds_with_a_lora_equal_stock_diffusers(base, generator, world, monkeypatch):
    controlnet = load_controlnet(str(world / "edges"), torch.device("cpu"), torch.float32)
    pipeline = stock(base, world, "plain", StableDiffusionControlNetInpaintPipeline, controlnet=controlnet)
    lora = write_kohya(world / "fur.safetensors")
    pipeline.load_lora_weights(lora, adapter_name="fur")
    pipeline.set_adapters(["fur"], [0.7])
    red, blue = (Image.open(world / f"{name}.png") for name in ("red", "blue"))
    expected = pipeline(
        "A dog",
        image=red,
        mask_image=blue,
        control_image=blue,
        ip_adapter_image=red,
        strength=0.8,
        controlnet_conditioning_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        **COMMON,
    ).images[0]
    files = {"init_image": world / "red.png", "mask_image": world / "blue.png"}
    more = files | {"controls": [f"{world}/edges={world}/blue.png"], "loras": [f"{lora}:0.7"]}
    found = drawn(generator, [adapter(world)], **more)
    assert np.abs(found - np.asarray(expected, int)).max() <= 1
    monkeypatch.setattr("clipgraft.generation.engines.engine.inference_dtype", lambda _: torch.float32)
    on_engine = clipgraft.load(base, device="cpu", inference=InferenceConfig(engine="torch"))
    assert np.abs(drawn(on_engine, [adapter(world)], **more) - found).max() <= 1


def test_batch_makes_the_images_that_each_makes_alone(generator, world):
    together = generator.generate(["A dog", "A cat"], ip_adapters=[adapter(world)], batch_size=2, **COMMON)
    assert [image.batch for image in together] == [(2, 0), (2, 1)]
    for image in together:
        alone = generator.generate(image.prompt, ip_adapters=[adapter(world)], **COMMON)[0]
        assert np.abs(np.asarray(image.image, int) - np.asarray(alone.image, int)).max() <= 1


def test_two_ip_adapters_need_one_image_encoder(generator, world, tmp_path):
    with pytest.raises(ValueError, match="need one image encoder; put their files into one folder"):
        drawn(generator, [adapter(world), adapter(world, "plus")])
    for kind in ("plain", "plus"):
        (tmp_path / f"{kind}.safetensors").symlink_to(world / kind / "adapter.safetensors")
    (tmp_path / "image_encoder").symlink_to(world / "plain" / "image_encoder")
    pair = [f"{tmp_path}/{kind}.safetensors={world}/red.png" for kind in ("plain", "plus")]
    both, one = drawn(generator, pair), drawn(generator, pair[:1])
    assert not np.array_equal(both, one)


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_engines_make_the_plain_pipelines_image(base, generator, world, engine, monkeypatch):
    if engine == "openvino":
        import_openvino()
    monkeypatch.setattr("clipgraft.generation.engines.engine.openvino_dtype", lambda: torch.float32)
    monkeypatch.setattr("clipgraft.generation.engines.engine.inference_dtype", lambda _: torch.float32)
    on_engine = clipgraft.load(base, device="cpu", inference=InferenceConfig(engine=engine))
    for adapters in ([adapter(world)], [], [adapter(world, "plus", "blue")]):
        assert np.abs(drawn(on_engine, adapters) - drawn(generator, adapters)).max() <= 1


@pytest.mark.integration
def test_image_is_reproduced_with_its_ip_adapter(base, world, tmp_path, capsys):
    assert generate(base, tmp_path / "a", "A dog", "--ip-adapter", adapter(world)) == 0
    original = tmp_path / "a" / "a-dog_seed0.png"
    on_torch = clipgraft.load(base, device="cpu", inference=InferenceConfig(engine="torch"))
    image = on_torch.generate("A dog", ip_adapters=[adapter(world)], num_inference_steps=2)[0].image
    assert np.array_equal(pixels(original), np.asarray(image))
    assert rows_of(tmp_path / "a")[0]["ip_adapters"][0]["scale"] == 0.8
    again = ["generate", "--from-image", original, "--base", base, "--out", tmp_path / "b"]
    assert "was made with 1 IP-Adapter; name each with --ip-adapter MODEL=IMAGE" in refused(capsys, *again)
    other = refused(capsys, *again, "--ip-adapter", adapter(world, "plus"))
    assert "plus/adapter.safetensors is not the file that the image was made with" in other
    assert call(*again, "--ip-adapter", f"{world}/plain/adapter.safetensors={world}/red.png") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


@pytest.mark.integration
def test_unusable_ip_adapter_is_one_line(base, world, tmp_path, capsys):
    weights = load_file(world / "plain" / "adapter.safetensors")
    for name, kept in {
        "short": {key: value for key, value in weights.items() if "ip_adapter.3" not in key},
        "more": weights | {"unet.conv_in.weight": torch.zeros(1)},
        "face": {key.replace("proj.proj.", "proj.proj.0."): value for key, value in weights.items()},
    }.items():
        save_file(kept, tmp_path / f"{name}.safetensors")
    (tmp_path / "image_encoder").symlink_to(world / "plain" / "image_encoder")
    (tmp_path / "alone").mkdir()
    save_file(weights, tmp_path / "alone" / "adapter.safetensors")
    save_file({"emb_params": torch.zeros(1)}, tmp_path / "alone" / "word.safetensors")
    (tmp_path / "alone" / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (tmp_path / "adapter.bin").write_bytes(b"pickled")
    image = world / "red.png"
    cases = {
        f"{tmp_path}/none.safetensors={image}": "no IP-Adapter at",
        f"{tmp_path}/adapter.bin={image}": "is not a .safetensors file",
        f"{tmp_path}/alone/adapter.safetensors={image}": "no image encoder at",
        f"{tmp_path}/alone/word.safetensors={image}": "is no IP-Adapter: it holds emb_params; name another",
        f"{tmp_path}/alone/page.safetensors={image}": "no safetensors file: it is a web page; fetch it again",
        f"{tmp_path}/face.safetensors={image}": "is no plain, plus or full-face IP-Adapter",
        f"{tmp_path}/more.safetensors={image}": "is no IP-Adapter: it holds unet.conv_in.weight",
        f"{tmp_path}/short.safetensors={image}": "cannot be loaded as an IP-Adapter of this base",
        f"{world}/wide/adapter.safetensors={image}": "takes states of width 32, this base's U-Net 24",
        f"{world}/plain/adapter.safetensors={tmp_path}/adapter.bin": "image for the IP-Adapter",
        f"{world}/plain/adapter.safetensors={image}@1:0-0.5": "unknown setting 'ip_adapters.0.start'",
    }
    for text, message in cases.items():
        command = ["generate", "A dog", "--base", base, "--engine", "torch", "--out", tmp_path / "out"]
        assert message in refused(capsys, *command, "--ip-adapter", text), text
    assert not list((tmp_path / "out").glob("*.png"))
