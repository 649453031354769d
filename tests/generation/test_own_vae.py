"""A VAE of the user's own: stock diffusers' image with it, on every engine; recorded and reproduced."""

import json

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from image_world import generate, pixels, rows_of, stock_parts
from PIL import Image
from safetensors.torch import save_file

import clipgraft
from clipgraft.config import load_recipe
from clipgraft.download import needed_models
from clipgraft.generation.engines.engine import why_no_int8
from clipgraft.generation.generator import load_generators
from clipgraft.generation.image_encoding import read_image_texts
from clipgraft.generation.pipeline import decode
from clipgraft.models.base import FrozenBase
from clipgraft.models.weights import module_sha256
from clipgraft.sampling_params import InferenceConfig
from clipgraft.studio.file_settings import settings_from_file
from clipgraft.studio.model_folder import ModelFolder
from clipgraft.studio.named_files import NamedFiles
from clipgraft.studio.uploads import Uploads
from helpers import call, import_openvino, refused
from vae_world import fine_tuned, taesd_decoder, taesd_encoder, tiny_vae

PARAMS = {"num_inference_steps": 3, "guidance_scale": 5.0}


def loud_decoder():
    """TAESD's decoder with values beyond half precision's within."""
    loud = taesd_decoder()
    with torch.no_grad():  # from the first convolution to the last upsampling 1e5 times as large
        loud[1].weight.mul_(1e5)
        loud[1].bias.mul_(1e5)
        for layer in loud:
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is None:
                layer.weight.mul_(1e5 ** (-1 / 3))
            elif not isinstance(layer, torch.nn.Conv2d) and hasattr(layer, "conv"):
                layer.conv[4].weight.zero_()
                layer.conv[4].bias.zero_()
    return loud


@pytest.fixture(scope="module")
def vaes(base, tmp_path_factory):
    """A fine-tuned VAE and TAESD for the tiny base."""
    folder = tmp_path_factory.mktemp("vaes")
    fine_tuned(FrozenBase.load(str(base)).vae).save_pretrained(folder / "kl")
    save_file(taesd_encoder().state_dict(), folder / "taesd_encoder.safetensors")
    save_file(taesd_decoder().state_dict(), folder / "taesd_decoder.safetensors")
    save_file(taesd_decoder().state_dict(), folder / "alone_decoder.safetensors")
    save_file(loud_decoder().state_dict(), folder / "loud_decoder.safetensors")
    tiny_vae().save_pretrained(folder / "tiny")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    image.save(folder / "image.png")
    Image.fromarray(np.arange(64 * 64).reshape(64, 64) % 64 > 31).save(folder / "mask.png")
    return folder


def with_vae(base, path, engine="torch", **inference):
    own = InferenceConfig.build({"engine": engine, "vae": path} | inference)
    return clipgraft.load(base, device="cpu", inference=own)


@pytest.fixture
def in_float32(monkeypatch):
    """Engines in float32, so that nothing but the VAE differs from stock diffusers'."""
    monkeypatch.setattr("clipgraft.generation.engines.engine.openvino_dtype", lambda: torch.float32)
    monkeypatch.setattr("clipgraft.generation.engines.engine.inference_dtype", lambda _: torch.float32)


def stock_pixels(base, vae, kind, vaes):
    """What diffusers' own pipeline makes with that VAE."""
    images = {"image": Image.open(vaes / "image.png"), "strength": 0.8}
    pipeline_class, arguments = {
        "text": (StableDiffusionPipeline, {"height": 64, "width": 64}),
        "image": (StableDiffusionImg2ImgPipeline, images),
        "mask": (
            StableDiffusionInpaintPipeline,
            {**images, "mask_image": Image.open(vaes / "mask.png"), "height": 64, "width": 64},
        ),
    }[kind]
    parts = stock_parts(FrozenBase.load(str(base))) | {"vae": vae, "feature_extractor": None}
    pipeline = pipeline_class(**parts)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    found = np.asarray(pipeline("A dog", generator=generator, **arguments, **PARAMS).images[0], int)
    assert found.std() > 20  # it shows something
    return found


def files_of(kind, vaes):
    files = {"init_image": vaes / "image.png", "mask_image": vaes / "mask.png"}
    return {"text": {}, "image": {"init_image": files["init_image"]}, "mask": files}[kind]


CLASSES = {"kl": AutoencoderKL, "tiny": AutoencoderTiny}


@pytest.mark.parametrize("kind", ["text", "image", "mask"])
@pytest.mark.parametrize("name", CLASSES)
def test_image_equals_stock_diffusers_with_that_vae(base, vaes, in_float32, name, kind):
    drawn = with_vae(base, vaes / name).generate("A dog", **PARAMS, **files_of(kind, vaes))[0].image
    expected = stock_pixels(base, CLASSES[name].from_pretrained(vaes / name), kind, vaes)
    assert np.abs(np.asarray(drawn, int) - expected).max() <= 1


@pytest.mark.integration
@pytest.mark.parametrize("name", CLASSES)
def test_openvino_equals_stock_diffusers_with_that_vae(base, vaes, in_float32, name):
    import_openvino()
    drawn = with_vae(base, vaes / name, "openvino").generate("A dog", **PARAMS)[0].image
    expected = stock_pixels(base, CLASSES[name].from_pretrained(vaes / name), "text", vaes)
    assert np.abs(np.asarray(drawn, int) - expected).max() <= 1


@pytest.mark.slow
def test_compiled_engine_equals_stock_diffusers_with_taesd(base, vaes, in_float32):
    drawn = with_vae(base, vaes / "tiny", compile=True).generate("A dog", **PARAMS)[0].image
    expected = stock_pixels(base, AutoencoderTiny.from_pretrained(vaes / "tiny"), "text", vaes)
    assert np.abs(np.asarray(drawn, int) - expected).max() <= 1


@pytest.mark.slow
def test_taesd_decodes_what_an_int8_unet_predicts(base, vaes, in_float32):
    import_openvino()
    if why_no_int8():
        pytest.skip(why_no_int8())
    own, tiny = (
        with_vae(base, path, "auto", quantize="int8").generate("A dog", **PARAMS)[0]
        for path in ("", vaes / "tiny")
    )
    assert tiny.metadata["models"]["quantize"] == "int8"
    assert tiny.metadata["models"]["unet_sha256"] == own.metadata["models"]["unet_sha256"]
    assert not np.array_equal(np.asarray(tiny.image), np.asarray(own.image))


def test_taesd_decoder_alone_decodes_what_the_bases_vae_encoded(base, vaes, in_float32):
    changes = {"init_image": vaes / "image.png", "strength": 0.3, "num_inference_steps": 4}
    own = with_vae(base, "")
    latents = {}
    for name, generator in {"own": own, "alone": with_vae(base, vaes / "alone_decoder.safetensors")}.items():
        pipeline = generator.pipeline
        usual = pipeline.vae.decode
        pipeline.vae.decode = lambda z, usual=usual, name=name, **more: (
            latents.update({name: z}) or usual(z, **more)
        )
        drawn = generator.generate("A dog", **changes)[0].image
    assert torch.allclose(latents["own"], latents["alone"], atol=1e-6)
    with torch.no_grad():
        expected = taesd_decoder()(latents["own"] * own.pipeline.vae.config.scaling_factor)[0]
    rounded = (expected.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(int)
    assert np.abs(np.asarray(drawn, int) - rounded).max() <= 1


def test_images_of_a_batch_equal_single_ones(base, vaes, in_float32):
    generator = with_vae(base, vaes / "taesd_decoder.safetensors")
    prompts = ["A dog", "A cat", "A horse"]
    together = generator.generate(prompts, batch_size=3, **PARAMS)
    for prompt, image in zip(prompts, together, strict=True):
        alone = generator.generate(prompt, **PARAMS)[0].image
        assert np.abs(np.asarray(image.image, int) - np.asarray(alone, int)).max() <= 1


@pytest.mark.integration
def test_taesd_that_overflows_in_half_is_decoded_in_float32(base, vaes):
    inference = InferenceConfig(vae=str(vaes / "loud_decoder.safetensors"))
    frozen = FrozenBase.load(str(base))
    [(_, generator)] = load_generators({"": None}, base=frozen, device="cpu", inference=inference)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, _ = decode(generator.pipeline, latents)
    assert expected.std() > 20
    half = generator.pipeline.vae.half()
    with torch.no_grad():
        assert not torch.isfinite(half.decode(latents.half() / half.config.scaling_factor).sample).all()
    found, statuses = decode(generator.pipeline, latents.half())
    assert statuses == ["ok"]
    assert np.abs(found.astype(int) - expected).max() <= 2


def offloaded(vae, how, before=None):
    """Hook a VAE as diffusers does for offload, for which it wants a GPU; here it is the CPU."""
    cpu = torch.device("cpu")
    if how == "model":
        accelerate.cpu_offload_with_hook(vae, cpu, before)
    else:
        accelerate.cpu_offload(vae, cpu, offload_buffers=len(vae._parameters) > 0)
        assert {weight.device.type for weight in vae.parameters()} == {"meta"}


@pytest.mark.parametrize("how", ["model", "sequential"])
@pytest.mark.parametrize("name", ["kl", "taesd_decoder.safetensors", "alone_decoder.safetensors"])
def test_an_offloaded_vae_encodes_and_decodes_the_same_image(base, vaes, name, how):
    inference = InferenceConfig(vae=str(vaes / name))
    frozen = FrozenBase.load(str(base))
    [(_, generator)] = load_generators({"": None}, base=frozen, device="cpu", inference=inference)
    changes = {"init_image": vaes / "image.png", **PARAMS}
    expected = generator.generate("A dog", **changes)[0].image
    offloaded(generator.pipeline.vae, how)
    found = generator.generate("A dog", **changes)[0].image
    assert np.array_equal(np.asarray(found), np.asarray(expected))


class Uncopied(torch.nn.Linear):
    """A network of gigabytes, which must not be in memory twice."""

    def __deepcopy__(self, memo):
        raise AssertionError("the network before the VAE was copied with its hook")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_an_offloaded_vae_that_overflows_is_run_in_float32(base, vaes, how):
    inference = InferenceConfig(vae=str(vaes / "loud_decoder.safetensors"))
    frozen = FrozenBase.load(str(base))
    [(_, generator)] = load_generators({"": None}, base=frozen, device="cpu", inference=inference)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, _ = decode(generator.pipeline, latents)
    vae = generator.pipeline.vae.half()
    _, before = accelerate.cpu_offload_with_hook(Uncopied(1, 1), torch.device("cpu"))
    offloaded(vae, how, before)
    for _ in range(2):  # its hooks are still there
        found, statuses = decode(generator.pipeline, latents.half())
        assert statuses == ["ok"]
        assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.integration
def test_command_python_and_recipe_make_the_same_image(base, vaes, tmp_path):
    path = vaes / "taesd_decoder.safetensors"
    assert generate(base, tmp_path / "cli", "A dog", "--vae", path) == 0
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[generate]\nvae = "{path}"\nengine = "torch"\n')
    settings = load_recipe(recipe).generate
    drawn = clipgraft.load(base, device="cpu", inference=settings).generate("A dog", num_inference_steps=2)
    found = pixels(tmp_path / "cli" / "a-dog_seed0.png")
    assert np.array_equal(found, np.asarray(drawn[0].image))
    assert generate(base, tmp_path / "own", "A dog") == 0
    assert not np.array_equal(found, pixels(tmp_path / "own" / "a-dog_seed0.png"))


def test_the_record_names_the_vae_and_its_sum_but_no_folder(base, vaes, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "--vae", vaes / "kl") == 0
    assert "note: VAE kl: changes the image" in capsys.readouterr().err
    texts, _ = read_image_texts(tmp_path / "a-dog_seed0.png")
    models = json.loads(texts["clipgraft"])["models"]
    vae = AutoencoderKL.from_pretrained(vaes / "kl")
    assert (models["vae"], models["vae_sha256"]) == ("kl", module_sha256(vae))
    assert ", VAE: kl, " in texts["parameters"]
    assert str(vaes) not in "".join(texts.values())
    files = NamedFiles(ModelFolder(None), Uploads(tmp_path / "uploads", max_bytes=1, max_pixels=1))
    content = (tmp_path / "a-dog_seed0.png").read_bytes()
    assert settings_from_file(content, 10_000, files)["notes"] == ["not here: VAE kl"]
    assert generate(base, tmp_path, "A dog") == 0  # another image, beside the first
    assert {row["file"] for row in rows_of(tmp_path)} == {"a-dog_seed0.png", "a-dog_seed0_2.png"}
    own = json.loads(read_image_texts(tmp_path / "a-dog_seed0_2.png")[0]["clipgraft"])["models"]
    assert "vae" not in own
    assert own["vae_sha256"] != models["vae_sha256"]


@pytest.mark.integration
def test_an_image_is_reproduced_with_its_vae_alone(base, vaes, tmp_path, capsys):
    original = tmp_path / "a" / "a-dog_seed0.png"
    assert generate(base, tmp_path / "a", "A dog", "--vae", vaes / "taesd_decoder.safetensors") == 0
    again = ["generate", "--from-image", original, "--base", base, "--out", tmp_path / "b"]
    line = "made with a VAE of its own, taesd_decoder.safetensors; name it with --vae"
    assert line in refused(capsys, *again)
    message = refused(capsys, *again, "--vae", vaes / "kl")
    assert "the vae here (sha256 " in message
    assert message.endswith("; name the right --vae")
    assert not list(tmp_path.glob("b/*.png"))
    assert call(*again, "--vae", vaes / "taesd_decoder.safetensors") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()
    assert generate(base, tmp_path / "own", "A dog") == 0
    plain = ["generate", "--from-image", tmp_path / "own" / original.name, "--base", base]
    message = refused(capsys, *plain, "--out", tmp_path / "c", "--vae", vaes / "kl")
    assert "that image was made with the base's own VAE; leave --vae out" in message


@pytest.mark.integration
def test_grid_and_compare_take_a_vae_too(base, graft, vaes, tmp_path):
    shared = ["--base", base, "--steps", 1, "--vae", vaes / "tiny", "--out"]
    assert call("grid", "A dog", "--axis", "seed=0-1", *shared, tmp_path / "grid") == 0
    assert (
        call(
            "compare", "A dog", "--graft", "a=teacher", "--graft", f"b={graft}", *shared, tmp_path / "compare"
        )
        == 0
    )
    for file in [*tmp_path.glob("grid/*_seed*.png"), *tmp_path.glob("compare/**/*_seed*.png")]:
        assert json.loads(read_image_texts(file)[0]["clipgraft"])["models"]["vae"] == "tiny"
    assert len(list(tmp_path.glob("grid/*_seed*.png"))) == 2


def test_a_vae_that_cannot_be_used_is_one_line(base, tmp_path, capsys):
    command = ["generate", "A dog", "--base", base, "--out", tmp_path / "out", "--vae"]
    message = refused(capsys, *command, tmp_path / "none.safetensors")
    assert message.endswith("none.safetensors; name a .safetensors file, a folder or a hub id")
    assert "is for another base: its scaling_factor is 0.27" in refused(capsys, *command, "flatland")
    # Offload needs a GPU; the hooks it makes are tested above on the CPU.
    offload = ("--offload", "model", "--device", "cpu")
    assert "offload 'model' moves weights to a CUDA GPU" in refused(capsys, *command, "flatland", *offload)
    assert not list(tmp_path.glob("out/*.png"))


def test_a_vae_of_the_hub_is_fetched_in_advance(tmp_path):
    (tmp_path / "recipe.toml").write_text('[generate]\nvae = "madebyollin/taesd"\n')
    models = needed_models(load_recipe(tmp_path / "recipe.toml"))
    held = ["config.json", "diffusion_pytorch_model.safetensors", "taesd_decoder.safetensors"]
    assert {model.name: needed.choose(held) for model, needed in models}["madebyollin/taesd"] == held[:2]
