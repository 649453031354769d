"""Updates that leave one prompt's states as they are, against NumPy and in double precision."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import tiny
from clipgraft.distilling.null_space import NullSpace, linear_inputs, row_basis
from clipgraft.models.clip import empty_prompt_ids, text_hidden_states

WIDTH = 128


@pytest.fixture(scope="module")
def teacher():
    return tiny.build_pipeline(width=WIDTH).text_encoder.eval()


@pytest.fixture(scope="module")
def empty():
    return empty_prompt_ids(tiny.build_tokenizer())


@pytest.fixture
def encoder(teacher):
    return deepcopy(teacher).requires_grad_(True)


def shake(encoder):
    """Change all trained weights at random, as an optimizer step might."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


def test_a_basis_spans_its_rows_and_no_more():
    rows = torch.tensor([[1.0, 0, 0, 1], [0, 2, 0, 0], [1, 2, 0, 1]])
    basis = row_basis(rows).numpy()
    assert basis.shape == (4, 2)
    np.testing.assert_allclose(basis @ basis.T, np.linalg.pinv(rows.numpy()) @ rows.numpy(), atol=1e-6)


def test_a_projection_is_the_nearest_that_keeps_products(teacher, encoder, empty):
    null_space = NullSpace(encoder, teacher, empty)
    shake(encoder)
    name = "encoder.layers.0.mlp.fc1"
    weight, start = (model.get_submodule(name).weight.detach().clone() for model in (encoder, teacher))
    rows = linear_inputs(teacher, empty)[name].numpy()
    kept = np.eye(WIDTH) - np.linalg.pinv(rows.astype(float)) @ rows
    null_space.project()
    expected = start.numpy() + (weight - start).numpy() @ kept
    np.testing.assert_allclose(encoder.get_submodule(name).weight.detach().numpy(), expected, atol=1e-5)


def test_states_of_the_prompt_stay_and_others_change(teacher, encoder, empty):
    null_space = NullSpace(encoder, teacher, empty)
    shake(encoder)
    other = empty.clone()
    other[0, 1] = 5
    before, after = (model.double() for model in (deepcopy(teacher), deepcopy(encoder)))
    with torch.no_grad():
        moved = (text_hidden_states(after, empty) - text_hidden_states(before, empty)).abs().max()
        null_space.project()
        kept = encoder.double()
        torch.testing.assert_close(
            text_hidden_states(kept, empty), text_hidden_states(before, empty), rtol=0, atol=1e-4
        )
        change = (text_hidden_states(kept, other) - text_hidden_states(before, other))[0, 1:].abs().max()
    assert moved > 0.1
    assert change > 0.1


def test_layers_without_a_free_direction_are_frozen(empty):
    narrow = tiny.build_pipeline().text_encoder
    encoder = deepcopy(narrow).requires_grad_(True)
    NullSpace(encoder, narrow, empty)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert "embeddings.token_embedding.weight" in trained
    assert not [name for name in trained if "out_proj" in name or "fc2" in name]
