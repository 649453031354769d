"""Prompt fidelity against figures worked out by hand."""

import pytest
import torch

from clipgraft.data.flatland import ATTRIBUTES, Scene
from clipgraft.evaluation.fidelity import prompt_fidelity

DOG = Scene("beach", "sunset", "dog", "brown", "running", "")  # held out
CAT = Scene("street", "night", "cat", "black", "sitting", "")
VIEW = Scene("garden", "day", "", "", "", "")


def labels(*values: str) -> list[int]:
    return [known.index(value) for known, value in zip(ATTRIBUTES.values(), values, strict=True)]


def test_shares_are_those_of_a_case_worked_out_by_hand():
    read = torch.tensor(
        [
            labels("beach", "sunset", "dog", "brown", "running"),  # 5 of 5
            labels("street", "night", "dog", "white", "sitting"),  # 3 of 5
            labels("garden", "night", "", "", ""),  # 1 of 2: no subject is named, so none is looked for
        ]
    )
    score = prompt_fidelity(read, [DOG, CAT, VIEW])
    assert score["mean"] == pytest.approx((1 + 0.6 + 0.5) / 3)
    assert score["all_at_once"] == pytest.approx(1 / 3)
    assert score["by_attribute"] == pytest.approx(
        {"place": 1.0, "time": 2 / 3, "subject": 0.5, "colour": 0.5, "action": 1.0}
    )
    assert score["held_out"] == 1.0
    assert score["seen"] == pytest.approx((0.6 + 0.5) / 2)
    assert score["num_prompts"] == 3


def test_parts_that_no_prompt_has_are_none_or_absent():
    score = prompt_fidelity(torch.tensor([labels("garden", "day", "", "", "")]), [VIEW])
    assert score["held_out"] is None
    assert score["by_attribute"] == {"place": 1.0, "time": 1.0}
    assert prompt_fidelity(torch.tensor([DOG.labels]), [DOG])["seen"] is None
