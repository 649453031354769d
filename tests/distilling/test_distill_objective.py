"""The loss of distilling, against one written out by hand."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

import tiny
from clipgraft.distilling.distill import choose_trained
from clipgraft.distilling.distill_objective import DistillObjective
from clipgraft.distilling.null_space import NullSpace
from clipgraft.models.clip import empty_prompt_ids
from clipgraft.settings import DistillSettings

CAPTIONS = ["A dog runs .", "A kite in the park", "Two children play with a kite at sunset ."]


@pytest.fixture(scope="module")
def models():
    tokenizer = tiny.build_tokenizer()
    own, graft = (tiny.build_pipeline(seed, width=96).text_encoder.eval() for seed in (1, 2))
    encoder = tiny.build_pipeline(3, width=96).text_encoder
    null_space = NullSpace(encoder, own, empty_prompt_ids(tokenizer))
    objective = DistillObjective(encoder, graft, own, null_space, eos_token_id=tokenizer.eos_token_id)
    ids = tokenizer(CAPTIONS, padding="max_length", return_tensors="pt").input_ids
    has_new_word = torch.tensor([False, True, True])
    return SimpleNamespace(
        own=own, graft=graft, encoder=encoder, objective=objective, ids=ids, new=has_new_word
    )


@torch.no_grad()
def states(model, ids):
    return deepcopy(model).double()(ids).last_hidden_state


def test_targets_are_the_grafts_for_new_words_only(models):
    target = models.objective.target(models.ids, models.new)
    torch.testing.assert_close(target[1:], models.graft(models.ids[1:]).last_hidden_state)
    torch.testing.assert_close(target[:1], models.own(models.ids[:1]).last_hidden_state)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_positions_weigh_by_their_kind(models, scale):
    batch = {"input_ids": models.ids, "has_new_word": models.new, "padding_scale": torch.tensor([scale])}
    loss, _ = models.objective(batch)
    target = torch.cat([states(models.own, models.ids[:1]), states(models.graft, models.ids[1:])])
    ours = states(models.encoder, models.ids)
    squared = power = distance = total = 0.0
    for row in range(3):
        first_eos = models.ids[row].tolist().index(models.ids[0, -1])
        for position in range(1, 77):
            weight = 1.0 if position <= first_eos else scale * 8 / (76 - first_eos)
            one, other = ours[row, position], target[row, position]
            squared += weight * (one - other).square().mean()
            power += weight * other.square().mean()
            distance += weight * (1 - torch.cosine_similarity(one, other, dim=0))
            total += weight
    torch.testing.assert_close(loss.double(), squared / power + distance / total, rtol=1e-4, atol=1e-5)


def test_only_the_copy_has_gradients(models):
    batch = {"input_ids": models.ids, "has_new_word": models.new, "padding_scale": torch.tensor([1.0])}
    loss, _ = models.objective(batch)
    loss.backward()
    assert any(parameter.grad is not None for parameter in models.encoder.parameters())
    frozen = [*models.graft.parameters(), *models.own.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def test_gradient_checkpointing_gives_the_same_gradients(models):
    batch = {"input_ids": models.ids, "has_new_word": models.new, "padding_scale": torch.tensor([1.0])}
    found = []
    for settings in (DistillSettings(), DistillSettings(gradient_checkpointing=True)):
        encoder = deepcopy(models.encoder).train()
        choose_trained(encoder, settings)
        objective = deepcopy(models.objective)
        objective.encoder = encoder
        loss, _ = objective(batch)
        loss.backward()
        found.append([parameter.grad for parameter in encoder.parameters() if parameter.grad is not None])
        assert encoder.is_activation_checkpointing == settings.gradient_checkpointing
    assert len(found[0]) > 10
    torch.testing.assert_close(found[1], found[0])
