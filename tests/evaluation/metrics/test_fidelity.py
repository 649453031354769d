"""Prompt fidelity against figures worked out by hand."""

import numpy as np
import torch

from clipgraft.evaluation.metrics.fidelity import fidelity_scores
from clipgraft.flatland import ATTRIBUTES, Scene

DOG = Scene("beach", "sunset", "dog", "brown", "running", "")
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
    scores = fidelity_scores(read, [DOG, CAT, VIEW])
    expected = {
        "": [1, 0.6, 0.5],
        "_all_at_once": [1, 0, 0],
        "_place": [1, 1, 1],
        "_time": [1, 1, 0],
        "_subject": [1, 0, np.nan],
        "_colour": [1, 0, np.nan],
        "_action": [1, 1, np.nan],
    }
    assert scores.keys() == {f"prompt_fidelity{name}" for name in expected}
    for name, values in expected.items():
        np.testing.assert_allclose(scores[f"prompt_fidelity{name}"], values)


def test_prompt_without_a_picture_has_no_score():
    scores = fidelity_scores(torch.full((1, 5), -1), [DOG])
    assert all(np.isnan(values).all() for values in scores.values())
