"""Metrics of several steps read at once: the same steps, the same rows, and no step without a finite loss."""

import json

import pytest
import torch

import tiny


class Regression(torch.nn.Module):
    """Squared error of a linear map with noise from torch's generator."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = torch.nn.Linear(3, 1)

    def forward(self, batch):
        x = batch["x"] + 0.1 * torch.randn_like(batch["x"])
        loss = (self.map(x)[:, 0] - batch["y"]).square().mean()
        return loss, {"mean": x.mean().detach()}


class Numbers:
    """Nine batches an epoch; the one at `broken` holds NaN."""

    def __init__(self, broken=-1):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(9, 4, 3, generator=generator)
        self.y = self.x.sum(2)
        if broken >= 0:
            self.y[broken, 0] = torch.nan

    def __len__(self):
        return len(self.x)

    def epoch(self, epoch, start):
        return [{"x": x, "y": y} for x, y in zip(self.x[start:], self.y[start:], strict=True)]


def train(folder, log_every, *, broken=-1, **settings):
    objective = Regression()
    settings = {"num_epochs": 2, "learning_rate": 0.05, "ema_decay": 0.5, "checkpoint_every": 6} | settings
    result = tiny.fit(objective, Numbers(broken), run_dir=folder, log_every=log_every, **settings)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return objective, result, [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.mark.parametrize("log_every", [2, 4, 100])
def test_reading_later_changes_neither_weights_nor_rows(log_every, tmp_path):
    now, _, rows = train(tmp_path / "now", 1)
    later, _, rows_later = train(tmp_path / "later", log_every)
    assert rows == rows_later
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert torch.equal(now.map.weight, later.map.weight)


def test_run_that_read_later_resumes_at_its_checkpoint(tmp_path):
    whole, _, rows = train(tmp_path / "whole", 4, num_epochs=3, lr_schedule="constant")
    train(tmp_path / "parts", 4, num_epochs=2, lr_schedule="constant")
    parts, _, resumed = train(tmp_path / "parts", 5, num_epochs=3, lr_schedule="constant", resume=True)
    assert rows == resumed
    assert torch.equal(whole.map.weight, parts.map.weight)


def test_step_without_finite_loss_is_left_out_on_the_device(tmp_path, caplog):
    objective, result, rows = train(tmp_path / "run", 4, broken=2, ema_decay=0.0, num_epochs=1)
    expected, _, _ = train(tmp_path / "now", 1, broken=2, ema_decay=0.0, num_epochs=1)
    assert result.skipped_steps == 1
    assert rows[2]["loss"] is None
    assert "step 3 skipped" in caplog.text
    assert torch.equal(objective.map.weight, expected.map.weight)
