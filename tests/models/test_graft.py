import subprocess
import sys

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

import clipgraft
from clipgraft.errors import CheckpointError
from clipgraft.models.bridge import Bridge, token_classes
from clipgraft.models.clip import empty_prompt_ids, text_hidden_states
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from tiny import TEACHER_WIDTH, TEXT_WIDTH

PROMPT = "A dog runs on the beach ."
BASE_RECORD = BaseRecord(name="flatland", revision="", sums={})


@pytest.fixture
def graft_dir(encoder, clip, tmp_path):
    Graft(encoder, clip.tokenizer, BASE_RECORD).save_pretrained(tmp_path / "graft")
    return tmp_path / "graft"


def test_graft_is_written_to_and_read_from_the_home_folder(encoder, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Graft(encoder, clip.tokenizer, BASE_RECORD).save_pretrained("~/graft")
    assert [path.name for path in tmp_path.iterdir()] == ["graft"]
    Graft.from_pretrained("~/graft")


@pytest.fixture
def input_ids(clip):
    """A caption, the empty prompt, and a caption of 77 tokens and more."""
    prompts = [PROMPT, "", "dog " * 100]
    return clip.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def put_in(base_dir, encoder, pipeline_class=StableDiffusionPipeline):
    pipeline = pipeline_class.from_pretrained(base_dir, text_encoder=encoder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_latents(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline(PROMPT, generator=generator, num_inference_steps=3, output_type="latent").images


@torch.no_grad()
def test_words_are_the_bridged_states_of_the_text_tower(encoder, clip, input_ids):
    states = encoder(input_ids).last_hidden_state
    classes = token_classes(input_ids, clip.tokenizer.eos_token_id)
    expected = encoder.bridge(text_hidden_states(clip.model.text_model, input_ids), classes)
    assert states.shape == (3, 77, TEACHER_WIDTH)
    torch.testing.assert_close(states[[0, 2], 1:], expected[[0, 2], 1:])


@torch.no_grad()
def test_bos_is_the_teachers_for_every_prompt(encoder, base, input_ids):
    teacher = text_hidden_states(base.text_encoder, input_ids)
    torch.testing.assert_close(encoder(input_ids).last_hidden_state[:, 0], teacher[:, 0])


@torch.no_grad()
def test_the_empty_prompt_is_the_teachers_to_the_bit(encoder, base, input_ids):
    assert torch.equal(encoder(input_ids).last_hidden_state[1], base.empty_prompt_embeds())


@torch.no_grad()
def test_the_empty_prompt_is_the_teachers_at_any_padding(encoder, base, input_ids):
    assert torch.equal(encoder(input_ids[1:2, :9]).last_hidden_state[0], base.empty_prompt_embeds()[:9])


@torch.no_grad()
def test_pooled_state_is_that_of_the_first_eos(encoder, clip, input_ids):
    out = encoder(input_ids)
    eos = [row.index(clip.tokenizer.eos_token_id) for row in input_ids.tolist()]
    assert eos[1:] == [1, 76]
    assert torch.equal(out.pooler_output, out.last_hidden_state[range(3), eos])


@torch.no_grad()
def test_a_tuple_holds_the_same_states(encoder, input_ids):
    out, states = encoder(input_ids), encoder(input_ids, return_dict=False)
    assert torch.equal(states[0], out.last_hidden_state)
    assert torch.equal(states[1], out.pooler_output)


def test_clip_skip_is_refused(encoder, base_dir):
    with pytest.raises(ValueError, match="no hidden states of earlier layers; leave clip_skip out"):
        put_in(base_dir, encoder).encode_prompt(PROMPT, "cpu", 1, False, clip_skip=1)


def test_the_base_own_tower_generates_what_the_base_does(base, base_dir):
    bridge = Bridge(TEACHER_WIDTH, TEACHER_WIDTH)
    bridge.set_identity()
    encoder = GraftedTextEncoder.graft(
        base.text_encoder, bridge, base.empty_prompt_embeds(), base.tokenizer.eos_token_id
    )
    plain = StableDiffusionPipeline.from_pretrained(base_dir)
    torch.testing.assert_close(draw_latents(put_in(base_dir, encoder)), draw_latents(plain))


def test_guidance_uses_the_teachers_empty_prompt(encoder, base, base_dir):
    _, negative = put_in(base_dir, encoder).encode_prompt(PROMPT, "cpu", 1, True)
    assert torch.equal(negative[0], base.empty_prompt_embeds())


@pytest.mark.integration
def test_an_exported_pipeline_gives_the_same_latents_to_the_bit(encoder, base_dir, tmp_path):
    pipeline = put_in(base_dir, encoder)
    pipeline.save_pretrained(tmp_path / "pipeline")
    save_file({"latents": draw_latents(pipeline)}, tmp_path / "expected.safetensors")
    script = f"""
import clipgraft
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

pipeline = DiffusionPipeline.from_pretrained({str(tmp_path / "pipeline")!r})
generator = torch.Generator().manual_seed(0)
latents = pipeline({PROMPT!r}, generator=generator, num_inference_steps=3, output_type="latent").images
assert type(pipeline.text_encoder) is clipgraft.GraftedTextEncoder
assert torch.equal(latents, load_file({str(tmp_path / "expected.safetensors")!r})["latents"])
print("equal")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "equal", ended.stderr


def test_an_image_to_image_pipeline_takes_the_graft(encoder, base_dir):
    pipeline = put_in(base_dir, encoder, StableDiffusionImg2ImgPipeline)
    image = Image.new("RGB", (64, 64), "teal")
    out = pipeline(PROMPT, image=image, strength=0.5, num_inference_steps=4).images[0]
    assert out.size == (64, 64)


def test_an_exported_half_pipeline_holds_the_empty_prompt(encoder, base_dir, tmp_path):
    put_in(base_dir, encoder).save_pretrained(tmp_path / "pipeline")
    half = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", torch_dtype=torch.bfloat16)
    assert half.text_encoder.dtype == torch.bfloat16
    ids = empty_prompt_ids(half.tokenizer)
    expected = encoder.empty_states.bfloat16()
    assert torch.equal(half.text_encoder(ids).last_hidden_state[0], expected)


def test_a_saved_graft_comes_back_equal(encoder, clip, graft_dir, input_ids):
    graft = Graft.from_pretrained(graft_dir)
    assert graft.base == BASE_RECORD
    assert graft.tokenizer.get_vocab() == clip.tokenizer.get_vocab()
    assert not graft.text_encoder.training
    with torch.no_grad():
        states = graft.text_encoder(input_ids).last_hidden_state
        assert torch.equal(states, encoder(input_ids).last_hidden_state)


def test_a_graft_does_not_change_with_its_clip(encoder, clip):
    before = encoder.text_model.final_layer_norm.weight.clone()
    with torch.no_grad():
        clip.model.text_model.final_layer_norm.weight += 1
    assert torch.equal(encoder.text_model.final_layer_norm.weight, before)


@pytest.mark.parametrize("key", ["empty_states", "bridge.linear.weight", "bridge.residual.3.bias"])
def test_plain_from_pretrained_names_missing_weights(graft_dir, key):
    weights = load_file(graft_dir / "model.safetensors")
    del weights[key]
    save_file(weights, graft_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 weights: {key}"):
        clipgraft.GraftedTextEncoder.from_pretrained(graft_dir)


def test_foreign_weights_of_a_graft_are_named(graft_dir):
    weights = load_file(graft_dir / "model.safetensors") | {"lora.up": torch.zeros(2)}
    save_file(weights, graft_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has unknown 1 weights: lora\.up"):
        clipgraft.GraftedTextEncoder.from_pretrained(graft_dir)


def test_a_damaged_graft_is_named(graft_dir):
    path = graft_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        Graft.from_pretrained(graft_dir)


def test_a_missing_graft_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"graft folder not found: .*; `clipgraft bridge` writes one"):
        Graft.from_pretrained(tmp_path / "graft")


def test_a_folder_that_is_no_graft_is_said(clip_dir):
    with pytest.raises(CheckpointError, match=r"is a CLIP, not a graft; name the folder `graft`"):
        Graft.from_pretrained(clip_dir)


def test_the_graft_within_a_stages_folder_is_named(tmp_path):
    (tmp_path / "graft").mkdir()
    (tmp_path / "graft" / "base.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf", not a graft; name {tmp_path / 'graft'}$"):
        Graft.from_pretrained(tmp_path)


def test_the_bridge_of_a_new_encoder_starts_as_bridges_do(encoder):
    """transformers draws weights anew for what a config makes; the residual's zeros must survive that."""
    new = GraftedTextEncoder(encoder.config)
    assert new.bridge.linear.in_features == TEXT_WIDTH
    assert not new.bridge.residual[-1].weight.any()


def test_importing_the_package_imports_no_torch():
    script = "import sys, clipgraft; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="module 'clipgraft' has no attribute 'nothing'"):
        _ = clipgraft.nothing
