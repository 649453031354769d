import pytest
import torch
from torch.nn import functional as F

from clipgraft.models.bridge import (
    BOS,
    EOS,
    NUM_CLASS_MAPS,
    PADDING,
    WORD,
    Bridge,
    map_index,
    position_weights,
    token_classes,
    visible_positions,
)
from clipgraft.models.ridge import ClassRidgeRegression, RidgeRegression
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


def test_ridge_equals_least_squares_with_penalty_rows(states):
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
    torch.testing.assert_close(bias, expected[5:])


def test_ridge_finds_a_linear_map_that_is_there(states):
    inputs, _, weights = states
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    found_weight, found_bias = solve(inputs, inputs @ weight.T + bias, weights, 0.0)
    torch.testing.assert_close(found_weight.float(), weight)
    torch.testing.assert_close(found_bias.float(), bias[None])


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
    states, classes = torch.randn(2, 77, TEXT_WIDTH), torch.full((2, 77), WORD)
    out = bridge(states, classes)
    assert out.shape == (2, 77, TEACHER_WIDTH)
    torch.testing.assert_close(out, states @ bridge.linear.weight.T)
    out.square().sum().backward()
    assert bridge.residual[-1].weight.grad.abs().sum() > 0


def test_bridge_maps_position_by_position():
    bridge = Bridge(TEXT_WIDTH, TEACHER_WIDTH, hidden_size=8)
    torch.nn.init.normal_(bridge.residual[-1].weight)
    states, classes = torch.randn(1, 5, TEXT_WIDTH), torch.full((1, 5), WORD)
    changed = states.clone()
    changed[:, 2] += 1
    is_same = (bridge(states, classes) == bridge(changed, classes)).all(-1)[0]
    assert is_same.tolist() == [True, True, False, True, True]


def test_identity_passes_states_through_to_the_bit():
    bridge = Bridge(TEXT_WIDTH, TEXT_WIDTH, hidden_size=8)
    bridge.set_identity()
    states = torch.randn(2, 7, TEXT_WIDTH)
    assert torch.equal(bridge(states, torch.full((2, 7), WORD)), states)


def test_identity_between_unequal_widths_is_refused():
    with pytest.raises(ValueError, match="no identity between widths 16 and 24"):
        Bridge(TEXT_WIDTH, TEACHER_WIDTH).set_identity()


def test_token_classes_of_short_full_and_empty_captions():
    tokenizer = build_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.tensor([[bos, 5, 6, eos, eos], [bos, 5, 6, 7, eos], [bos, eos, eos, eos, eos]])
    assert token_classes(ids, eos).tolist() == [
        [BOS, WORD, WORD, EOS, PADDING],
        [BOS, WORD, WORD, WORD, EOS],
        [BOS, EOS, PADDING, PADDING, PADDING],
    ]


def test_all_padding_weighs_as_much_as_eight_words():
    classes = torch.tensor([[BOS, WORD, EOS, *[PADDING] * 32], [BOS, *[WORD] * 31, EOS, PADDING, PADDING]])
    weights = position_weights(classes)
    assert weights[0, :3].tolist() == [0, 1, 1]
    assert weights[0, 3:].tolist() == [0.25] * 32
    assert weights[1].tolist() == [0] + [1] * 34


def test_padding_weighs_less_than_words_of_a_usual_caption():
    classes = torch.tensor([[BOS, *[WORD] * 12, EOS, *[PADDING] * 63]])
    weights = position_weights(classes)[0]
    assert weights[classes[0] == PADDING].sum() < weights[classes[0] == WORD].sum()


@pytest.fixture
def positions():
    """Inputs (8, 20, 5), targets (8, 20, 3), weights (8, 20) and classes (8, 20)."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([BOS, *[WORD] * 12, EOS, *[PADDING] * 6]).expand(8, 20)
    inputs = torch.randn(8, 20, 5, generator=generator)
    return inputs, torch.randn(8, 20, 3, generator=generator), position_weights(classes), classes


def test_each_class_has_the_least_squares_of_its_own_rows(positions):
    inputs, targets, weights, classes = positions
    many = 1_000_000  # next to so many rows, one row's weight is nothing
    regression = ClassRidgeRegression(5, 3, 20)
    regression.add(inputs, targets, many * weights, classes)
    found, biases = regression.solve(0.0, by_class=True)
    for index, name in enumerate((WORD, EOS, PADDING)):
        chosen = classes == name
        places = torch.arange(20).expand(8, 20)[chosen]
        rows = torch.cat([inputs[chosen], F.one_hot(places, 20)], 1).double() * weights[chosen, None].sqrt()
        expected = torch.linalg.lstsq(
            rows, targets[chosen].double() * weights[chosen, None].sqrt(), driver="gelsd"
        ).solution
        torch.testing.assert_close(found[index], expected[:5].T, rtol=1e-3, atol=1e-3)
        there = places.unique()
        torch.testing.assert_close(biases[index, there], expected[5 + there], rtol=1e-3, atol=1e-3)


def test_a_position_that_no_caption_reached_has_the_common_bias(positions):
    regression = ClassRidgeRegression(5, 3, 30)
    regression.add(*positions)
    _, common = regression.solve(0.01, by_class=False)
    _, biases = regression.solve(0.01, by_class=True)
    torch.testing.assert_close(biases[:, 25], common[:, 0].expand(3, -1))


def test_without_classes_one_map_is_that_of_all_rows(positions):
    inputs, targets, weights, _ = positions
    regression = ClassRidgeRegression(5, 3, 20)
    regression.add(*positions)
    weights_found, biases = regression.solve(0.01, by_class=False)
    weight, bias = solve(inputs.flatten(0, 1), targets.flatten(0, 1), weights.flatten(), 0.01)
    torch.testing.assert_close(weights_found, weight[None])
    torch.testing.assert_close(biases[0], bias)


def test_a_class_without_rows_keeps_to_the_common_map(positions):
    inputs, targets, weights, classes = positions
    regression = ClassRidgeRegression(5, 3, 20)
    regression.add(inputs, targets, torch.where(classes == EOS, 0.0, weights), classes)
    found, biases = regression.solve(0.01, by_class=True)
    common, common_bias = regression.solve(0.01, by_class=False)
    torch.testing.assert_close(found[1], common[0])
    torch.testing.assert_close(biases[1], common_bias[0].expand(20, -1))


def test_a_class_is_drawn_to_the_common_map_by_the_ridge(positions):
    regression = ClassRidgeRegression(5, 3, 20)
    regression.add(*positions)
    apart = [
        (regression.solve(ridge, by_class=True)[0][1] - regression.solve(ridge, by_class=False)[0][0]).norm()
        for ridge in (0.0, 0.1, 10.0)
    ]
    assert apart[0] > apart[1] > apart[2]


def test_the_moment_is_that_of_the_weighted_targets(positions):
    _, targets, weights, _ = positions
    regression = ClassRidgeRegression(5, 3, 20)
    regression.add(*positions)
    rows = targets.flatten(0, 1).double() * weights.flatten()[:, None].sqrt()
    torch.testing.assert_close(regression.target_moment, rows.T @ rows)


def test_every_position_goes_through_the_map_of_its_class():
    bridge = Bridge(5, 3, num_maps=NUM_CLASS_MAPS, num_positions=7)
    weights, biases = torch.randn(3, 3, 5), torch.randn(3, 7, 3)
    bridge.set_linear(weights, biases)
    states, classes = torch.randn(1, 5, 5), torch.tensor([[BOS, WORD, WORD, EOS, PADDING]])
    assert map_index(classes).tolist() == [[0, 0, 0, 1, 2]]
    expected = [weights[k] @ states[0, i] + biases[k, i] for i, k in enumerate((0, 0, 0, 1, 2))]
    torch.testing.assert_close(bridge(states, classes)[0], torch.stack(expected))


def test_attention_blocks_are_causal_and_start_at_zero():
    bridge = Bridge(TEXT_WIDTH, TEACHER_WIDTH, hidden_size=8, num_attention_blocks=2).eval()
    states, classes = torch.randn(1, 5, TEXT_WIDTH), torch.full((1, 5), WORD)
    torch.testing.assert_close(bridge(states, classes), bridge.linear(states))
    torch.nn.init.normal_(bridge.residual[-1].weight)
    changed = states.clone()
    changed[:, 2] = torch.randn(TEXT_WIDTH)
    is_same = torch.isclose(bridge(states, classes), bridge(changed, classes)).all(-1)[0]
    assert is_same.tolist() == [True, True, False, False, False]


def test_left_out_padding_changes_no_other_position():
    bridge = Bridge(
        TEXT_WIDTH, TEACHER_WIDTH, 8, num_maps=NUM_CLASS_MAPS, num_positions=77, num_attention_blocks=2
    )
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    states = torch.randn(2, 12, TEXT_WIDTH)
    classes = torch.tensor([[BOS, WORD, WORD, EOS, *[PADDING] * 8]]).expand(2, 12)
    kept = torch.tensor([0, 1, 2, 3, 6, 11])
    part = bridge(states[:, kept], classes[:, kept], kept.expand(2, 6))
    torch.testing.assert_close(part, bridge(states, classes)[:, kept])


def test_a_state_sees_itself_and_the_past_but_no_padding():
    classes = torch.tensor([[BOS, WORD, EOS, PADDING, PADDING]])
    seen = visible_positions(classes, torch.arange(5)[None])[0, 0].int()
    assert seen.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]


@pytest.mark.integration
def test_gradients_are_the_same_bits_each_time():
    """At a size at which several threads share the sums; a run could not be made again otherwise."""
    bridge = Bridge(128, 192, 64, num_maps=NUM_CLASS_MAPS, num_positions=77, num_attention_blocks=1)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    states = torch.randn(128, 24, 128)
    classes = torch.tensor([BOS, *[WORD] * 14, EOS, *[PADDING] * 8]).expand(128, 24)

    def gradients():
        bridge.zero_grad()
        bridge(states, classes).square().mean().backward()
        return [parameter.grad.clone() for parameter in bridge.parameters()]

    first = gradients()
    for _ in range(20):
        assert all(torch.equal(one, other) for one, other in zip(first, gradients(), strict=True))
