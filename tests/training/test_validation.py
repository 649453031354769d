"""Evaluations on the way: when they are made, which weights are the best, and when training stops early."""

import pytest
import torch
from safetensors.torch import save_file

from clipgraft.errors import CheckpointError
from clipgraft.training.signals import Interrupted
from clipgraft.training.trainer import Resume
from clipgraft.training.validation import ValidationHistory, ValidationPlan, _description
from regression import SCORES, Regression, Rows, Scorer, read_log, rows_of
from tiny import fit


def train(
    run_dir,
    *,
    metric="recall",
    patience=0,
    resume=False,
    scores=SCORES,
    die_at=None,
    signal_at=None,
    **settings,
):
    objective = Regression()
    scorer = Scorer(objective, scores, die_at, signal_at)
    plan = ValidationPlan(scorer, metric, patience)
    defaults = {"num_epochs": 4, "learning_rate": 0.05, "checkpoint_every": 4}
    fit(objective, Rows(), run_dir=run_dir, validation=plan, resume=resume, **(defaults | settings))
    return objective, scorer


def test_validation_comes_first_and_after_every_epoch(tmp_path):
    train(tmp_path)
    assert [(row["step"], row["epoch"]) for row in rows_of(tmp_path)] == [
        (0, 0),
        (6, 1),
        (12, 2),
        (18, 3),
        (24, 4),
    ]


def test_weights_of_the_first_best_validation_are_left(tmp_path):
    objective, scorer = train(tmp_path)
    assert torch.equal(objective.linear.weight, scorer.seen[1])


def test_best_weights_are_left_without_a_folder(tmp_path):
    objective, _ = train(None, patience=2)
    written, _ = train(tmp_path, patience=2)
    assert torch.equal(objective.linear.weight, written.linear.weight)


def test_without_a_metric_the_last_weights_are_left(tmp_path):
    objective, _ = train(tmp_path, metric="")
    without, _ = train(tmp_path / "other", metric="")
    assert torch.equal(objective.linear.weight, without.linear.weight)
    assert not (tmp_path / "best.safetensors").exists()
    assert len(rows_of(tmp_path)) == 5


@pytest.mark.parametrize("metric", ["val_loss", "drift_words", "text_to_image_median_rank"])
def test_of_a_loss_a_drift_and_a_rank_the_least_is_the_best(tmp_path, metric):
    evaluations = ValidationHistory(tmp_path, ValidationPlan(dict, metric), 0)
    for step, value in enumerate((3.0, 1.0, 2.0)):
        evaluations.add({"step": step, "epoch": step, metric: value}, {"w": torch.tensor(value)})
    assert evaluations.best()["step"] == 1
    assert evaluations.best_weights()["w"].item() == 1.0


def test_early_stopping_stops_and_a_resumed_run_stays_stopped(tmp_path):
    train(tmp_path, patience=2)
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]
    before = (tmp_path / "log.jsonl").read_text()
    train(tmp_path, patience=2, resume=True)
    assert (tmp_path / "log.jsonl").read_text() == before


@pytest.mark.parametrize(("signal_at", "step", "patience"), [(0, 0, 0), (1, 6, 0), (4, 24, 0), (3, 18, 2)])
def test_signal_in_a_validation_stops_the_run_right_after_it(tmp_path, signal_at, step, patience):
    options = {"patience": patience}
    unbroken, _ = train(tmp_path / "unbroken", **options)
    with pytest.raises(Interrupted, match="stopped by SIGTERM; state saved in") as caught:
        train(tmp_path / "broken", signal_at=signal_at, **options)
    assert caught.value.exit_code == 143
    assert max((tmp_path / "broken/checkpoints").iterdir()).name == f"step-{step:08d}"
    assert rows_of(tmp_path / "broken")[-1]["step"] == step
    left = SCORES[signal_at + 1 :] if step else SCORES  # what was measured before the first step is again
    objective, _ = train(tmp_path / "broken", resume=True, scores=left, **options)
    assert torch.equal(objective.linear.weight, unbroken.linear.weight)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "unbroken")


def test_damaged_lost_or_other_best_weights_are_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    evaluations = ValidationHistory(tmp_path, ValidationPlan(dict, "recall"), 0)
    evaluations.add({"step": 0, "epoch": 0, "recall": 0.1}, {"w": torch.ones(3)})
    first = path.read_bytes()
    evaluations.add({"step": 6, "epoch": 1, "recall": 0.2}, {"w": torch.ones(3) * 2})
    second = path.read_bytes()
    for content, message in (
        (first, r"best\.safetensors is of step 0, not of step 6, the best"),
        (second[:-1] + b"\x7f", r"best\.safetensors is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            evaluations.best_weights()
    path.write_bytes(second[:-1])
    with pytest.raises(CheckpointError, match=r"best\.safetensors cannot be read"):
        evaluations.best_weights()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors cannot be read"):
        evaluations.best_weights()


def test_best_weights_of_another_model_are_refused_by_name(tmp_path):
    train(tmp_path)
    best = ValidationHistory(tmp_path, ValidationPlan(dict, "recall"), 24)
    weights = best.best_weights() | {"other": torch.ones(1)}
    save_file(weights, tmp_path / "best.safetensors", _description(6, weights))
    with pytest.raises(CheckpointError, match=r"best\.safetensors is of another model; differing: other"):
        train(tmp_path, resume=True)


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


def test_validation_sees_the_averaged_weights(tmp_path):
    _, averaged = train(tmp_path / "a", metric="", ema_decay=0.9)
    _, plain = train(tmp_path / "b", metric="")
    assert torch.equal(averaged.seen[0], plain.seen[0])
    assert not torch.equal(averaged.seen[1], plain.seen[1])
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")


@pytest.mark.parametrize("metric", ["recal", "step"])
def test_metric_that_is_not_measured_is_refused_by_name(tmp_path, metric):
    message = rf"best_metric '{metric}' is not measured; known here: (?!step).*recall"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, metric=metric)


def test_other_steps_from_before_the_best_weights_are_refused(tmp_path):
    train(tmp_path, scores=[0.1, 0.2, 0.3, 0.4, 0.5], save_total_limit=9)
    before = sorted((tmp_path / "checkpoints").iterdir())
    for resume in (Resume(step=8), Resume(step=20)):
        with pytest.raises(CheckpointError, match=r"best weights kept are those of step 24, not of step "):
            train(tmp_path, resume=resume)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before
    train(tmp_path, resume=Resume(step=24))


def test_other_steps_keep_the_best_weights_found_before(tmp_path):
    _, first = train(tmp_path, save_total_limit=9)
    objective, _ = train(tmp_path, resume=Resume(step=8), scores=[0.0, 0.0, 0.0])
    assert torch.equal(objective.linear.weight, first.seen[1])
    assert [row["recall"] for row in rows_of(tmp_path)] == [0.1, 0.3, 0.0, 0.0, 0.0]
