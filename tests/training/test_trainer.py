"""The training loop: what it steps, logs, saves, resumes and refuses."""

import signal

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from clipgraft.errors import CheckpointError, UserError
from clipgraft.training.checkpoints import RENAMED, VERSION
from clipgraft.training.signals import Interrupted
from clipgraft.training.step import MAX_SKIPPED_IN_A_ROW, seed_step
from clipgraft.training.trainer import Resume
from regression import Regression, Rows, read_log, rewrite, train
from tiny import fit


@pytest.mark.integration
def test_loss_falls_and_every_step_is_logged(tmp_path):
    _, result = train(tmp_path, num_epochs=20)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 121))
    assert [row["epoch"] for row in rows[4:8]] == [0, 0, 1, 1]
    assert result.epoch_mean_loss[-1] < 0.5 * result.epoch_mean_loss[0]
    assert result.epoch_mean_loss[2] == pytest.approx(sum(row["loss"] for row in rows[12:18]) / 6)
    assert {"loss", "learning_rate", "grad_norm", "bias"} <= rows[0].keys()


def test_step_equals_adamw_written_out_by_hand(tmp_path):
    objective, _ = train(tmp_path, num_epochs=1, max_grad_norm=0.5, weight_decay=0.1)
    plain = Regression()
    optimizer = torch.optim.AdamW(
        [
            {"params": [plain.linear.weight], "weight_decay": 0.1},
            {"params": [plain.linear.bias], "weight_decay": 0.0},
        ],
        lr=0.05,
        fused=True,
    )
    for step, batch in enumerate(Rows().epoch(0, 0)):
        seed_step(1, step, 0)
        plain(batch)[0].backward()
        nn.utils.clip_grad_norm_(plain.linear.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(objective.linear.weight, plain.linear.weight, rtol=0, atol=0)
    torch.testing.assert_close(objective.linear.bias, plain.linear.bias, rtol=0, atol=0)


def test_accumulated_step_is_the_step_of_the_mean_loss(tmp_path):
    objective, result = train(tmp_path, num_epochs=1, gradient_accumulation_steps=4)
    plain = Regression()
    optimizer = torch.optim.AdamW(plain.linear.parameters(), lr=0.05)
    batches = list(Rows().epoch(0, 0))
    # The last group is smaller, and a mean over its own size.
    for step, group in enumerate((batches[:4], batches[4:])):
        seed_step(1, step, 0)
        (sum(plain(batch)[0] for batch in group) / len(group)).backward()
        nn.utils.clip_grad_norm_(plain.linear.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert result.num_steps == 2
    torch.testing.assert_close(objective.linear.weight, plain.linear.weight, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_as_they_were_to_the_bit(tmp_path):
    before = Regression().frozen.weight.clone()
    objective, _ = train(tmp_path)
    assert torch.equal(objective.frozen.weight, before)


@pytest.mark.parametrize("stop_at", [1, 4, 6, 9, 12])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_stopped_and_resumed_run_ends_in_the_same_bits(tmp_path, stop_at, ema_decay):
    unbroken, _ = train(tmp_path / "unbroken", gradient_accumulation_steps=1, ema_decay=ema_decay)

    def stop(objective, loss):
        if objective.num_forwards == stop_at:
            signal.raise_signal(signal.SIGINT)
        return loss

    with pytest.raises(Interrupted) as caught:
        train(tmp_path / "broken", Regression(stop), ema_decay=ema_decay)
    assert caught.value.exit_code == 130
    resumed, _ = train(tmp_path / "broken", resume=True, ema_decay=ema_decay)
    assert torch.equal(resumed.linear.weight, unbroken.linear.weight)
    assert torch.equal(resumed.linear.bias, unbroken.linear.bias)
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "unbroken")


def test_killed_run_resumes_without_a_double_line(tmp_path):
    class KilledError(Exception):
        pass

    def die(objective, loss):
        if objective.num_forwards == 11:
            raise KilledError
        return loss

    unbroken, _ = train(tmp_path / "unbroken")
    with pytest.raises(KilledError):
        train(tmp_path / "broken", Regression(die))
    assert len(read_log(tmp_path / "broken")) == 10
    resumed, _ = train(tmp_path / "broken", resume=True)
    assert torch.equal(resumed.linear.weight, unbroken.linear.weight)
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "unbroken")


def test_log_is_cut_back_in_a_new_file(tmp_path):
    train(tmp_path, save_total_limit=9)
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "old.jsonl").hardlink_to(tmp_path / "log.jsonl")
    train(tmp_path, resume=Resume(step=8))
    assert (tmp_path / "old.jsonl").read_text() == whole


def test_log_that_lost_rows_is_refused(tmp_path):
    train(tmp_path)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    message = r"no checkpoint .*/log\.jsonl has 5 of its 18 rows: it was lost or cut; restore it"
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path, resume=True)
    path.unlink()
    with pytest.raises(CheckpointError, match="has 0 of its 18 rows"):
        train(tmp_path, resume=True)


def test_sigterm_ends_with_exit_code_143(tmp_path):
    def stop(objective, loss):
        signal.raise_signal(signal.SIGTERM)
        return loss

    with pytest.raises(Interrupted, match="stopped by SIGTERM; state saved in") as caught:
        train(tmp_path, Regression(stop))
    assert caught.value.exit_code == 143


def test_newest_checkpoints_are_kept_and_older_ones_deleted(tmp_path):
    train(tmp_path, save_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000016",
        "step-00000018",
    ]


def test_damaged_newest_checkpoint_is_passed_over_aloud(tmp_path, caplog):
    unbroken, _ = train(tmp_path)
    with (tmp_path / "checkpoints/step-00000018/tensors.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    resumed, _ = train(tmp_path, resume=True)
    assert "step-00000018 cannot be used, falling back to the one before: " in caplog.text
    assert torch.equal(resumed.linear.weight, unbroken.linear.weight)


def test_run_without_a_whole_checkpoint_is_refused(tmp_path):
    train(tmp_path, save_total_limit=1)
    (tmp_path / "checkpoints/step-00000018/state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole; start again with --overwrite"):
        train(tmp_path, resume=True)


DATA = {"photographs": "aaaa", "captions": "bbbb"}


def test_checkpoint_of_other_data_is_refused_by_name(tmp_path):
    train(tmp_path, data=DATA)
    changed = {"photographs": "cccc", "captions": "bbbb"}
    with pytest.raises(CheckpointError, match="made with other photographs than the present ones; restore"):
        train(tmp_path, resume=True, data=changed)


def test_changed_data_is_accepted_on_request_settings_never(tmp_path, caplog):
    train(tmp_path, data=DATA, num_epochs=2)
    changed, resume = {"captions": "dddd"}, Resume(allow_changed_data=True)
    _, result = train(tmp_path, data=changed, resume=resume)
    assert (
        "with other captions and other photographs than the present ones; resuming as requested"
        in caplog.text
    )
    assert (result.num_steps, len(read_log(tmp_path))) == (18, 18)
    with pytest.raises(CheckpointError, match=r"other settings \(learning_rate was 0\.05, is 0\.2\)"):
        train(tmp_path, data=changed, resume=resume, learning_rate=0.2)


def test_checkpoint_with_older_names_of_settings_resumes(tmp_path, monkeypatch):
    def forget(values, _):
        del values["settings"]["layer_decay"]
        values["settings"]["old_name"] = values["settings"].pop("batch_size")

    monkeypatch.setitem(RENAMED, "old_name", "batch_size")

    train(tmp_path)
    rewrite(tmp_path / "checkpoints/step-00000018", forget)
    _, result = train(tmp_path, resume=True)
    assert result.num_steps == 18


@pytest.mark.parametrize("stop_at", [None, 8])
def test_more_epochs_leave_the_first_ones_as_they_are(tmp_path, capsys, stop_at):
    def stop(objective, loss):
        if objective.num_forwards == stop_at:
            signal.raise_signal(signal.SIGINT)
        return loss

    longer, _ = train(tmp_path / "longer", num_epochs=5)
    folder = tmp_path / "short"
    if stop_at:
        with pytest.raises(Interrupted):
            train(folder, Regression(stop))
    else:
        train(folder)
    first = (folder / "log.jsonl").read_text()
    resumed, result = train(folder, resume=True, num_epochs=5)
    assert (folder / "log.jsonl").read_text().startswith(first)
    assert result.num_steps == 30
    assert torch.equal(resumed.linear.weight, longer.linear.weight)  # the learning rate is constant
    assert read_log(folder) == read_log(tmp_path / "longer")
    made = stop_at or 18
    message = f"note: {made} steps are made; the run now has 30, not 18. The learning rate is now 0.05"
    assert capsys.readouterr().err.splitlines() == [message]


def test_schedule_is_stretched_over_more_epochs_and_noted(tmp_path, capsys):
    train(tmp_path, lr_schedule="linear")
    train(tmp_path, lr_schedule="linear", resume=True, num_epochs=5)
    rates = [row["learning_rate"] for row in read_log(tmp_path)]
    assert rates[:18] == pytest.approx([0.05 * (1 - step / 18) for step in range(18)])
    assert rates[18:] == pytest.approx([0.05 * (1 - step / 30) for step in range(18, 30)])
    assert capsys.readouterr().err == (
        "note: 18 steps are made; the run now has 30, not 18. The learning rate is now 0.02 to "
        "0.0017: lr_schedule = 'linear' spreads over all steps; it would have continued at 0\n"
    )


def test_fewer_epochs_than_are_made_are_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match=r"already made 18 steps, and num_epochs = 2 is 12; set it to 3 or"):
        train(tmp_path, resume=True, num_epochs=2)


GOLDEN_LOSSES = [12.933893, 28.472633, 22.663811, 21.612907, 22.074924, 13.204123]


def test_steps_are_those_of_this_version(tmp_path):
    """Where this fails, a checkpoint of before would go on otherwise: raise `checkpoints.VERSION`."""
    train(tmp_path, num_epochs=1)
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-4)
    assert VERSION == 2


def test_resume_from_a_named_step_deletes_later_checkpoints(tmp_path):
    unbroken, _ = train(tmp_path / "unbroken")
    train(tmp_path / "again", save_total_limit=9)
    folder = tmp_path / "again" / "checkpoints"
    newer = {"step-00000016", "step-00000018"}
    assert newer <= {path.name for path in folder.iterdir()}
    resumed, _ = train(tmp_path / "again", resume=Resume(step=8), num_epochs=2)
    assert not newer & {path.name for path in folder.iterdir()}
    assert [row["step"] for row in read_log(tmp_path / "again")] == list(range(1, 13))
    resumed, _ = train(tmp_path / "again", resume=True)
    assert torch.equal(resumed.linear.weight, unbroken.linear.weight)


def test_named_checkpoint_that_is_damaged_is_an_error(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .*; steps: 18, 16$"):
        train(tmp_path, resume=Resume(step=7))
    (tmp_path / "checkpoints/step-00000018/state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        train(tmp_path, resume=Resume(step=18))


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    train(tmp_path)
    other = Regression()
    other.linear = nn.Linear(4, 2)
    with pytest.raises(CheckpointError, match=r"is of another model; differing: .*weight\.linear\.weight"):
        train(tmp_path, other, resume=True)


def test_step_without_a_finite_loss_never_reaches_a_weight(tmp_path, caplog):
    weights = {}

    def fail_at_third(objective, loss):
        weights[objective.num_forwards] = objective.linear.weight.detach().clone()
        return loss * float("nan") if objective.num_forwards == 3 else loss

    objective, result = train(tmp_path, Regression(fail_at_third), num_epochs=1)
    assert torch.equal(weights[3], weights[4])
    assert torch.isfinite(objective.linear.weight).all()
    assert result.skipped_steps == 1
    assert read_log(tmp_path)[2]["loss"] is None
    assert "step 3 skipped" in caplog.text
    assert "e0b2.jpg" in caplog.text


def test_step_without_a_finite_gradient_never_reaches_a_weight(tmp_path):
    weights = {}

    def fail_at_third(objective, loss):
        weights[objective.num_forwards] = objective.linear.weight.detach().clone()
        # The root of 0 is 0, and its gradient is not finite.
        return loss + (0 * objective.linear.weight).sum().sqrt() if objective.num_forwards == 3 else loss

    objective, result = train(tmp_path, Regression(fail_at_third), num_epochs=1)
    assert torch.equal(weights[3], weights[4])
    assert torch.isfinite(objective.linear.weight).all()
    assert result.skipped_steps == 1
    row = read_log(tmp_path)[2]
    assert row["loss"] is not None
    assert row["grad_norm"] is None


def test_run_that_stays_non_finite_stops_with_advice(tmp_path):
    with pytest.raises(UserError, match=rf"{MAX_SKIPPED_IN_A_ROW} steps in a row .* Lower learning_rate"):
        train(tmp_path, Regression(lambda _, loss: loss * float("inf")))


def test_moving_average_takes_the_weights_place_at_the_end(tmp_path):
    plain, _ = train(tmp_path / "plain")
    averaged, _ = train(tmp_path / "averaged", ema_decay=0.9)
    assert not torch.equal(plain.linear.weight, averaged.linear.weight)


def test_moving_average_is_the_librarys_after_every_step(tmp_path):
    seen = []
    objective = Regression(
        lambda objective, loss: seen.append(objective.linear.weight.detach().clone()) or loss
    )
    train(tmp_path / "plain", objective, num_epochs=1)
    average = EMAModel(seen[:1], decay=0.9, foreach=True)
    for weight in [*seen[1:], objective.linear.weight]:
        average.step([nn.Parameter(weight)])
    averaged, _ = train(tmp_path / "averaged", num_epochs=1, ema_decay=0.9)
    assert torch.equal(averaged.linear.weight, average.shadow_params[0])


def test_without_a_folder_training_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unsaved, result = train(None, ema_decay=0.9)
    assert list(tmp_path.iterdir()) == []
    saved, expected = train(tmp_path / "saved", ema_decay=0.9)
    assert torch.equal(unsaved.linear.weight, saved.linear.weight)
    assert result.epoch_mean_loss == expected.epoch_mean_loss


def test_bf16_keeps_master_weights_in_float32(tmp_path):
    objective, _ = train(tmp_path, mixed_precision="bf16")
    assert objective.linear.weight.dtype == torch.float32
    assert torch.isfinite(objective.linear.weight).all()


def test_data_smaller_than_a_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no batch to train on: fewer items than batch_size"):
        fit(Regression(), Rows(0), run_dir=tmp_path, num_epochs=1, learning_rate=0.1)
