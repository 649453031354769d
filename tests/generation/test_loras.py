"""LoRAs of requests: equal to diffusers' own, without a trace after they are gone."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from image_world import generate, pixels, rows_of
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

import clipgraft
import tiny
from clipgraft.errors import MissingFileError, UserError
from clipgraft.generation.engines.engine import why_no_int8, why_no_openvino
from clipgraft.generation.generate import GenerateOptions
from clipgraft.generation.generator import load_generators
from clipgraft.generation.grid import generate_grid, parse_axis
from clipgraft.generation.lora_files import fuse_lora, read_lora
from clipgraft.generation.prompt_files import read_requests
from clipgraft.generation.request_adapters import read_tags
from clipgraft.generation.requests import image_requests
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig, Lora, SamplingParams
from helpers import call, image_request, import_openvino, refused
from lora_world import kohya_tensors, write_diffusers, write_kohya

TORCH = InferenceConfig(engine="torch")


@pytest.fixture(scope="module")
def kohya(tmp_path_factory):
    return write_kohya(tmp_path_factory.mktemp("loras") / "fur.safetensors")


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory):
    return write_diffusers(tmp_path_factory.mktemp("loras") / "night")


def drawn(generator, *loras, prompts=("A dog runs",), **options):
    requests = [image_request(prompt, num_inference_steps=2, loras=loras) for prompt in prompts]
    return [np.asarray(each.image, dtype=int) for each in generator.sample(requests, **options)]


def drawn_by_diffusers(base, generator, loras):
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = build_scheduler("dpm++", generator.base_scheduler)
    pipeline.set_progress_bar_config(disable=True)
    for number, lora in enumerate(loras):
        pipeline.load_lora_weights(lora.file, adapter_name=str(number))
    weights = [dict(lora.strengths) for lora in loras]
    pipeline.set_adapters([str(number) for number in range(len(loras))], weights)
    seeds = torch.Generator().manual_seed(0)
    defaults = generator.defaults
    [image] = pipeline(
        "A dog runs", num_inference_steps=2, guidance_scale=defaults.guidance_scale, generator=seeds
    ).images
    return np.asarray(image, dtype=int)


@pytest.mark.integration
def test_images_are_those_of_diffusers(base, generator, kohya, diffusers):
    loras = [
        Lora(file=str(kohya), strength=0.7, text_strength=0.4),
        Lora(file=str(diffusers), strength=-0.5),
    ]
    plain = drawn(generator)[0]
    for chosen in ([loras[0]], [loras[1]], loras):
        [found] = drawn(generator, *chosen)
        assert np.abs(found - drawn_by_diffusers(base, generator, chosen)).max() <= 1
        assert np.abs(found - plain).max() > 5


def test_older_names_of_diffusers_are_read(diffusers, tmp_path):
    tensors = load_file(diffusers / "pytorch_lora_weights.safetensors")
    for new, old in {
        "to_q.lora_A": "processor.to_q_lora.down",
        "to_q.lora_B": "processor.to_q_lora.up",
        "to_v.lora_A": "to_v.lora.down",
        "to_v.lora_B": "to_v.lora.up",
        "fc1.lora_A": "fc1.lora_linear_layer.down",
        "fc1.lora_B": "fc1.lora_linear_layer.up",
        "self_attn.q_proj.lora_A": "self_attn.to_q_lora.down",
        "self_attn.q_proj.lora_B": "self_attn.to_q_lora.up",
    }.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert not any("lora_A" in name for name in tensors)
    save_file(tensors, tmp_path / "old.safetensors")
    old, new = read_lora(tmp_path / "old.safetensors"), read_lora(diffusers)
    for component in ("unet", "text_encoder"):
        found, expected = getattr(old, component), getattr(new, component)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name].up, expected[name].up) for name in expected)


def test_each_layer_has_its_own_alpha(tmp_path):
    tensors = kohya_tensors(5, parts=("te",))
    for number, name in enumerate(sorted(name for name in tensors if name.endswith("alpha"))):
        tensors[name] = torch.tensor(float(number))
    save_file(tensors, tmp_path / "mixed.safetensors")
    encoder, own = (tiny.build_pipeline().text_encoder for _ in range(2))
    fuse_lora(encoder, read_lora(tmp_path / "mixed.safetensors"), 0.5, "text_encoder")
    name = "encoder.layers.1.mlp.fc1"
    key = f"lora_te_text_model_{name.replace('.', '_')}"
    found = encoder.get_submodule(name).weight - own.get_submodule(name).weight
    alpha = float(tensors[f"{key}.alpha"])
    expected = 0.5 * alpha / 2 * tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
    assert alpha > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_scales_are_those_of_peft(use_rslora, tmp_path):
    unet, own = (tiny.build_pipeline().unet for _ in range(2))
    settings = {"use_rslora": use_rslora, "alpha_pattern": {"attn2.to_v": 7}, "rank_pattern": {"to_q": 3}}
    config = LoraConfig(
        r=2, lora_alpha=5, target_modules=["to_q", "to_v"], init_lora_weights=False, **settings
    )
    unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    unet.fuse_lora()
    unet.unload_lora()
    fuse_lora(own, read_lora(tmp_path), 1.0, "unet")
    for name, expected in unet.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], expected)


def test_nothing_is_left_of_a_lora(generator, kohya, diffusers):
    before = drawn(generator)[0]
    first = drawn(generator, kohya)[0]
    for _ in range(3):
        drawn(generator, f"{diffusers}:0.9")
        assert np.array_equal(drawn(generator)[0], before)
        assert np.array_equal(drawn(generator, kohya)[0], first)
    assert not np.array_equal(first, before)


def test_other_loras_are_another_batch(base, generator, kohya, diffusers):
    loras = [(), (kohya,), (kohya,), (f"{kohya}:0.5",), (), (diffusers,)]
    requests = [
        image_request("A dog", seed, num_inference_steps=2, loras=own) for seed, own in enumerate(loras)
    ]
    together = list(generator.sample(requests))
    assert [image.batch for image in together] == [(1, 0), (2, 0), (2, 1), (1, 0), (1, 0), (1, 0)]
    for request, image in zip(requests, together, strict=True):
        [alone] = generator.sample([request])
        apart = np.abs(np.asarray(alone.image, int) - np.asarray(image.image, int))
        assert apart.max() <= (1 if image.batch[0] > 1 else 0)


def test_graft_takes_the_part_for_the_unet_alone(base, graft, kohya, tmp_path, capsys):
    generator = clipgraft.load(graft, inference=TORCH)
    [with_text] = drawn(generator, kohya)
    assert "fur.safetensors: its part for the text encoder is left out" in capsys.readouterr().err
    write_kohya(tmp_path / "unet.safetensors", parts=("unet",))
    tensors = {name: each for name, each in load_file(kohya).items() if name.startswith("lora_unet")}
    save_file(tensors, tmp_path / "unet.safetensors")
    assert np.array_equal(drawn(generator, tmp_path / "unet.safetensors")[0], with_text)
    write_kohya(tmp_path / "text.safetensors", parts=("te",))
    with pytest.raises(UserError, match="changes the text encoder alone, and a graft has no such layers"):
        drawn(generator, tmp_path / "text.safetensors")


@pytest.mark.integration
def test_openvino_and_torch_agree(base, kohya):
    import_openvino()
    settings = InferenceConfig(engine="openvino", feature_cache=2)
    found = {}
    for config in (settings, settings.updated({"engine": "torch"})):
        generator = clipgraft.load(base, inference=config)
        found[config.engine] = drawn(generator, kohya)[0]
        assert np.abs(found[config.engine] - drawn(generator)[0]).max() > 5
    assert np.abs(found["openvino"] - found["torch"]).mean() < 3  # bfloat16 in places


@pytest.mark.slow
def test_loras_are_calibrated_apart_in_int8(base, kohya, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = why_no_openvino(torch.device("cpu")) or why_no_int8()
    if missing:
        pytest.skip(f"no INT8: {missing}")
    generator, exact = (
        clipgraft.load(base, inference=each) for each in (InferenceConfig(quantize="int8"), TORCH)
    )
    plain, adapted = drawn(generator)[0], drawn(generator, kohya)[0]
    assert capsys.readouterr().err.count("INT8 calibrated on ") == 2
    assert np.array_equal(drawn(generator)[0], plain)
    distance = np.abs(adapted - drawn(exact, kohya)[0]).mean()
    assert 0 < distance < 0.7 * np.abs(adapted - plain).mean()  # rounded twice, in narrow layers


@pytest.mark.integration
def test_image_is_redrawn_with_its_own_loras(base, kohya, diffusers, tmp_path, capsys):
    loras = ("--lora", f"{kohya}:0.7:0.3", "--lora", diffusers)
    assert generate(base, tmp_path / "one", "A dog", *loras) == 0
    said = capsys.readouterr().err
    assert "LoRA fur at 0.7: changes the image" in said
    [row] = rows_of(tmp_path / "one")
    assert [(each["name"], each["strength"], each["text_strength"]) for each in row["loras"]] == [
        ("fur", 0.7, 0.3),
        ("night", 1.0, 1.0),
    ]
    picture = tmp_path / "one" / row["file"]
    with Image.open(picture) as image:
        assert image.info["parameters"].startswith("A dog <lora:fur:0.3:0.7> <lora:night:1>\n")
    again = ("generate", "--base", base, "--from-image", picture, "--out", tmp_path / "two")
    assert call(*again, "--lora", diffusers, "--lora", kohya) == 0
    assert (tmp_path / "two" / row["file"]).read_bytes() == picture.read_bytes()
    capsys.readouterr()
    assert "made with a LoRA 'fur' (sha256" in refused(capsys, *again)
    assert "made with a LoRA 'night'" in refused(capsys, *again, "--lora", kohya)
    other = write_kohya(tmp_path / "other.safetensors", 9)
    names = ("--lora", diffusers, "--lora", kohya, "--lora", other)
    assert f"was made without --lora {other}" in refused(capsys, *again, *names)
    assert generate(base, tmp_path / "plain", "A dog") == 0
    plain = (*again[:3], "--from-image", tmp_path / "plain" / row["file"], "--out", tmp_path / "three")
    assert "made without a LoRA; leave --lora out" in refused(capsys, *plain, "--lora", kohya)


@pytest.mark.integration
def test_prompt_names_loras_as_in_a1111(base, kohya, tmp_path, capsys):
    options = ("--prompt-syntax", "weighted", "--lora-dir", kohya.parent)
    assert generate(base, tmp_path / "a", "A dog <lora:fur:0.5:0.8>", *options) == 0
    assert generate(base, tmp_path / "b", "A dog", "--lora", f"{kohya}:0.8:0.5", *options[:2]) == 0
    [row], [other] = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert (row["prompt"], row["loras"]) == ("A dog", other["loras"])
    assert np.array_equal(pixels(tmp_path / "a" / row["file"]), pixels(tmp_path / "b" / row["file"]))
    again = ("generate", "--base", base, "--from-image", tmp_path / "a" / row["file"])
    (tmp_path / "moved" / "a" / "fur.safetensors").mkdir(parents=True)
    shutil.copy(kohya, tmp_path / "moved" / "fur.SAFETENSORS")
    assert call(*again, "--out", tmp_path / "c", "--lora-dir", tmp_path / "moved") == 0
    assert (tmp_path / "a" / row["file"]).read_bytes() == (tmp_path / "c" / row["file"]).read_bytes()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("A dog <lora:fir>", "no LoRA 'fir' (.safetensors) in"),
        ("A dog <lora:fur:strong>", "has a strength that is no number"),
        ("A dog <lora:fur:1:1:1>", "has more than the strengths of text encoder and U-Net"),
        ("A dog <lora:fur:1:dyn=4>", "has more than the strengths"),
        ("A dog <lora:fur:nan>", "'loras.0.strength': input should be"),
        ("A dog <lyco:fur:1>", "is a LyCORIS file or a hypernetwork"),
    ],
)
def test_bad_tags_are_one_line(base, kohya, tmp_path, capsys, prompt, message):
    options = ("--base", base, "--out", tmp_path / "out", "--prompt-syntax", "weighted")
    assert message in refused(capsys, "generate", prompt, *options, "--lora-dir", kohya.parent)


def test_a_lora_is_found_in_another_case(tmp_path):
    found = write_kohya(tmp_path / "Fur.SAFETENSORS")
    params = SamplingParams(prompt_syntax="weighted", lora_dir=str(tmp_path))
    _, changed = read_tags("A dog <lora:fur:1>", params)
    assert [lora.file for lora in changed.loras] == [str(found)]
    for prompt in ("A dog <lora:fur:1>", "A dog"):
        with pytest.raises(MissingFileError, match=r"no folder .*nowhere; name one with LoRAs"):
            image_requests([prompt], SamplingParams(prompt_syntax="weighted", lora_dir="nowhere"))


def test_tag_without_a_folder_says_what_to_name(base, tmp_path, capsys):
    options = ("--base", base, "--out", tmp_path / "out", "--prompt-syntax", "weighted")
    assert "'<lora:fur:1>' needs the folder of its file" in refused(
        capsys, "generate", "A <lora:fur:1>", *options
    )


@pytest.mark.integration
def test_grid_has_an_axis_of_loras(base, kohya, tmp_path):
    axes = [parse_axis(text) for text in (f"lora=none,{kohya}:0.4,{kohya}:0.9:0.2", "seed=0,1")]
    options = GenerateOptions(base=str(base), inference=TORCH)
    generate_grid(axes, SamplingParams(num_inference_steps=2), tmp_path, options, prompt="A dog")
    found = [each["loras"][0]["strength"] if each.get("loras") else None for each in rows_of(tmp_path)]
    assert found == [None, None, 0.4, 0.4, 0.9, 0.9]
    page = (tmp_path / "grid.html").read_text()
    assert all(label in page for label in ("no LoRA", "fur 0.4", "fur 0.9"))


def test_prompt_files_name_loras_beside_them(kohya, diffusers, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "fur.safetensors").write_bytes(kohya.read_bytes())
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "A", "loras": ["fur.safetensors:0.4"]}\n'
        '{"prompt": "B", "loras": [{"file": "fur.safetensors", "strength": 0.5}]}\n'
        f'{{"prompt": "C", "loras": "{diffusers}:0.6"}}\n'
        '{"prompt": "D <lora:fur:0.7>", "lora_dir": ".", "prompt_syntax": "weighted"}\n'
        '{"prompt": "E", "loras": ["~/fur.safetensors:0.8"]}\n'
    )
    requests, _ = read_requests(tmp_path / "prompts.jsonl", SamplingParams())
    own = str(tmp_path / "fur.safetensors")
    expected = [(own, 0.4), (own, 0.5), (str(diffusers), 0.6), (own, 0.7), (own, 0.8)]
    assert [(lora.file, lora.strength) for request in requests for lora in request.params.loras] == expected


@pytest.mark.integration
def test_controlnets_act_beside_loras(base, kohya, tmp_path):
    tiny.build_controlnet(FrozenBase.load(str(base), components=["unet"]).unet).save_pretrained(
        tmp_path / "edges"
    )
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    control = f"{tmp_path}/edges={tmp_path}/white.png"
    plain = next(load_generators({"": None}, base=FrozenBase.load(str(base))))[1]
    for generator in (plain, clipgraft.load(base, inference=TORCH)):
        images = [
            generator.generate("A dog", num_inference_steps=2, loras=loras, controls=controls)[0].image
            for loras in ((), (kohya,))
            for controls in ((), (control,))
        ]
        assert len({image.tobytes() for image in images}) == 4
