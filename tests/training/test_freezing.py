"""What of CLIP is trained."""

import builtins

import pytest
import torch

import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.models.clip import encode_text
from clipgraft.training.freezing import add_lora, freeze_layers, merge_lora
from clipgraft.training.optim import layer_scales


@pytest.fixture
def clip():
    return tiny.build_clip()


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_frozen_tower_has_nothing_to_train_and_the_other_has_everything(clip):
    everything = trainable(clip.model)
    freeze_layers(clip.model, vision=-1)
    left = trainable(clip.model)
    assert not any(name.startswith(("vision_model", "visual_projection")) for name in left)
    assert left == {n for n in everything if not n.startswith(("vision_model", "visual_projection"))}


def test_layers_are_frozen_from_below(clip):
    freeze_layers(clip.model, text=1)
    left = trainable(clip.model)
    assert not any(name.startswith("text_model.embeddings") for name in left)
    assert not any(name.startswith("text_model.encoder.layers.0.") for name in left)
    assert any(name.startswith("text_model.encoder.layers.1.") for name in left)
    assert "text_model.final_layer_norm.weight" in left


def test_more_layers_than_a_tower_has_are_refused(clip):
    message = "frozen_text_layers must be between -1 and the tower's 2 layers; got 3"
    with pytest.raises(ValueError, match=message):
        freeze_layers(clip.model, text=3)


@pytest.mark.parametrize(("rank", "vision", "text"), [(0, -1, -1), (2, -1, -1), (2, 2, 2), (2, -1, 2)])
def test_layers_that_leave_nothing_to_train_are_refused(clip, rank, vision, text):
    if rank:
        add_lora(clip.model, rank)
    message = (
        f"frozen_vision_layers={vision} and frozen_text_layers={text} leave nothing to train but the logit"
    )
    with pytest.raises(ValueError, match=message):
        freeze_layers(clip.model, vision=vision, text=text)


def test_low_rank_updates_begin_as_nothing_and_merge_into_plain_weights(clip):
    ids = tokenize(tiny.CAPTIONS, clip.tokenizer).input_ids
    names = set(clip.model.state_dict())
    before = encode_text(clip.model.eval(), ids)
    add_lora(clip.model, rank=2)
    assert trainable(clip.model) == {n for n in trainable(clip.model) if "lora_" in n or n == "logit_scale"}
    torch.testing.assert_close(encode_text(clip.model, ids), before)
    with torch.no_grad():
        for name, parameter in clip.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    updated = encode_text(clip.model, ids)
    assert not torch.allclose(updated, before)
    merge_lora(clip.model)
    assert set(clip.model.state_dict()) == names
    torch.testing.assert_close(encode_text(clip.model, ids), updated)


def test_missing_peft_is_named_with_what_to_install(clip, monkeypatch):
    load = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ValueError, match=r"lora_rank needs peft; install clipgraft\[lora\]"):
        add_lora(clip.model, rank=2)


def test_learning_rate_falls_by_the_same_factor_from_layer_to_layer(clip):
    scales = layer_scales([name for name, _ in clip.model.named_parameters()], 0.5)
    assert scales["logit_scale"] == scales["text_projection.weight"] == 1.0
    assert scales["text_model.final_layer_norm.weight"] == 1.0
    assert scales["text_model.encoder.layers.1.mlp.fc1.weight"] == 0.5
    assert scales["vision_model.encoder.layers.0.mlp.fc1.weight"] == 0.25
    assert scales["text_model.embeddings.token_embedding.weight"] == 0.125
    assert scales["vision_model.pre_layrnorm.weight"] == 0.125
