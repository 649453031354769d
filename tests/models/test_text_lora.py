"""A LoRA of two text encoders' difference, against peft and a naive sum."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPTextModel

from clipgraft.models.text_lora import LinearDifference, changed_outside, linear_layers
from tiny import TEACHER_WIDTH, build_tokenizer, text_config

IDS = torch.arange(77)[None] % 500


def states(encoder):
    with torch.no_grad():
        return encoder(IDS).last_hidden_state


@pytest.fixture
def before():
    torch.manual_seed(0)
    return CLIPTextModel(text_config(build_tokenizer(), TEACHER_WIDTH)).eval()


@pytest.fixture
def after(before):
    """Differs by matrices of rank 3 in all linear layers."""
    changed = copy.deepcopy(before)
    torch.manual_seed(1)
    with torch.no_grad():
        for module in changed.modules():
            if isinstance(module, nn.Linear):
                module.weight += (
                    torch.randn(len(module.weight), 3) @ torch.randn(3, module.weight.shape[1]) / 20
                )
    return changed


def test_a_lora_of_the_differences_rank_is_exact(before, after):
    difference = LinearDifference(before, after)
    torch.testing.assert_close(
        states(difference.applied(difference.lora(3))), states(after), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(states(before), states(after), atol=1e-2)


def test_a_lower_rank_is_the_best_of_its_rank(before, after):
    """By Eckart and Young, its squared error is the sum of the squared singular values left out."""
    lora = LinearDifference(before, after).lora(2)
    for name, layer in linear_layers(before).items():
        change = linear_layers(after)[name].weight - layer.weight
        left_out = torch.linalg.svdvals(change)[2:].square().sum()
        product = lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"]
        torch.testing.assert_close((change - product).square().sum(), left_out, rtol=1e-3, atol=1e-6)


def test_names_and_shapes_are_kohyas(before, after):
    lora = LinearDifference(before, after).lora(2)
    assert len(lora) == 3 * 6 * before.config.num_hidden_layers
    prefix = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    assert lora[f"{prefix}.lora_down.weight"].shape == (2, TEACHER_WIDTH)
    assert lora[f"{prefix}.lora_up.weight"].shape == (2 * TEACHER_WIDTH, 2)
    assert float(lora[f"{prefix}.alpha"]) == 2
    assert "lora_te_text_model_encoder_layers_0_self_attn_out_proj.lora_up.weight" in lora


def test_peft_gives_the_states_predicted(before, after):
    lora = LinearDifference(before, after).lora(2)
    difference = LinearDifference(before, after)
    targets = [name for name, module in before.named_modules() if isinstance(module, nn.Linear)]
    adapted = get_peft_model(copy.deepcopy(before), LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    with torch.no_grad():
        for name in targets:
            layer = adapted.base_model.model.get_submodule(name)
            kohya = "lora_te_text_model_" + name.replace(".", "_")
            layer.lora_A["default"].weight.copy_(lora[f"{kohya}.lora_down.weight"])
            layer.lora_B["default"].weight.copy_(lora[f"{kohya}.lora_up.weight"])
    torch.testing.assert_close(states(adapted), states(difference.applied(lora)), rtol=1e-4, atol=1e-5)


def test_the_original_is_not_changed(before, after):
    kept = copy.deepcopy(before.state_dict())
    difference = LinearDifference(before, after)
    difference.applied(difference.lora(2))
    assert all(torch.equal(kept[name], weight) for name, weight in before.state_dict().items())


def test_what_a_lora_cannot_hold_is_measured_by_kind(before, after):
    assert set(changed_outside(before, after).values()) == {0.0}
    with torch.no_grad():
        after.embeddings.token_embedding.weight.copy_(before.embeddings.token_embedding.weight * 1.5)
        after.final_layer_norm.weight += 0.1
    changes = changed_outside(before, after)
    assert changes.keys() == {"embeddings", "layer norms", "biases"}
    assert 0 < changes["embeddings"] <= 0.5
    assert changes["layer norms"] > 0
    assert changes["biases"] == 0.0


def test_a_rank_above_the_layers_gives_the_whole_difference(before, after):
    difference = LinearDifference(before, after)
    assert difference.full_rank == TEACHER_WIDTH
    lora = difference.lora(1000)
    assert lora["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"].shape[0] == TEACHER_WIDTH
