"""Evaluations on the way: when they are made, which weights are the best, and when training stops early."""

import json

import pytest
import torch
from test_loop import Regression, Rows, read_log

from clipgraft.errors import CheckpointError
from clipgraft.training.evaluations import EvaluationPlan, Evaluations
from clipgraft.training.loop import fit
from clipgraft.training.state import Resume

SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.1]


class Scorer:
    """Gives scores in a row, or one that the weights decide; remembers the weights it was asked about."""

    def __init__(self, objective, scores=SCORES, die_at=None):
        self.objective, self.scores, self.die_at, self.seen = objective, scores, die_at, []

    def __call__(self):
        weight = self.objective.linear.weight.detach().clone()
        if len(self.seen) == self.die_at:
            raise KeyboardInterrupt
        self.seen.append(weight)
        value = -abs(weight.sum().item() - 1.5)
        return {"recall": self.scores[len(self.seen) - 1] if self.scores else value}


def train(run_dir, *, metric="recall", patience=0, resume=False, die_at=None, scores=SCORES, **settings):
    objective = Regression()
    torch.manual_seed(1)
    scorer = Scorer(objective, scores, die_at)
    plan = EvaluationPlan(scorer, metric, patience)
    defaults = {"num_epochs": 4, "learning_rate": 0.05, "checkpoint_every": 4}
    fit(objective, Rows(), run_dir=run_dir, evaluation=plan, resume=resume, **(defaults | settings))
    return objective, scorer


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]


def test_evaluation_comes_before_the_first_step_and_after_every_epoch(tmp_path):
    train(tmp_path)
    assert [(row["step"], row["epoch"]) for row in rows_of(tmp_path)] == [
        (0, 0),
        (6, 1),
        (12, 2),
        (18, 3),
        (24, 4),
    ]


def test_weights_of_the_best_evaluation_are_left_and_of_equal_ones_the_first(tmp_path):
    objective, scorer = train(tmp_path)
    assert torch.equal(objective.linear.weight, scorer.seen[1])


def test_without_a_metric_the_last_weights_are_left(tmp_path):
    objective, _ = train(tmp_path, metric="")
    without, _ = train(tmp_path / "other", metric="")
    assert torch.equal(objective.linear.weight, without.linear.weight)
    assert not (tmp_path / "best.safetensors").exists()
    assert len(rows_of(tmp_path)) == 5


def test_of_a_loss_the_least_is_the_best(tmp_path):
    evaluations = Evaluations(tmp_path, EvaluationPlan(dict, "val_loss"), 0)
    for step, value in enumerate((3.0, 1.0, 2.0)):
        evaluations.add({"step": step, "epoch": step, "val_loss": value}, {"w": torch.tensor(value)})
    assert evaluations.best()["step"] == 1
    assert evaluations.best_weights()["w"].item() == 1.0


def test_training_stops_when_patience_is_lost_and_a_resumed_run_stays_stopped(tmp_path):
    train(tmp_path, patience=2)
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]
    before = (tmp_path / "log.jsonl").read_text()
    train(tmp_path, patience=2, resume=True)
    assert (tmp_path / "log.jsonl").read_text() == before


@pytest.mark.parametrize("die_at", [0, 1, 3, 4])
def test_run_killed_inside_an_evaluation_ends_in_the_same_bits(tmp_path, die_at):
    options = {"ema_decay": 0.9, "scores": None}
    unbroken, _ = train(tmp_path / "unbroken", **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", die_at=die_at, **options)
    objective, _ = train(tmp_path / "broken", resume=True, **options)
    assert torch.equal(objective.linear.weight, unbroken.linear.weight)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "unbroken")


def test_evaluation_sees_the_averaged_weights_and_training_goes_on_from_its_own(tmp_path):
    _, averaged = train(tmp_path / "a", metric="", ema_decay=0.9)
    _, plain = train(tmp_path / "b", metric="")
    assert torch.equal(averaged.seen[0], plain.seen[0])
    assert not torch.equal(averaged.seen[1], plain.seen[1])
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")


def test_metric_that_is_not_measured_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"best_metric 'recal' is not measured; known here: .*recall"):
        train(tmp_path, metric="recal")


def test_another_way_is_refused_from_before_the_best_weights_that_are_kept(tmp_path):
    train(tmp_path, scores=[0.1, 0.2, 0.3, 0.4, 0.5], keep_checkpoints=9)
    before = sorted((tmp_path / "checkpoints").iterdir())
    for resume in (Resume(step=8), Resume(step=20)):
        with pytest.raises(CheckpointError, match=r"best weights that are kept are of step 24, not of one"):
            train(tmp_path, resume=resume)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before
    train(tmp_path, resume=Resume(step=24))


def test_another_way_keeps_the_best_weights_that_were_found_before_it(tmp_path):
    _, first = train(tmp_path, keep_checkpoints=9)
    objective, _ = train(tmp_path, resume=Resume(step=8), scores=[0.0, 0.0, 0.0])
    assert torch.equal(objective.linear.weight, first.seen[1])
    assert [row["recall"] for row in rows_of(tmp_path)] == [0.1, 0.3, 0.0, 0.0, 0.0]
