"""Parameter groups, the learning rate, moving averages."""

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from clipgraft.training.optimization import MovingAverage, learning_rate_factor, parameter_groups


def test_only_matrices_are_decayed():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.6592)))
    decayed, spared = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [parameter.ndim for parameter in decayed["params"]] == [2]
    assert spared["weight_decay"] == 0.0
    assert module.logit_scale in set(spared["params"])


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


def test_moving_average_equals_the_librarys():
    from diffusers.training_utils import EMAModel

    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    average, library = MovingAverage(ours.parameters(), 0.99), EMAModel(theirs.parameters(), decay=0.99)
    for seed in range(8):
        for module in (ours, theirs):
            with torch.no_grad():
                module.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)))
        average.update()
        library.step(theirs.parameters())
    average.copy_to_parameters()
    library.copy_to(theirs.parameters())
    torch.testing.assert_close(ours.weight, theirs.weight)
