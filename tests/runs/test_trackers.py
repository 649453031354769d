"""Trackers: TensorBoard's files as its own reader finds them, and a trackio of a few lines."""

import json
import sys
from collections import Counter
from textwrap import dedent

import pytest

from clipgraft.config import Recipe, apply_overrides
from clipgraft.errors import UserError
from clipgraft.runs.run import Run
from clipgraft.runs.trackers import TRACKERS_NAME
from clipgraft.training.validation import ValidationPlan
from regression import Regression, read_log, train

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
)
PLAN = ValidationPlan(lambda: {"val_loss": 0.25})

FAKE_TRACKIO = """
import json, pathlib
PLACE = pathlib.Path(__file__).parent / "points.jsonl"
class Config(dict):
    def update(self, values, **kwargs):
        pass
config = Config()
def write(row):
    with PLACE.open("a") as file:
        file.write(json.dumps(row) + "\\n")
class Run:
    def __init__(self, name):
        self.name = name
    def log(self, values, step):
        if (PLACE.parent / "broken").exists():
            raise OSError("no space at the server")
        write({"run": self.name, "step": step} | values)
    def finish(self):
        write({"finished": self.name})
def init(project, name, resume, config):
    write({"config": config})
    return Run(name)
"""
FAKE_WANDB = """
import pathlib
class Run:
    id = "1"
    def define_metric(self, *names, **given):
        raise RuntimeError("no such metric")
    def finish(self):
        (pathlib.Path(__file__).parent / "finished").touch()
def init(**given):
    return Run()
"""


def event_files(run_dir):
    """Every scalar as written, also those that TensorBoard hides as purged."""
    loader = sys.modules["tensorboard.backend.event_processing.event_file_loader"].LegacyEventFileLoader
    for path in sorted(run_dir.rglob("events.out.*")):
        for event in loader(str(path)).Load():
            yield from ((value.tag, event.step) for value in event.summary.value)


def scalars(run_dir, name):
    events = event_accumulator.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def stop_at(step):
    def fail(objective, loss):
        if objective.num_forwards == step:
            raise KeyboardInterrupt
        return loss

    return Regression(on_forward=fail)


def killed_at_7(run_dir, **settings):
    """Stop in step 7: the log has 6 rows, the newest checkpoint is of step 4."""
    with pytest.raises(KeyboardInterrupt):
        train(run_dir, stop_at(7), validation=PLAN, **settings)
    assert len(read_log(run_dir)) == 6


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Return a folder with a `trackio` that writes points to a file."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "trackio.py").write_text(dedent(FAKE_TRACKIO))
    monkeypatch.syspath_prepend(place)
    yield place
    sys.modules.pop("trackio", None)


def points(place, key="train/loss"):
    rows = [json.loads(line) for line in (place / "points.jsonl").read_text().splitlines()]
    return [(row["run"], row["step"]) for row in rows if key in row]


def test_losses_and_evaluations_are_those_of_the_log(tmp_path):
    train(tmp_path, report_to="tensorboard", validation=PLAN)
    losses = {row["step"]: row["loss"] for row in read_log(tmp_path)}
    assert scalars(tmp_path, "train/loss") == pytest.approx(losses)
    assert set(scalars(tmp_path, "evaluation/val_loss").values()) == {0.25}


def test_resumed_run_writes_each_step_once(tmp_path):
    killed_at_7(tmp_path, report_to="tensorboard")
    train(tmp_path, report_to="tensorboard", validation=PLAN, resume=True)
    written = Counter(event_files(tmp_path))
    assert [step for tag, step in written if tag == "train/loss"] == list(range(1, 19))
    assert [step for tag, step in written if tag == "evaluation/val_loss"] == [0, 6, 12, 18]
    assert set(written.values()) == {1}


def test_settings_are_hyperparameters(tmp_path):
    train(tmp_path, num_epochs=1, report_to="tensorboard", learning_rate=0.03, seed=5)
    written = next(tmp_path.rglob("hparams.yml")).read_text().splitlines()
    assert {"learning_rate: 0.03", "seed: 5", "num_epochs: 1"} <= set(written)


def test_resumed_run_goes_on_in_the_same_run(tmp_path, trackio):
    killed_at_7(tmp_path, report_to="trackio")
    train(tmp_path, report_to="trackio", validation=PLAN, resume=True)
    found = points(trackio)
    assert [step for _, step in found] == list(range(1, 19))
    assert len({run for run, _ in found}) == 1
    assert [step for _, step in points(trackio, "evaluation/val_loss")] == [0, 6, 12, 18]
    assert '"learning_rate": 0.05' in (trackio / "points.jsonl").read_text()


def test_tracker_named_on_resuming_gets_the_steps_before(tmp_path, trackio):
    killed_at_7(tmp_path, report_to="tensorboard")
    train(tmp_path, report_to="tensorboard,trackio", validation=PLAN, resume=True)
    assert [step for _, step in points(trackio)] == list(range(1, 19))
    assert set(Counter(event_files(tmp_path)).values()) == {1}


def test_tracker_left_out_once_gets_a_new_whole_run(tmp_path, trackio):
    train(tmp_path, num_epochs=1, report_to="trackio")
    train(tmp_path, num_epochs=2, resume=True)
    train(tmp_path, num_epochs=3, report_to="trackio", resume=True)
    runs = Counter(run for run, _ in points(trackio))
    assert list(runs.values()) == [6, 18]


def test_run_that_is_not_resumed_is_a_new_one(tmp_path, trackio):
    train(tmp_path, num_epochs=1, report_to="trackio")
    train(tmp_path, num_epochs=1, report_to="trackio")
    assert list(Counter(run for run, _ in points(trackio)).values()) == [6, 6]


def test_tracker_that_fails_does_not_end_a_training(tmp_path, trackio, capsys):
    (trackio / "broken").touch()
    _, result = train(tmp_path, num_epochs=1, report_to="trackio")
    assert result.num_steps == 6
    said = capsys.readouterr().err
    assert said.count("trackio failed at step 1 (no space at the server); training goes on") == 1
    (trackio / "broken").unlink()
    train(tmp_path, num_epochs=2, report_to="trackio", resume=True)
    assert [step for _, step in points(trackio)] == list(range(1, 13))


def test_tracker_that_cannot_start_says_so_in_a_line(tmp_path, trackio):
    (trackio / "trackio.py").write_text("def init(**given):\n    raise RuntimeError('log in first')\n")
    with pytest.raises(
        UserError, match=r"trackio could not be started \(log in first\); set it up, or leave"
    ):
        train(tmp_path, report_to="trackio")


def test_tracker_that_fails_once_begun_is_finished(tmp_path, trackio):
    (trackio / "wandb.py").write_text(dedent(FAKE_WANDB))
    with pytest.raises(UserError, match=r"wandb could not be started \(no such metric\)"):
        train(tmp_path, report_to="trackio,wandb")
    sys.modules.pop("wandb")
    assert (trackio / "finished").exists()
    assert '"finished"' in (trackio / "points.jsonl").read_text()


def test_nothing_is_written_without_being_asked_for(tmp_path):
    train(tmp_path, num_epochs=1, report_to="none")
    assert not {"tensorboard", TRACKERS_NAME} & {path.name for path in tmp_path.iterdir()}


def test_all_are_those_installed(tmp_path, trackio):
    train(tmp_path, num_epochs=1, report_to="all")
    assert set(json.loads((tmp_path / TRACKERS_NAME).read_text())) == {"tensorboard", "trackio"}


@pytest.mark.parametrize("damaged", ["", "[]", '{"trackio": 3}', "{"])
def test_damaged_record_of_runs_begins_a_new_run(tmp_path, trackio, damaged):
    train(tmp_path, num_epochs=1, report_to="trackio")
    (tmp_path / TRACKERS_NAME).write_text(damaged)
    train(tmp_path, num_epochs=2, report_to="trackio", resume=True)
    assert list(Counter(run for run, _ in points(trackio)).values()) == [6, 12]


@pytest.mark.parametrize("name", ["wnadb", "tensorboard;wandb", "none,wandb"])
def test_tracker_that_is_not_known_is_refused(name):
    with pytest.raises(
        UserError, match="input should be 'tensorboard', 'wandb', 'mlflow', 'trackio' or 'all'"
    ):
        apply_overrides(Recipe(), {"finetune.report_to": name})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("", ()),
        ("none", ()),
        ("wandb", ("wandb",)),
        ("wandb, mlflow", ("wandb", "mlflow")),
        (["wandb"], ("wandb",)),
    ],
)
def test_trackers_are_named_by_a_text_or_a_list(given, names):
    assert apply_overrides(Recipe(), {"bridge.report_to": given}).bridge.report_to == names


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tensorboard", r"tensorboard is not installed; pip install 'clipgraft\[tracking\]'"),
        ("mlflow", "mlflow is not installed; pip install mlflow"),
        ("all", r"no tracker is installed; pip install 'clipgraft\[tracking\]'"),
    ],
)
def test_missing_tracker_is_told_of_before_any_work(tmp_path, monkeypatch, name, advice):
    monkeypatch.setattr("clipgraft.runs.trackers.find_spec", lambda name: None)
    recipe = apply_overrides(Recipe(), {"distill.report_to": name})
    with pytest.raises(UserError, match=advice), Run.begin(tmp_path / "run", recipe):
        pass
    assert not (tmp_path / "run").exists()
