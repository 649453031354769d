import itertools

import pytest
import torch
from torch.nn import functional as F

from clipgraft.models.bridge import BOS, EOS, PADDING, WORD
from clipgraft.models.token_stats import Spread, StateError, collapsed_classes


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


def test_spread_is_the_mean_cosine_distance_over_all_pairs_of_captions_at_one_position():
    torch.manual_seed(0)
    states = torch.randn(3, 4, 6)
    classes = torch.tensor([[BOS, WORD, WORD, EOS], [BOS, WORD, WORD, EOS], [BOS, WORD, EOS, PADDING]])
    spread = Spread(4, 6)
    for row, length in enumerate((4, 4, 3)):  # of the last one without its padding
        spread.add(states[row : row + 1, :length], classes[row : row + 1, :length])
    pairs = [
        F.cosine_similarity(states[a, place].double(), states[b, place].double(), dim=0)
        for place in (1, 2)
        for a, b in itertools.combinations(range(3), 2)
        if classes[a, place] == classes[b, place] == WORD
    ]
    assert len(pairs) == 4
    summary = spread.summary()
    assert summary["words"] == pytest.approx(1 - float(sum(pairs)) / len(pairs))
    assert set(summary) == {"bos", "words", "eos"}  # one caption alone has padding


def test_states_that_differ_from_position_to_position_alone_are_called_collapsed():
    """A bridge that gives nothing but its biases: the same states for every caption."""
    torch.manual_seed(0)
    classes = torch.full((5, 3), WORD)
    student, teacher = Spread(3, 6), Spread(3, 6)
    student.add(torch.randn(3, 6).expand(5, 3, 6), classes)
    teacher.add(torch.randn(5, 3, 6), classes)
    assert student.summary()["words"] == pytest.approx(0, abs=1e-12)
    assert collapsed_classes(student.summary(), teacher.summary()) == ["words"]
    assert collapsed_classes(teacher.summary(), teacher.summary()) == []
