"""What is trained and how fast: freezing, LoRA, parameter groups, learning rate."""

import builtins

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import encode_text
from clipgraft.training.optim import (
    add_lora,
    freeze_layers,
    layer_scales,
    learning_rate_factor,
    merge_lora,
    parameter_groups,
)


def test_only_matrices_are_decayed():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.6592)))
    decayed, spared = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [parameter.ndim for parameter in decayed["params"]] == [2]
    assert spared["weight_decay"] == 0.0
    assert module.logit_scale in set(spared["params"])


ATTENTION = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
LAYERS = [f"{tower}_model.encoder.layers.{layer}" for tower in ("text", "vision") for layer in (0, 1)]
CLIP_DECAYED = {
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "text_projection.weight",
    "visual_projection.weight",
    *(f"{layer}.{name}.weight" for layer in LAYERS for name in (*ATTENTION, "mlp.fc1", "mlp.fc2")),
}
LORA_DECAYED = {
    f"{layer}.{name}.lora_{side}.default.weight" for layer in LAYERS for name in ATTENTION for side in "AB"
}
BRIDGE_DECAYED = {
    "linear.weight",
    *(f"attention.{block}.{name}.weight" for block in (0, 1) for name in ("query_key_value", "output")),
    *(f"attention.{block}.mlp.{place}.weight" for block in (0, 1) for place in (0, 2)),
    "residual.1.weight",
    "residual.3.weight",
}


def clip_with_low_rank_updates():
    clip = tiny.build_clip().model
    add_lora(clip, rank=2)
    return clip


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: tiny.build_clip().model, CLIP_DECAYED),
        (clip_with_low_rank_updates, LORA_DECAYED),
        (lambda: Bridge(6, 5, 4, num_maps=3, num_positions=77, num_attention_blocks=2), BRIDGE_DECAYED),
    ],
    ids=["clip", "lora", "bridge"],
)
def test_what_is_decayed_is_what_a_list_by_hand_says(build, expected):
    module = build()
    decayed, spared = parameter_groups(module, 0.1)
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert {names[parameter] for parameter in decayed["params"]} == expected
    assert len(decayed["params"] + spared["params"]) == sum(p.requires_grad for p in module.parameters())


def test_warm_up_takes_half_of_a_short_run_at_most():
    cosine = [learning_rate_factor(step, "cosine", 50, 8) for step in range(9)]
    expected = [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447, 0]
    assert cosine == pytest.approx(expected, abs=1e-6)
    assert learning_rate_factor(0, "linear", 50, 1) == 1
    assert learning_rate_factor(36, "linear", 50, 36) == 0


def test_frozen_parameters_never_reach_the_optimizer():
    module = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2))
    assert sum(len(group["params"]) for group in parameter_groups(module, 0.1)) == 2


def test_module_without_a_trainable_parameter_is_refused():
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_falls_as_the_librarys_after_warm_up(schedule):
    build = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[schedule]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    library = build(optimizer, num_warmup_steps=5, num_training_steps=20)
    for step in range(20):
        if step >= 5:
            factor = learning_rate_factor(step, schedule, 5, 20)
            assert factor == pytest.approx(library.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        library.step()


def test_warm_up_rises_in_equal_steps_to_the_peak():
    factors = [learning_rate_factor(step, "constant", 4, 100) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.fixture
def clip():
    return tiny.build_clip()


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_frozen_tower_has_nothing_to_train(clip):
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


def test_lora_starts_at_zero_and_merges_into_plain_weights(clip):
    ids = tokenize(tiny.CAPTIONS, clip.tokenizer)
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
    with pytest.raises(
        ValueError, match=r"peft .for low-rank updates. is not installed; pip install 'clipgraft\[lora\]'"
    ):
        add_lora(clip.model, rank=2)


def test_learning_rate_falls_by_one_factor_per_layer(clip):
    scales = layer_scales([name for name, _ in clip.model.named_parameters()], 0.5)
    assert scales["logit_scale"] == scales["text_projection.weight"] == 1.0
    assert scales["text_model.final_layer_norm.weight"] == 1.0
    assert scales["text_model.encoder.layers.1.mlp.fc1.weight"] == 0.5
    assert scales["vision_model.encoder.layers.0.mlp.fc1.weight"] == 0.25
    assert scales["text_model.embeddings.token_embedding.weight"] == 0.125
    assert scales["vision_model.pre_layrnorm.weight"] == 0.125
