"""A small regression, its batches and its scorer, for tests of the training loop."""

import json
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clipgraft.models.weights import write_folder_atomically
from clipgraft.training.validation import ValidationPlan
from tiny import fit


class Regression(nn.Module):
    """Fits y = 2x with dropout, so that the random state matters; may fail at a step, or call back."""

    def __init__(self, on_forward=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.frozen = nn.Linear(4, 1), nn.Linear(4, 4).requires_grad_(False)
        self.dropout = nn.Dropout(0.5)
        self.num_forwards, self.on_forward = 0, on_forward

    def forward(self, batch):
        self.num_forwards += 1
        prediction = self.linear(self.dropout(batch["x"]))
        loss = (prediction[:, 0] - 2 * batch["x"].sum(1)).square().mean()
        if self.on_forward:
            loss = self.on_forward(self, loss)
        return loss, {"bias": self.linear.bias.detach().mean()}


class Rows:
    """Batches that are a pure function of epoch and position."""

    def __init__(self, num_batches=6):
        self.num_batches = num_batches

    def __len__(self):
        return self.num_batches

    def epoch(self, epoch, start):
        for index in range(start, self.num_batches):
            generator = torch.Generator().manual_seed(100 * epoch + index)
            yield {"x": torch.randn(8, 4, generator=generator), "image_ids": [f"e{epoch}b{index}.jpg"]}


def train(run_dir: Path, objective=None, **settings):
    objective = objective or Regression()
    defaults = {"seed": 1, "num_epochs": 3, "learning_rate": 0.05, "checkpoint_every": 4}
    result = fit(objective, Rows(), run_dir=run_dir, **(defaults | settings))
    return objective, result


def read_log(run_dir: Path, *, without_times: bool = True):
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not (without_times and k.endswith("seconds"))} for row in rows]


SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.1]


class Scorer:
    """Gives scores in a row, or one that the weights decide; remembers the weights it was asked about."""

    def __init__(self, objective, scores=SCORES, die_at=None, signal_at=None):
        self.objective, self.scores, self.seen = objective, scores, []
        self.die_at, self.signal_at = die_at, signal_at

    def __call__(self):
        weight = self.objective.linear.weight.detach().clone()
        if len(self.seen) == self.die_at:
            raise KeyboardInterrupt
        if len(self.seen) == self.signal_at:
            signal.raise_signal(signal.SIGTERM)
        self.seen.append(weight)
        value = -abs(weight.sum().item() - 1.5)
        return {"recall": self.scores[len(self.seen) - 1] if self.scores else value}


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]


STEPS_BEFORE_DEATH = 19


class DeathError(Exception):
    """In place of SIGKILL."""


def run(folder, *, resume=False, die=False, metric="recall"):
    def on_forward(objective, loss):
        if die and objective.num_forwards == STEPS_BEFORE_DEATH:
            raise DeathError
        return loss

    objective = Regression(on_forward)
    plan = ValidationPlan(Scorer(objective, scores=None), metric, 0)
    options = {"num_epochs": 4, "learning_rate": 0.05, "checkpoint_every": 4, "ema_decay": 0.9}
    fit(objective, Rows(), run_dir=folder, validation=plan, resume=resume, **options)
    return objective


def rewrite(folder, change) -> None:
    """Write a checkpoint again with other values or tensors, and a manifest that fits them."""
    values, tensors = (
        json.loads((folder / "state.json").read_text()),
        load_file(folder / "tensors.safetensors"),
    )
    change(values, tensors)
    with write_folder_atomically(folder) as temporary:
        (temporary / "state.json").write_text(json.dumps(values))
        save_file(tensors, temporary / "tensors.safetensors")
