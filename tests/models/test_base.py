import json

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

import tiny
from clipgraft.errors import CheckpointError
from clipgraft.models import single_file as sd15
from clipgraft.models.base import FrozenBase, check_fit, check_vocabularies
from real_size import write_single_file
from tiny import TEACHER_WIDTH, build_clip, build_tokenizer, text_config


@pytest.fixture
def single_file(base_dir, tmp_path, monkeypatch):
    """The tiny base as one file with LDM's names; its config takes the place of Stable Diffusion's."""
    configs = {}
    for name in ("unet", "vae", "text_encoder"):
        configs[name] = json.loads((base_dir / name / "config.json").read_text())
    monkeypatch.setattr(sd15, "UNET_CONFIG", configs["unet"])
    monkeypatch.setattr(sd15, "VAE_CONFIG", configs["vae"])
    monkeypatch.setattr(sd15, "TEXT_CONFIG", configs["text_encoder"])
    return write_single_file(base_dir, tmp_path / "base.safetensors")


def test_all_of_a_base_is_frozen_and_in_eval(base):
    for module in base.modules.values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert base.modules.keys() == {"vae", "unet", "text_encoder"}


def test_components_are_those_that_diffusers_loads(base, base_dir):
    pipeline = StableDiffusionPipeline.from_pretrained(base_dir)
    for name, module in base.modules.items():
        for key, weight in getattr(pipeline, name).state_dict().items():
            assert torch.equal(module.state_dict()[key], weight)
    assert base.scheduler.config.steps_offset == pipeline.scheduler.config.steps_offset == 1


def test_the_teacher_is_loaded_without_reading_the_unet(base_dir, copy):
    folder = copy(base_dir)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    base = FrozenBase.load(str(folder), components=("tokenizer", "text_encoder"))
    assert base.unet is None
    assert base.vae is None
    assert base.text_encoder.config.hidden_size == TEACHER_WIDTH


def test_weights_are_loaded_in_the_dtype_asked_for(base_dir):
    base = FrozenBase.load(str(base_dir), dtype=torch.bfloat16)
    assert {module.dtype for module in base.modules.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_that_holds_half_precision_alone_is_loaded(base, base_dir, copy, dtype):
    folder = copy(base_dir)
    tiny.halve(folder)
    for path in folder.rglob("*.safetensors"):
        if ".fp16." not in path.name:
            path.unlink()
    loaded = FrozenBase.load(str(folder), dtype=dtype)
    for name, module in loaded.modules.items():
        for key, weight in module.state_dict().items():
            assert weight.dtype == dtype
            assert torch.equal(weight.half(), base.modules[name].state_dict()[key].half())


def test_of_both_precisions_the_one_nearer_to_the_dtype_is_read(base, base_dir, copy):
    folder = copy(base_dir)
    tiny.halve(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    half = FrozenBase.load(str(folder), components=("unet",), dtype=torch.bfloat16).unet.state_dict()
    for name, weight in base.unet.state_dict().items():
        assert torch.equal(half[name], weight.half().bfloat16())
    assert FrozenBase.load(str(folder), components=("vae",)).weight_checksums() == {
        "vae": base.weight_checksums()["vae"]
    }


def test_weights_in_shards_are_loaded_and_missing_ones_named(base, base_dir, copy):
    folder = copy(base_dir)
    tiny.shard(folder / "unet", "diffusion_pytorch_model")
    tiny.shard(folder / "text_encoder", "model")
    loaded = FrozenBase.load(str(folder))
    assert loaded.weight_checksums() == base.weight_checksums()
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"unet/diffusion_pytorch_model-00002-of-00002\.safetensors is missing"
    ):
        FrozenBase.load(str(folder))


def test_names_of_older_libraries_are_loaded(base, base_dir, copy):
    """The VAE's attention and the text encoder's positions, as in the files of Stable Diffusion v1.5."""
    folder = copy(base_dir)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for name in list(weights):
        for new_part, old_part in old.items():
            if f".{new_part}." in name and "attentions" in name:
                weights[name.replace(f".{new_part}.", f".{old_part}.")] = weights.pop(name)
    assert sum(".proj_attn." in name for name in weights) == 4
    save_file(weights, path, metadata={"format": "pt"})
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    prefix = "text_model." if next(iter(weights)).startswith("text_model.") else ""
    weights = {f"text_model.{name.removeprefix(prefix)}": weight for name, weight in weights.items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, metadata={"format": "pt"})
    assert FrozenBase.load(str(folder)).weight_checksums() == base.weight_checksums()


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler])
def test_the_scheduler_is_of_the_class_that_the_base_names(base_dir, copy, scheduler_class):
    folder = copy(base_dir)
    scheduler_class(beta_end=0.013, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    scheduler = FrozenBase.load(str(folder), components=("scheduler",)).scheduler
    assert type(scheduler) is scheduler_class
    assert scheduler.config.prediction_type == "v_prediction"


def test_beta_sigmas_of_a_base_are_kept_in_its_config(base_dir, copy):
    folder = copy(base_dir)
    EulerDiscreteScheduler(beta_end=0.013, use_beta_sigmas=True).save_pretrained(folder / "scheduler")
    scheduler = FrozenBase.load(str(folder), components=("scheduler",)).scheduler
    assert scheduler.config == EulerDiscreteScheduler.from_pretrained(folder / "scheduler").config


def test_a_scheduler_that_lacks_its_package_is_one_line(base_dir, copy):
    folder = copy(base_dir)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DPMSolverSDEScheduler"}))  # without torchsde
    with pytest.raises(CheckpointError, match="cannot be loaded as DPMSolverSDEScheduler: ImportError"):
        FrozenBase.load(str(folder))


@pytest.mark.parametrize("name", ["CLIPTextModel", "UNet2DConditionModel", None])
def test_a_scheduler_that_is_none_is_refused(base_dir, copy, name):
    folder = copy(base_dir)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name}))
    with pytest.raises(CheckpointError, match=f"names no scheduler of diffusers: {name!r}"):
        FrozenBase.load(str(folder))


def test_latents_are_encoded_and_decoded_as_diffusers_does(base, base_dir):
    pipeline = StableDiffusionPipeline.from_pretrained(base_dir)
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        decoded = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
    latents = base.encode_latents(pixels)
    assert latents.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(base.decode_latents(latents), decoded)


def test_empty_prompt_embeds_are_those_of_diffusers(base, base_dir):
    pipeline = StableDiffusionPipeline.from_pretrained(base_dir)
    expected, _ = pipeline.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(base.empty_prompt_embeds(), expected[0])


def test_weight_sums_change_with_a_weight_not_with_use(base):
    before = base.weight_checksums()
    states = base.empty_prompt_embeds()[None]
    base.unet(torch.randn(1, 4, 8, 8), 10, states)
    base.decode_latents(torch.randn(1, 4, 8, 8))
    assert base.weight_checksums() == before
    base.unet.conv_in.weight[0, 0, 0, 0] += 1
    changed = base.weight_checksums()
    assert {name for name in before if changed[name] != before[name]} == {"unet"}


def test_a_folder_without_unet_is_refused_for_the_teacher_too(base_dir, copy):
    folder = copy(base_dir)
    (folder / "unet").rename(folder / "transformer")
    with pytest.raises(
        CheckpointError, match=r"not a base: it has no unet/ \(found: scheduler, text_encoder"
    ):
        FrozenBase.load(str(folder), components=("tokenizer", "text_encoder"))


def test_another_cross_attention_width_is_refused_by_config(base_dir, copy):
    folder = copy(base_dir)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 32}))
    with pytest.raises(
        CheckpointError, match=r"text encoder is 24 wide, its U-Net's cross_attention_dim is 32"
    ):
        FrozenBase.load(str(folder), components=("tokenizer", "text_encoder"))


def test_a_unet_folder_without_config_is_refused(base_dir, copy):
    folder = copy(base_dir)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"unet is not a component of a base: it has no config\.json"):
        FrozenBase.load(str(folder), components=("tokenizer", "text_encoder"))


def test_missing_weights_of_a_component_are_named(base_dir, copy):
    folder = copy(base_dir)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["quant_conv.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias"):
        FrozenBase.load(str(folder))


def test_a_base_in_pickles_is_refused(base_dir, copy):
    folder = copy(base_dir)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "model.bin")
    with pytest.raises(CheckpointError, match=r"unet holds pickled weights alone \(model\.bin\)"):
        FrozenBase.load(str(folder))


def test_a_path_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere; give a folder"):
        FrozenBase.load(str(tmp_path / "nowhere"))


def test_a_single_file_gives_the_folders_weights(single_file, base):
    loaded = FrozenBase.load(str(single_file), tokenizer=build_tokenizer())
    assert loaded.weight_checksums() == base.weight_checksums()
    assert loaded.scheduler.config.beta_end == base.scheduler.config.beta_end
    torch.testing.assert_close(loaded.empty_prompt_embeds(), base.empty_prompt_embeds())


def test_a_single_file_without_a_tokenizer_given_is_refused(single_file):
    with pytest.raises(CheckpointError, match="is a single file and has no tokenizer; give that of the CLIP"):
        FrozenBase.load(str(single_file))


def test_a_single_file_for_inpainting_gives_the_folders_weights(tmp_path, monkeypatch):
    folder = tiny.write_inpainting_base(tmp_path / "base")
    for name, constant in (("unet", "UNET_CONFIG"), ("vae", "VAE_CONFIG"), ("text_encoder", "TEXT_CONFIG")):
        config = json.loads((folder / name / "config.json").read_text())
        config.pop("in_channels" if name == "unet" else "", None)
        monkeypatch.setattr(sd15, constant, config)
    path = write_single_file(folder, tmp_path / "base.safetensors")
    loaded = FrozenBase.load(str(path), tokenizer=build_tokenizer())
    assert loaded.weight_checksums() == FrozenBase.load(str(folder)).weight_checksums()
    assert loaded.in_channels == FrozenBase.load(str(path), components=["scheduler"]).in_channels == 9


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_a_single_file_that_lacks_a_component_is_refused(single_file, prefix):
    weights = {key: weight for key, weight in load_file(single_file).items() if not key.startswith(prefix)}
    save_file(weights, single_file)
    with pytest.raises(CheckpointError, match=rf"not a whole Stable Diffusion v1 .* it has no {prefix}"):
        FrozenBase.load(str(single_file), tokenizer=build_tokenizer())


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("model.diffusion_model.out.2.weight", r"conv_out\.weight"),
        ("first_stage_model.decoder.conv_in.bias", r"decoder\.conv_in\.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", r"final_layer_norm\.bias"),
    ],
)
def test_a_single_file_that_lacks_a_weight_is_refused(single_file, lost, named):
    weights = load_file(single_file)
    del weights[lost]
    save_file(weights, single_file)
    with pytest.raises(CheckpointError, match=named):
        FrozenBase.load(str(single_file), tokenizer=build_tokenizer())


def test_a_single_file_of_another_width_is_refused(single_file, monkeypatch):
    monkeypatch.setattr(sd15, "UNET_CONFIG", sd15.UNET_CONFIG | {"cross_attention_dim": 32})
    with pytest.raises(CheckpointError, match=r"attn2\.to_k\.weight has shape \(8, 24\), not \(8, 32\)"):
        FrozenBase.load(str(single_file), tokenizer=build_tokenizer())


def test_a_cut_off_single_file_is_refused(single_file):
    single_file.write_bytes(single_file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"damaged or no safetensors file"):
        FrozenBase.load(str(single_file), tokenizer=build_tokenizer())


def test_a_single_file_in_pickle_is_refused(tmp_path):
    (tmp_path / "v1-5.ckpt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"v1-5\.ckpt is not .*; pickles .* weights_only=True and write"
    ):
        FrozenBase.load(str(tmp_path / "v1-5.ckpt"))


def test_clip_of_one_vocabulary_fits(clip, base):
    assert check_fit(clip.model.text_model, clip.tokenizer, base) is None


def test_a_vision_tower_as_wide_as_the_teacher_does_not_fit(clip, base):
    assert clip.model.config.vision_config.hidden_size == base.text_encoder.config.hidden_size
    with pytest.raises(CheckpointError, match=r"only CLIP's text tower .* got CLIPVisionModel"):
        check_fit(clip.model.vision_model, clip.tokenizer, base)


def test_a_single_file_refuses_a_clip_that_pads_otherwise(single_file):
    """Its tokenizer stands in for the base's, so that a comparison of both says nothing."""
    tokenizer = build_tokenizer()
    tokenizer.pad_token = "a"
    base = FrozenBase.load(str(single_file), tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"pad_token_id is \d+ in CLIP's tokenizer; only one that pads"):
        check_vocabularies(tokenizer, base)


def test_a_clip_of_another_vocabulary_fits_no_single_file(single_file):
    vocabulary = build_tokenizer().get_vocab()
    larger = CLIPTokenizer(vocab=vocabulary | {"more": len(vocabulary)}, merges=[], model_max_length=77)
    with pytest.raises(CheckpointError, match=r"knows \d+ tokens, .* take both from one model's folder"):
        FrozenBase.load(str(single_file), tokenizer=larger)


@pytest.mark.parametrize("token", ["bos_token", "eos_token", "pad_token"])
def test_other_special_tokens_do_not_fit(clip, base, token):
    setattr(clip.tokenizer, token, "a")
    with pytest.raises(
        CheckpointError, match=rf"{token}_id differs: CLIP's tokenizer has \d+, the base's \d+"
    ):
        check_fit(clip.model.text_model, clip.tokenizer, base)


def test_another_vocabulary_does_not_fit(clip, base):
    swapped = clip.tokenizer.get_vocab()
    swapped["a</w>"], swapped["b</w>"] = swapped["b</w>"], swapped["a</w>"]
    other = CLIPTokenizer(vocab=swapped, merges=[], model_max_length=77)
    with pytest.raises(CheckpointError, match=r"is not the base's .* their positions hold different words"):
        check_fit(clip.model.text_model, other, base)


def test_another_number_of_positions_does_not_fit(base):
    clip = build_clip()
    config = text_config(clip.tokenizer, 16)
    config.max_position_embeddings = 32
    with pytest.raises(CheckpointError, match=r"CLIP reads 32 positions, the base's text encoder 77"):
        check_fit(CLIPTextModel(config), clip.tokenizer, base)
