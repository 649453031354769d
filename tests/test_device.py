"""Device, precision and the run's folder."""

import json
import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from clipgraft.cache import cache_dir
from clipgraft.cli.doctor import examine
from clipgraft.device import (
    _say_bf16_is_emulated,
    choose_device,
    choose_mixed_precision,
    describe_environment,
    inference_dtype,
    num_processes,
)
from clipgraft.errors import UserError

CPU = torch.device("cpu")


def test_fp16_on_a_cpu_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'fp16' needs a GPU .* on a CPU use 'bf16' or 'no'"):
        choose_mixed_precision("fp16", CPU)


def test_auto_precision_on_a_gpu_is_bf16_if_it_has_it(monkeypatch):
    for has_bf16, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert choose_mixed_precision("auto", torch.device("cuda")) == precision
        assert inference_dtype(torch.device("cuda")) == torch.float16
    assert choose_mixed_precision("auto", CPU) in ("no", "bf16")


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bf16_without_instructions_for_it_is_noted_once(monkeypatch, capsys, has_instructions):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    _say_bf16_is_emulated.cache_clear()
    assert [choose_mixed_precision("bf16", CPU) for _ in range(3)] == ["bf16"] * 3
    said = capsys.readouterr().err
    assert said.count("no instructions for bfloat16") == (0 if has_instructions else 1)
    assert ('mixed_precision = "auto" takes float32' in said) is not has_instructions


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


def test_no_home_folder_is_said_with_what_to_set(monkeypatch):
    def nobody(_user_id):
        raise KeyError("no passwd entry")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match="no home folder to keep a cache in; set XDG_CACHE_HOME"):
        cache_dir()
    assert next(f for f in examine() if f.what == "cache").fix.startswith("no home folder")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    cache = next(finding for finding in examine() if finding.what == "cache")
    assert cache.value == "/proc/nowhere/clipgraft"
    assert cache.fix.endswith("set XDG_CACHE_HOME to a folder that can be written")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo is Linux's")
def test_doctor_tells_memory_without_sysconf(monkeypatch):
    [kilobytes] = re.findall(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())
    monkeypatch.delattr(os, "sysconf")  # Windows has none
    memory = next(finding for finding in examine() if finding.what == "memory")
    assert memory.value == f"{int(kilobytes) * 1024 / 1e9:.1f} GB"


@pytest.mark.parametrize(
    "argument", ["/home/someone/photos", "--data=/home/someone/photos", "data.source=/home/someone/photos"]
)
def test_command_tells_no_folder_of_an_argument(argument, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clipgraft", "finetune", argument])
    command = describe_environment(CPU)["command"]
    assert "someone" not in command
    assert command.endswith("photos")


@pytest.mark.parametrize(
    ("size", "message"), [("2", "RANK, LOCAL_RANK, MASTER_ADDR"), ("x", "and is no number")]
)
def test_number_of_processes_is_one_that_can_be(size, message, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "" if size == "2" else "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match=message):
        num_processes()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert num_processes() == 1
