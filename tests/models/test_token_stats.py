import itertools

import pytest
import torch
from torch.nn import functional as F

from clipgraft.models.bridge import BOS, EOS, PADDING, WORD
from clipgraft.models.token_stats import Diversity, EmbedError, is_collapsed


def test_error_matches_a_plain_loop_over_positions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, 3, generator=generator).unbind()
    classes = torch.randint(0, 4, (4, 5), generator=generator)
    error = EmbedError()
    for rows in range(4):
        error.add(student[rows : rows + 1], teacher[rows : rows + 1], classes[rows : rows + 1])
    for index, name in enumerate(("bos", "words", "eos", "padding")):
        mine, theirs = student[classes == index].double(), teacher[classes == index].double()
        expected = (mine - theirs).norm() / theirs.norm()
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(mine, theirs, strict=True)]
        assert error.relative_error()[name] == pytest.approx(float(expected), rel=1e-6)
        assert error.mean_cosine()[name] == pytest.approx(sum(cosines) / len(cosines), rel=1e-6)


def test_error_names_only_classes_that_occurred():
    error = EmbedError()
    error.add(torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([[BOS, EOS]]))
    assert error.relative_error() == {"bos": 0.0, "eos": 0.0}
    assert error.mean_cosine() == {"bos": pytest.approx(1.0), "eos": pytest.approx(1.0)}


def test_diversity_is_the_mean_distance_at_a_position():
    torch.manual_seed(0)
    states = torch.randn(3, 4, 6)
    classes = torch.tensor([[BOS, WORD, WORD, EOS], [BOS, WORD, WORD, EOS], [BOS, WORD, EOS, PADDING]])
    diversity = Diversity(4, 6)
    for row, length in enumerate((4, 4, 3)):  # of the last one without its padding
        diversity.add(states[row : row + 1, :length], classes[row : row + 1, :length])
    pairs = [
        F.cosine_similarity(states[a, place].double(), states[b, place].double(), dim=0)
        for place in (1, 2)
        for a, b in itertools.combinations(range(3), 2)
        if classes[a, place] == classes[b, place] == WORD
    ]
    assert len(pairs) == 4
    summary = diversity.summary()
    assert summary["words"] == pytest.approx(1 - float(sum(pairs)) / len(pairs))
    assert set(summary) == {"bos", "words", "eos"}  # one caption alone has padding


def test_embeds_that_differ_by_position_alone_are_collapsed():
    """A bridge that gives nothing but its biases: the same states for every caption."""
    torch.manual_seed(0)
    classes = torch.full((5, 3), WORD)
    student, teacher = Diversity(3, 6), Diversity(3, 6)
    student.add(torch.randn(3, 6).expand(5, 3, 6), classes)
    teacher.add(torch.randn(5, 3, 6), classes)
    assert student.summary()["words"] == pytest.approx(0, abs=1e-12)
    assert is_collapsed(student.summary()["words"], teacher.summary()["words"])
    assert not is_collapsed(teacher.summary()["words"], teacher.summary()["words"])
    assert not is_collapsed(None, 0.5)
