"""Figures in TensorBoard: what its own reader finds in what was written."""

import pytest

from clipgraft.training.validation import ValidationPlan
from regression import read_log, train

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
)


def scalars(run_dir, name):
    events = event_accumulator.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_losses_and_evaluations_are_those_of_the_log(tmp_path):
    train(tmp_path, report_to="tensorboard", validation=ValidationPlan(lambda: {"val_loss": 0.25}))
    losses = {row["step"]: row["loss"] for row in read_log(tmp_path)}
    assert scalars(tmp_path, "train/loss") == pytest.approx(losses)
    assert set(scalars(tmp_path, "evaluation/val_loss").values()) == {0.25}


def test_resumed_run_has_each_step_once(tmp_path):
    train(tmp_path, num_epochs=1, report_to="tensorboard")
    train(tmp_path, num_epochs=2, report_to="tensorboard", resume=True)
    assert list(scalars(tmp_path, "train/loss")) == list(range(1, 13))


def test_nothing_is_written_without_being_asked_for(tmp_path):
    train(tmp_path, num_epochs=1)
    assert not (tmp_path / "tensorboard").exists()


def test_tracker_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Input should be '' or 'tensorboard'"):
        train(tmp_path, report_to="wandb")


def test_tensorboard_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("clipgraft.training.run_log.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs TensorBoard: pip install clipgraft\[tracking\]"):
        train(tmp_path, report_to="tensorboard")
