"""A run's state on disk: what of it is missing or does not fit is refused by name."""

import json

import pytest
import torch

from clipgraft.errors import CheckpointError
from clipgraft.training.checkpoints import CheckpointManager, TrainingState
from clipgraft.training.run_log import LOG_NAME, NO_ROWS
from regression import Regression, rewrite


def state_of(module=None, **values) -> TrainingState:
    module = module or Regression()
    optimizer = torch.optim.AdamW(parameter for parameter in module.parameters() if parameter.requires_grad)
    return TrainingState(module, optimizer, **values)


def save(folder, state):
    return CheckpointManager(folder, keep=9).save(state, num_steps=0, rows={LOG_NAME: NO_ROWS})


def load(folder, state, step=0):
    checkpoints = CheckpointManager(folder)
    checkpoints.restore(checkpoints.read(step), state)


def test_checkpoint_of_a_cpu_restores_on_another_device(tmp_path):
    device = "cuda" if torch.cuda.is_available() else "meta"
    save(tmp_path, state_of(step=3))
    restored = state_of(Regression().to(device))
    load(tmp_path, restored, step=3)
    assert restored.step == 3
    assert restored.module.linear.weight.device.type == device


@pytest.mark.parametrize("wrong", [None, "3", [3], {}, 1.5, True])
@pytest.mark.parametrize(
    "name", ["version", "step", "skipped_steps", "num_steps", "data", "settings", "mixed_precision", "rows"]
)
def test_value_of_a_wrong_type_is_refused_by_name(tmp_path, name, wrong):
    folder = save(tmp_path, state_of())
    before = json.loads((folder / "state.json").read_text())[name]
    if type(wrong) is type(before):
        return
    rewrite(folder, lambda values, _: values.update({name: wrong}))
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load(tmp_path, state_of())


@pytest.mark.parametrize(
    "rows", [{"log.jsonl": [1]}, {"log.jsonl": [1, 2]}, {"log.jsonl": {}}, {"log.jsonl": 0}]
)
def test_sum_of_rows_of_a_wrong_type_is_refused(tmp_path, rows):
    rewrite(save(tmp_path, state_of()), lambda values, _: values.update(rows=rows))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged in rows"):
        load(tmp_path, state_of())


def test_checkpoint_of_another_version_names_the_way_on(tmp_path):
    rewrite(save(tmp_path, state_of()), lambda values, _: values.pop("version"))
    with pytest.raises(CheckpointError, match=r"whose steps differ; resume with that version"):
        load(tmp_path, state_of())


@pytest.mark.parametrize(
    "name",
    ["weight.linear.bias", "optimizer.0.exp_avg", "optimizer.7.step", "optimizer.x.step", "optimizer", "z"],
)
def test_missing_or_unknown_tensors_are_refused_by_name(tmp_path, name):
    state = state_of()
    state.module({"x": torch.ones(8, 4)})[0].backward()
    state.optimizer.step()
    folder = save(tmp_path, state)

    def change(_, tensors):
        if tensors.pop(name, None) is None:
            tensors[name] = torch.ones(1)

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=f"is of another model; differing: {name}"):
        load(tmp_path, state_of())


def test_checkpoint_of_another_precision_is_refused(tmp_path):
    save(tmp_path, state_of(mixed_precision="bf16"))
    assert CheckpointManager(tmp_path).saved_precision() == "bf16"
    with pytest.raises(CheckpointError, match="made with mixed_precision 'bf16', but this run uses 'no'"):
        load(tmp_path, state_of(mixed_precision="no"))


def test_checkpoint_without_the_scalers_state_is_refused(tmp_path):
    save(tmp_path, state_of(mixed_precision="fp16"))
    scaled = state_of(mixed_precision="fp16", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(CheckpointError, match="has no state of the gradient scaler, which 'fp16' needs;"):
        load(tmp_path, scaled)


def test_precision_is_read_from_the_newest_readable_checkpoint(tmp_path):
    assert CheckpointManager(tmp_path).saved_precision() == ""
    save(tmp_path, state_of(mixed_precision="bf16"))
    newer = save(tmp_path, state_of(step=1))
    (newer / "state.json").write_text("{")
    assert CheckpointManager(tmp_path).saved_precision() == "bf16"
