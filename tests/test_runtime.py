"""Device, precision and the run's folder."""

import json
import sys

import pytest
import torch

from clipgraft.runtime import (
    choose_device,
    choose_mixed_precision,
    describe_environment,
    inference_dtype,
    write_json,
)

CPU = torch.device("cpu")


def test_fp16_on_a_cpu_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'fp16' needs a GPU .* on a CPU use 'bf16' or 'no'"):
        choose_mixed_precision("fp16", CPU)


def test_auto_precision_on_a_gpu_is_the_seed_recipes_fp16():
    assert choose_mixed_precision("auto", torch.device("cuda")) == "fp16"
    assert choose_mixed_precision("auto", CPU) in ("no", "bf16")


def test_nothing_is_drawn_in_float16_on_a_cpu():
    assert inference_dtype(CPU) in (torch.float32, torch.bfloat16)


def test_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or mps; got 'tpu'"):
        choose_device("tpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_device_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="device 'mps' is not available"):
        choose_device("mps")


def test_environment_names_no_user_or_absolute_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clipgraft", "finetune", "--data", "/home/someone/photos"])
    text = json.dumps(describe_environment(CPU))
    assert "someone" not in text
    assert "--data photos" in text


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    write_json(tmp_path / "x.json", {"loss": float("nan"), "rows": [1.0, float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": None, "rows": [1.0, None]}
