"""ControlNets: several at once, with and without an initial image and a mask, as diffusers runs them."""

import gc
import json
import re
import weakref

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
)
from image_world import generate, pixels, rows_of, stock_parts
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import clipgraft
import tiny
from clipgraft.config import load_recipe, named_paths, recipe_with, to_toml
from clipgraft.download import needed_models
from clipgraft.generation.generator import load_generators
from clipgraft.generation.guides import kept_controlnets
from clipgraft.generation.requests import ImageRequest, image_requests
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base import FrozenBase
from clipgraft.models.controlnet import NEEDED, load_controlnet
from clipgraft.models.ldm_names import to_ldm
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from clipgraft.settings import ModelSettings
from helpers import call, import_openvino, refused

KINDS = {
    "text": (StableDiffusionControlNetPipeline, ()),
    "image": (StableDiffusionControlNetImg2ImgPipeline, ("init_image",)),
    "mask": (StableDiffusionControlNetInpaintPipeline, ("init_image", "mask_image")),
}
COMMON = {"num_inference_steps": 4, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def world(base, tmp_path_factory):
    """Two ControlNets, one for another base, and images."""
    folder = tmp_path_factory.mktemp("controls")
    unet = FrozenBase.load(str(base), components=["unet"]).unet
    tiny.build_controlnet(unet).save_pretrained(folder / "edges")
    tiny.build_controlnet(unet, seed=6).save_pretrained(folder / "depth")
    tiny.build_controlnet(tiny.build_pipeline(width=32).unet).save_pretrained(folder / "wide")
    for name, color in (("picture", "red"), ("circle", "white"), ("square", "white"), ("mask", "white")):
        image = Image.new("RGB", (64, 64), "navy" if name == "picture" else "black")
        draw = ImageDraw.Draw(image)
        (draw.ellipse if name == "circle" else draw.rectangle)((8, 16, 40, 50), fill=color)
        image.save(folder / f"{name}.png")
    return folder


def files(world, names):
    found = {"init_image": world / "picture.png", "mask_image": world / "mask.png"}
    return {name: found[name] for name in names}


def two_controls(world):
    return [
        {"model": world / "edges", "image": world / "circle.png", "scale": 0.7, "end": 0.6},
        {"model": str(world / "depth"), "image": str(world / "square.png"), "start": 0.3},
    ]


def drawn(generator, world, controls, kind, **params):
    images = generator.generate("A dog", controls=controls, **COMMON | files(world, KINDS[kind][1]) | params)
    return np.asarray(images[0].image, int)


@pytest.mark.parametrize("kind", KINDS)
def test_controlnets_equal_stock_diffusers(frozen, generator, world, kind):
    pipeline_class, names = KINDS[kind]
    controlnets = [
        load_controlnet(str(world / name), torch.device("cpu"), torch.float32) for name in ("edges", "depth")
    ]
    pipeline = pipeline_class(
        **stock_parts(frozen),
        controlnet=controlnets,
        feature_extractor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    images = {name: Image.open(world / f"{name}.png") for name in ("circle", "square", "picture", "mask")}
    arguments = {"image" if kind == "text" else "control_image": [images["circle"], images["square"]]}
    arguments |= {"image": images["picture"], "strength": 0.8} if names else {}
    arguments |= {"mask_image": images["mask"]} if "mask_image" in names else {}
    expected = pipeline(
        "A dog",
        controlnet_conditioning_scale=[0.7, 1.0],
        control_guidance_start=[0.0, 0.3],
        control_guidance_end=[0.6, 1.0],
        generator=torch.Generator().manual_seed(0),
        height=64,
        width=64,
        **COMMON,
        **arguments,
    ).images[0]
    found = drawn(generator, world, two_controls(world), kind)
    assert np.abs(found - np.asarray(expected, int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_flatland_under_a_controlnet_equals_stock_diffusers(tmp_path, kind):
    flatland = FrozenBase.load("flatland")
    tiny.build_controlnet(flatland.unet).save_pretrained(tmp_path / "controlnet")
    generator = next(load_generators({"": None}, base=flatland, device="cpu"))[1]
    size = generator.pipeline.unet.config.sample_size * generator.pipeline.vae_scale_factor
    picture, mask = Image.new("RGB", (size, size), "navy"), Image.new("RGB", (size, size))
    ImageDraw.Draw(mask).ellipse((10, 10, size // 2, size // 2), fill="white")
    picture.save(tmp_path / "picture.png")
    mask.save(tmp_path / "mask.png")
    pipeline_class, names = KINDS[kind]
    stock = pipeline_class(
        vae=flatland.vae,
        unet=flatland.unet,
        text_encoder=flatland.text_encoder,
        tokenizer=flatland.tokenizer,
        scheduler=build_scheduler("dpm++", flatland.scheduler),
        controlnet=load_controlnet(str(tmp_path / "controlnet"), torch.device("cpu"), torch.float32),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    arguments = (
        {"image": mask} if kind == "text" else {"image": picture, "control_image": mask, "strength": 0.8}
    )
    arguments |= {"mask_image": mask} if "mask_image" in names else {}
    expected = stock(
        "A dog",
        controlnet_conditioning_scale=0.5,
        generator=torch.Generator().manual_seed(0),
        **COMMON,
        **arguments,
    ).images[0]
    found = drawn(generator, tmp_path, [f"{tmp_path}/controlnet={tmp_path}/mask.png@0.5"], kind)
    assert np.abs(found - np.asarray(expected, int)).max() <= 1


def test_scale_and_range_decide_how_much_a_controlnet_changes(generator, world):
    plain = drawn(generator, world, [], "text")
    control = {"model": world / "edges", "image": world / "circle.png"}
    none, half, whole = (
        drawn(generator, world, [control | {"scale": scale}], "text") for scale in (0, 0.5, 1)
    )
    late = drawn(generator, world, [control | {"start": 0.9}], "text")
    assert np.array_equal(none, plain)
    assert 0 < np.abs(half - plain).mean() < np.abs(whole - plain).mean()
    assert np.array_equal(late, plain)  # of four steps none lies behind 0.9


def test_controlnets_leave_memory_with_their_base(base, world):
    control = {"model": world / "edges", "image": world / "circle.png"}
    [generator] = (own for _, own in load_generators({"": None}, base=FrozenBase.load(str(base))))
    request = SamplingParams(controls=[control])
    [kept, again] = (kept_controlnets(request.controls, generator.pipeline).nets[0] for _ in range(2))
    assert kept is again
    held = weakref.ref(kept)
    del kept, again, generator
    gc.collect()
    assert held() is None


def test_images_of_a_batch_follow_images_of_their_own(generator, world):
    requests = [
        ImageRequest(
            "A dog",
            SamplingParams.build(COMMON | {"controls": [f"{world}/edges={world}/{name}.png@0.7"]}),
        )
        for name in ("circle", "square")
    ]
    together = list(generator.sample(requests, batch_size=2))
    assert [image.batch for image in together] == [(2, 0), (2, 1)]
    alone = [next(generator.sample([request])) for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
    assert not np.array_equal(np.asarray(alone[0].image), np.asarray(alone[1].image))


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_engines_make_the_plain_pipelines_image(base, generator, world, engine, capsys, monkeypatch):
    if engine == "openvino":
        import_openvino()
    monkeypatch.setattr("clipgraft.generation.engines.engine.openvino_dtype", lambda: torch.float32)
    monkeypatch.setattr("clipgraft.generation.engines.engine.inference_dtype", lambda _: torch.float32)
    on_engine = clipgraft.load(base, device="cpu", inference=InferenceConfig(engine=engine))
    expected = drawn(generator, world, two_controls(world), "text")
    for _ in range(2):
        found = drawn(on_engine, world, two_controls(world), "text")
        assert np.abs(found - expected).max() <= 1
    plain = drawn(on_engine, world, [], "text")
    assert np.abs(plain - drawn(generator, world, [], "text")).max() <= 1
    said = capsys.readouterr().err.count("the U-Net runs in torch under ControlNets")
    assert said == (engine == "openvino")


@pytest.mark.integration
def test_command_python_and_prompt_file_make_the_same_image(base, world, tmp_path):
    text = f"{world}/edges={world}/circle.png@0.7:0-0.6"
    assert generate(base, tmp_path / "cli", "A dog", "--control", text) == 0
    row = {
        "prompt": "A dog",
        "controls": [{"model": "edges", "image": "circle.png", "scale": 0.7, "end": 0.6}],
    }
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    (tmp_path / "prompts.csv").write_text("prompt,controls\nA dog,edges=circle.png@0.7:0-0.6\n")
    for name in ("edges", "circle.png"):
        (tmp_path / name).symlink_to(world / name)
    name = "a-dog_seed0.png"
    expected = (tmp_path / "cli" / name).read_bytes()
    for source in ("prompts.jsonl", "prompts.csv"):
        out = tmp_path / source.partition(".")[2]
        assert generate(base, out, "--from-file", tmp_path / source) == 0
        assert (out / name).read_bytes() == expected
    on_torch = clipgraft.load(base, device="cpu", inference=InferenceConfig(engine="torch"))
    image = on_torch.generate("A dog", controls=[text], num_inference_steps=2)[0].image
    assert np.array_equal(pixels(tmp_path / "cli" / name), np.asarray(image))
    recorded = rows_of(tmp_path / "cli")[0]["controls"]
    assert [(each["scale"], each["start"], each["end"]) for each in recorded] == [(0.7, 0.0, 0.6)]


@pytest.mark.integration
def test_image_is_reproduced_with_its_controlnets(base, world, tmp_path, capsys):
    edges, depth = (f"{world}/edges={world}/circle.png", f"{world}/depth={world}/square.png")
    assert (
        generate(
            base, tmp_path / "a", "A dog", "A cat", "--control", f"{edges}@0.7:0-0.6", "--control", depth
        )
        == 0
    )
    original = tmp_path / "a" / "a-cat_seed0.png"
    again = ["generate", "--from-image", original, "--base", base, "--out", tmp_path / "b"]
    message = refused(capsys, *again, "--control", edges)
    assert "was made with 2 ControlNets; name each with --control MODEL=IMAGE, in the same order" in message
    swapped = refused(capsys, *again, "--control", depth, "--control", edges)
    assert f"--control {world}/depth is not the file that the image was made with" in swapped
    other = refused(capsys, *again, "--control", edges, "--control", f"{world}/depth={world}/circle.png")
    assert f"--control {world}/circle.png is not the file that the image was made with" in other
    scaled = refused(capsys, *again, "--control", f"{edges}@0.5", "--control", depth)
    assert "edges: scale comes from the image, 0.7; leave 0.5 out" in scaled
    assert call(*again, "--control", edges, "--control", depth) == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


def ldm_names(controlnet) -> dict:
    """A ControlNet's weights by the names of A1111's files."""
    config = dict(controlnet.config) | {"up_block_types": []}
    weights = {}
    for name, weight in to_ldm("unet", controlnet.state_dict(), config).items():
        name = name.removeprefix("model.diffusion_model.")
        name = re.sub(r"^controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0", name)
        name = name.replace("controlnet_mid_block", "middle_block_out.0")
        name = name.replace("controlnet_cond_embedding.conv_in", "input_hint_block.0")
        name = name.replace("controlnet_cond_embedding.conv_out", "input_hint_block.14")
        block = re.search(r"controlnet_cond_embedding\.blocks\.(\d+)", name)
        name = name.replace(block[0], f"input_hint_block.{2 * int(block[1]) + 2}") if block else name
        weights[f"control_model.{name}"] = weight
    return weights


def test_single_file_gives_the_folders_image(frozen, generator, world, tmp_path, monkeypatch):
    controlnet = tiny.build_controlnet(frozen.unet, channels=(16, 32, 96, 256))
    controlnet.save_pretrained(tmp_path / "folder")
    save_file(ldm_names(controlnet), tmp_path / "control.safetensors")
    monkeypatch.setattr("clipgraft.models.controlnet.UNET_CONFIG", dict(frozen.unet.config))
    images = [
        drawn(generator, world, [f"{tmp_path}/{name}={world}/circle.png"], "text")
        for name in ("folder", "control.safetensors")
    ]
    assert np.array_equal(*images)
    part = {"control_model.input_hint_block.0.weight": torch.zeros(1)}
    for weights, message in (
        (part, r"other\.safetensors lacks \d+ weights"),
        (
            {"emb_params": torch.zeros(1)},
            "no ControlNet with LDM's names: .* but emb_params; name another file",
        ),
        (controlnet.state_dict(), "it has no input_hint_block, .*; name its folder, with config.json"),
    ):
        save_file(weights, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=message):
            drawn(generator, world, [f"{tmp_path}/other.safetensors={world}/circle.png"], "text")


def test_unusable_controlnet_is_one_line(base, world, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        "edges": "controls.0': expected MODEL=IMAGE, MODEL=IMAGE@SCALE or",
        f"{world}/edges={world}/circle.png@99": "'controls.0.scale': input should be less than or equal",
        f"{world}/edges={world}/circle.png@1:0.5-0.2": "end must be above start",
        f"{world}/edges={tmp_path}/none.png": "none.png: no such image",
        f"{world}/edges={tmp_path}/text.png": "image for the ControlNet",
        f"{tmp_path}/none={world}/circle.png": "no model at",
        f"{tmp_path}/empty={world}/circle.png": "is no ControlNet: it has no config.json",
        f"{base}/unet={world}/circle.png": "is of a UNet2DConditionModel; only a ControlNetModel",
        f"{world}/wide={world}/circle.png": "for another base: its cross_attention_dim is 32, this base's 24",
    }
    for text, message in cases.items():
        command = ["generate", "A dog", "--base", base, "--out", tmp_path / "out", "--control", text]
        assert message in refused(capsys, *command), text
    assert not list((tmp_path / "out").glob("*.png"))


def test_damaged_controlnet_and_approximations_are_refused(base, world, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((world / "edges" / "config.json").read_bytes())
    weights = (world / "edges" / "diffusion_pytorch_model.safetensors").read_bytes()
    (damaged / "diffusion_pytorch_model.safetensors").write_bytes(weights[:-100])
    command = [
        "generate",
        "A dog",
        "--base",
        base,
        "--engine",
        "torch",
        "--out",
        tmp_path / "out",
        "--control",
    ]
    assert "is damaged" in refused(capsys, *command, f"{damaged}={world}/circle.png")
    control = f"{world}/edges={world}/circle.png"
    message = refused(capsys, *command, control, "--feature-cache", 2)
    assert "ControlNets do not work with guidance_interval, feature_cache and quantize" in message


def test_recipe_names_controlnets(world, tmp_path):
    text = f'[[generate.controls]]\nmodel = "{world}/edges"\nimage = "{world}/circle.png"\nscale = 0.7\n'
    (tmp_path / "recipe.toml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.toml")
    overridden = recipe_with(None, [f'generate.controls=["{world}/edges={world}/circle.png@0.7"]'])
    assert recipe.generate.controls == overridden.generate.controls
    (tmp_path / "written.toml").write_text(to_toml(recipe))
    assert load_recipe(tmp_path / "written.toml") == recipe
    assert f"{world}/circle.png" in named_paths(recipe).values()
    of_hub = recipe_with(None, [f'generate.controls=["owner/edges={world}/circle.png"]'])
    assert needed_models(of_hub)[-1] == (ModelSettings(name="owner/edges"), NEEDED)  # and so prefetched
    params = SamplingParams.build({"controls": [f"{world}/edges={world}/circle.png@0.7"]})
    assert image_requests(["A dog"], recipe.generate) == [ImageRequest("A dog", params)]
