"""Drift of token states by token class."""

from copy import deepcopy

import pytest
import torch

import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.evaluation.metrics.token_drift import token_drift


@pytest.fixture
def tower():
    clip = tiny.build_clip()
    ids = tokenize(tiny.CAPTIONS, clip.tokenizer, pad_to_context_length=True)
    return clip.model.text_model.eval(), ids, clip.tokenizer.eos_token_id


def test_tower_that_has_not_moved_has_no_drift(tower):
    model, ids, eos = tower
    drift = token_drift(model, deepcopy(model), ids, eos)
    assert drift == {f"drift_{name}": 0.0 for name in ("bos", "words", "eos", "padding")}


def test_states_of_twice_the_size_have_drifted_by_one(tower):
    model, ids, eos = tower
    doubled = deepcopy(model)
    with torch.no_grad():
        doubled.final_layer_norm.weight.mul_(2)
        doubled.final_layer_norm.bias.mul_(2)
    assert all(value == pytest.approx(1.0) for value in token_drift(model, doubled, ids, eos).values())


def test_change_of_the_last_position_alone_moves_padding_alone(tower):
    model, ids, eos = tower
    changed = deepcopy(model)
    with torch.no_grad():
        changed.embeddings.position_embedding.weight[76] += 1.0
    drift = token_drift(model, changed, ids, eos)
    assert drift["drift_padding"] > 0
    assert drift["drift_words"] == drift["drift_eos"] == drift["drift_bos"] == 0
