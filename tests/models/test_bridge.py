import pytest
import torch

from clipgraft.models.bridge import (
    BOS,
    EOS,
    PADDING,
    WORD,
    Bridge,
    RidgeRegression,
    StateError,
    position_weights,
    token_classes,
)
from tiny import TEACHER_WIDTH, TEXT_WIDTH, build_tokenizer


@pytest.fixture
def states():
    """Inputs (60, 5), targets (60, 3) and weights (60,) without a pattern."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(60, 5, generator=generator),
        torch.randn(60, 3, generator=generator),
        torch.rand(60, generator=generator),
    )


def solve(inputs, targets, weights, ridge, *, parts=1):
    regression = RidgeRegression(inputs.shape[1], targets.shape[1])
    for batch in zip(inputs.chunk(parts), targets.chunk(parts), weights.chunk(parts), strict=True):
        regression.add(*batch)
    return regression.solve(ridge)


def test_ridge_is_least_squares_of_rows_stacked_with_the_penalty(states):
    inputs, targets, weights = (tensor.double() for tensor in states)
    ridge = 0.1
    power = (weights[:, None] * inputs.square()).sum() / 5
    root = weights.sqrt()[:, None]
    rows = torch.cat([root * torch.cat([inputs, torch.ones(60, 1).double()], 1), torch.zeros(5, 6).double()])
    rows[60:, :5] = (ridge * power).sqrt() * torch.eye(5)
    stacked = torch.cat([root * targets, torch.zeros(5, 3).double()])
    expected = torch.linalg.lstsq(rows, stacked).solution
    weight, bias = solve(*states, ridge)
    torch.testing.assert_close(weight, expected[:5].T)
    torch.testing.assert_close(bias, expected[5])


def test_ridge_finds_a_linear_map_that_is_there(states):
    inputs, _, weights = states
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    found_weight, found_bias = solve(inputs, inputs @ weight.T + bias, weights, 0.0)
    torch.testing.assert_close(found_weight.float(), weight)
    torch.testing.assert_close(found_bias.float(), bias)


def test_ridge_does_not_depend_on_how_the_stream_is_cut(states):
    whole, cut = solve(*states, 0.01), solve(*states, 0.01, parts=7)
    torch.testing.assert_close(whole, cut)


def test_a_row_of_weight_zero_changes_nothing(states):
    inputs, targets, weights = states
    weights[7] = 0
    targets_changed = targets.clone()
    targets_changed[7] = 1e6
    torch.testing.assert_close(solve(*states, 0.01), solve(inputs, targets_changed, weights, 0.01))


def test_ridge_copes_with_an_input_that_never_moves(states):
    inputs, targets, weights = states
    inputs[:, 2] = 0
    weight, bias = solve(inputs, targets, weights, 0.0)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def test_ridge_without_captions_says_so():
    with pytest.raises(ValueError, match="no caption to fit the bridge on"):
        RidgeRegression(5, 3).solve(0.1)


def test_residual_starts_at_zero_and_has_a_gradient():
    bridge = Bridge(TEXT_WIDTH, TEACHER_WIDTH, hidden_size=8)
    states = torch.randn(2, 77, TEXT_WIDTH)
    out = bridge(states)
    assert out.shape == (2, 77, TEACHER_WIDTH)
    assert torch.equal(out, bridge.linear(states))
    out.square().sum().backward()
    assert bridge.residual[-1].weight.grad.abs().sum() > 0


def test_bridge_maps_position_by_position():
    bridge = Bridge(TEXT_WIDTH, TEACHER_WIDTH, hidden_size=8)
    torch.nn.init.normal_(bridge.residual[-1].weight)
    states = torch.randn(1, 5, TEXT_WIDTH)
    changed = states.clone()
    changed[:, 2] += 1
    is_same = (bridge(states) == bridge(changed)).all(-1)[0]
    assert is_same.tolist() == [True, True, False, True, True]


def test_identity_passes_states_through_to_the_bit():
    bridge = Bridge(TEXT_WIDTH, TEXT_WIDTH, hidden_size=8)
    bridge.set_identity()
    states = torch.randn(2, 7, TEXT_WIDTH)
    assert torch.equal(bridge(states), states)


def test_identity_between_unequal_widths_is_refused():
    with pytest.raises(ValueError, match="no identity between widths 16 and 24"):
        Bridge(TEXT_WIDTH, TEACHER_WIDTH).set_identity()


def test_token_classes_of_a_caption_a_full_one_and_the_empty_one():
    tokenizer = build_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.tensor([[bos, 5, 6, eos, eos], [bos, 5, 6, 7, eos], [bos, eos, eos, eos, eos]])
    assert token_classes(ids, eos).tolist() == [
        [BOS, WORD, WORD, EOS, PADDING],
        [BOS, WORD, WORD, WORD, EOS],
        [BOS, EOS, PADDING, PADDING, PADDING],
    ]


def test_position_weights_leave_bos_out_and_fall_over_the_padding():
    classes = torch.tensor([[BOS, WORD, EOS, *[PADDING] * 30]])
    weights = position_weights(classes)[0]
    assert weights[:3].tolist() == [0, 1, 1]
    torch.testing.assert_close(weights[3:6], torch.tensor([0.3, 0.27, 0.243]))
    assert weights[-1] == pytest.approx(0.05)


def test_padding_weighs_less_than_the_words_of_a_caption_of_usual_length():
    classes = torch.tensor([[BOS, *[WORD] * 12, EOS, *[PADDING] * 63]])
    weights = position_weights(classes)[0]
    assert weights[classes[0] == PADDING].sum() < weights[classes[0] == WORD].sum()


def test_state_error_matches_a_plain_loop_over_positions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, 3, generator=generator).unbind()
    classes = torch.randint(0, 4, (4, 5), generator=generator)
    error = StateError()
    for rows in range(4):
        error.add(student[rows : rows + 1], teacher[rows : rows + 1], classes[rows : rows + 1])
    summary = error.summary()
    for index, name in enumerate(("bos", "words", "eos", "padding")):
        mine, theirs = student[classes == index].double(), teacher[classes == index].double()
        expected = (mine - theirs).norm() / theirs.norm()
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(mine, theirs, strict=True)]
        assert summary["relative_error"][name] == pytest.approx(float(expected), rel=1e-6)
        assert summary["cosine"][name] == pytest.approx(sum(cosines) / len(cosines), rel=1e-6)


def test_state_error_names_only_classes_that_occurred():
    error = StateError()
    error.add(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([[BOS, EOS]]))
    summary = error.summary()
    assert summary == {
        "relative_error": {"bos": 0.0, "eos": 0.0},
        "cosine": {"bos": pytest.approx(1.0), "eos": pytest.approx(1.0)},
    }
