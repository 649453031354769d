import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel

from clipgraft.errors import CheckpointError
from clipgraft.models.clip import (
    check_vocabulary,
    empty_prompt_ids,
    encode_images,
    encode_text,
    load_clip,
    save_clip,
    text_hidden_states,
)
from clipgraft.models.tokenizer import train_tokenizer
from tiny import TEXT_WIDTH, build_clip, build_tokenizer

CAPTIONS = ["A dog runs on the beach .", "a kite"]


def padded_ids(tokenizer, length=77):
    return tokenizer(CAPTIONS, padding="max_length", max_length=length, return_tensors="pt").input_ids


def test_embeds_are_those_of_the_library(clip):
    torch.manual_seed(0)
    pixels, ids = torch.randn(2, 3, 32, 32), padded_ids(clip.tokenizer)
    expected = clip.model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(encode_images(clip.model, pixels), expected.image_embeds)
    torch.testing.assert_close(encode_text(clip.model, ids), expected.text_embeds)


def test_embeds_of_a_bfloat16_model_have_unit_norm_in_float32(clip):
    embeds = encode_text(clip.model.bfloat16(), padded_ids(clip.tokenizer))
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))


def test_text_embeds_do_not_depend_on_padding(clip):
    short = clip.tokenizer(CAPTIONS, padding="longest", return_tensors="pt").input_ids
    assert short.shape[1] < 77
    long = encode_text(clip.model, padded_ids(clip.tokenizer))
    torch.testing.assert_close(encode_text(clip.model, short), long)


def test_hidden_states_are_normed_and_of_all_positions(clip):
    ids = padded_ids(clip.tokenizer)
    before_norm = clip.model.text_model(ids, output_hidden_states=True).hidden_states[-1]
    expected = clip.model.text_model.final_layer_norm(before_norm)
    torch.testing.assert_close(text_hidden_states(clip.model.text_model, ids), expected)


def test_empty_prompt_is_bos_and_eos_to_the_end():
    tokenizer = build_tokenizer()
    expected = [[tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 76]
    assert empty_prompt_ids(tokenizer).tolist() == expected


def test_wrong_token_ids_of_configs_are_the_tokenizers(clip, clip_dir, copy):
    folder = copy(clip_dir)
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    legacy = load_clip(folder)
    ids = legacy.model.config.text_config
    tokenizer = legacy.tokenizer
    assert (ids.bos_token_id, ids.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids.pad_token_id == tokenizer.eos_token_id
    expected = encode_text(clip.model, padded_ids(tokenizer))
    torch.testing.assert_close(encode_text(legacy.model, padded_ids(tokenizer)), expected)


def test_eos_is_pooled_where_the_vocabulary_grew_past_it(clip):
    """The legacy guess, the highest id, would take the added token's state."""
    clip.tokenizer.add_tokens(["flatland"])
    clip.model.text_model.embeddings.token_embedding = torch.nn.Embedding(len(clip.tokenizer), TEXT_WIDTH)
    ids = clip.tokenizer("flatland dog", padding="max_length", return_tensors="pt").input_ids
    assert ids.max() > clip.tokenizer.eos_token_id
    eos = ids[0].tolist().index(clip.tokenizer.eos_token_id)
    state = text_hidden_states(clip.model.text_model, ids)[:, eos]
    expected = torch.nn.functional.normalize(clip.model.text_projection(state), dim=-1)
    torch.testing.assert_close(encode_text(clip.model, ids), expected)


def test_saved_clip_loads_equal_here_and_in_transformers(clip, tmp_path):
    save_clip(clip, tmp_path / "clip")
    again = load_clip(tmp_path / "clip")
    plain = CLIPModel.from_pretrained(tmp_path / "clip")
    for name, weight in clip.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)
        assert torch.equal(plain.state_dict()[name], weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "clip")
    assert tokenizer(CAPTIONS).input_ids == clip.tokenizer(CAPTIONS).input_ids
    assert AutoImageProcessor.from_pretrained(tmp_path / "clip").crop_size["height"] == 32


def test_hidden_activation_survives_saving(tmp_path):
    clip = build_clip()
    assert clip.model.config.text_config.hidden_act == "quick_gelu"
    save_clip(clip, tmp_path / "clip")
    assert load_clip(tmp_path / "clip").model.config.text_config.hidden_act == "quick_gelu"


def test_half_precision_weights_are_loaded_as_float32(clip, tmp_path):
    save_clip(clip._replace(model=clip.model.half()), tmp_path / "clip")
    assert load_clip(tmp_path / "clip").model.dtype == torch.float32


def test_a_vision_tower_alone_is_refused(clip, tmp_path):
    CLIPVisionModel(clip.model.config.vision_config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="type 'clip_vision_model'; a 'clip' with both towers"):
        load_clip(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is an empty folder, not a CLIP; name a folder with its"):
        load_clip(tmp_path)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "clip.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a .safetensors file, not a CLIP; name a folder"):
        load_clip(tmp_path / "clip.safetensors")


def test_pickled_weights_are_refused_with_the_way_out(clip_dir, copy):
    folder = copy(clip_dir)
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pickled weights alone \(pytorch_model.bin\).*save_pretrained"
    ):
        load_clip(folder)


def test_missing_weights_are_named(clip_dir, copy):
    folder = copy(clip_dir)
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights: visual_projection\.weight"):
        load_clip(folder)


def test_a_cut_off_weights_file_is_named(clip_dir, copy):
    folder = copy(clip_dir)
    path: Path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged: \d+ bytes; \d+ bytes with sha256"
    ):
        load_clip(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_clip(folder)


def test_a_runs_folder_names_the_clip_in_it(clip_dir, tmp_path):
    shutil.copytree(clip_dir, tmp_path / "clip")
    with pytest.raises(CheckpointError, match=f"not a CLIP; name {tmp_path}/clip"):
        load_clip(tmp_path)


def test_a_folder_without_tokenizer_is_refused(clip_dir, copy):
    folder = copy(clip_dir)
    (folder / "manifest.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_clip(folder)


def test_a_tokenizer_of_another_size_is_refused(clip):
    other = train_tokenizer(["a dog"] * 2, vocab_size=600)
    with pytest.raises(CheckpointError, match=r"clip: the tokenizer knows \d+ tokens, the text tower \d+"):
        check_vocabulary(clip.model.text_model, other, Path("clip"))


def test_a_tokenizer_with_another_eos_is_refused(clip):
    clip.model.text_model.config.eos_token_id = 7
    with pytest.raises(
        CheckpointError, match=r"eos_token_id is \d+ in the tokenizer and 7 in the text tower"
    ):
        check_vocabulary(clip.model.text_model, clip.tokenizer, Path("clip"))


def test_a_tokenizer_of_another_length_is_refused(clip):
    clip.tokenizer.model_max_length = 64
    with pytest.raises(CheckpointError, match="cuts at 64 tokens, the text tower has 77 positions"):
        check_vocabulary(clip.model.text_model, clip.tokenizer, Path("clip"))
