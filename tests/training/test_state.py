"""A run's state on disk: what of it is missing or does not fit is refused by name."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loop import Regression

from clipgraft.errors import CheckpointError
from clipgraft.training.state import TrainingState, load_state, save_state, saved_precision


def state_of(module=None, **values) -> TrainingState:
    module = module or Regression()
    optimizer = torch.optim.AdamW(parameter for parameter in module.parameters() if parameter.requires_grad)
    return TrainingState(module, optimizer, **({"average": None, "scaler": None, "fingerprint": ""} | values))


def test_checkpoint_without_a_random_state_is_refused_by_name(tmp_path):
    folder = save_state(tmp_path, state_of(), keep=1)
    path = folder / "tensors.safetensors"
    tensors = load_file(path)
    del tensors["random.cpu"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lacks 'random\.cpu', which this run needs to go on"):
        load_state(folder, state_of())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")
def test_checkpoint_of_a_cpu_is_refused_by_name_on_cuda_and_the_other_way_round_it_is_taken(tmp_path):
    on_cpu = save_state(tmp_path / "cpu", state_of(), keep=1)
    with pytest.raises(CheckpointError, match=r"lacks 'random\.cuda', which this run needs to go on"):
        load_state(on_cpu, state_of(Regression().cuda()))
    torch.manual_seed(5)
    on_cuda = save_state(tmp_path / "cuda", state_of(Regression().cuda()), keep=1)
    expected = torch.rand(3, device="cuda")
    load_state(on_cuda, state_of())
    load_state(on_cuda, state_of(Regression().cuda()))
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_checkpoint_of_another_precision_is_refused(tmp_path):
    folder = save_state(tmp_path, state_of(mixed_precision="bf16"), keep=1)
    assert saved_precision(tmp_path) == "bf16"
    with pytest.raises(CheckpointError, match="made in mixed_precision 'bf16', and this run is in 'no'"):
        load_state(folder, state_of(mixed_precision="no"))


def test_checkpoint_without_the_gradient_scalers_state_is_refused(tmp_path):
    folder = save_state(tmp_path, state_of(mixed_precision="fp16"), keep=1)
    scaled = state_of(mixed_precision="fp16", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(CheckpointError, match="has no state of the gradient scaler, which 'fp16' needs here"):
        load_state(folder, scaled)


def test_precision_is_read_from_the_newest_checkpoint_that_can_be_read(tmp_path):
    assert saved_precision(tmp_path) == ""
    save_state(tmp_path, state_of(mixed_precision="bf16"), keep=2)
    newer = save_state(tmp_path, state_of(step=1), keep=2)
    (newer / "state.json").write_text("{")
    assert saved_precision(tmp_path) == "bf16"
