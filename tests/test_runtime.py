"""Device, precision and the run's folder."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from clipgraft.runtime import (
    LOCK_NAME,
    RECIPE_NAME,
    choose_device,
    choose_mixed_precision,
    describe_environment,
    inference_dtype,
    run_folder,
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


def test_folder_of_another_run_is_left_alone(tmp_path):
    (tmp_path / RECIPE_NAME).write_text("seed = 1")
    with (
        pytest.raises(ValueError, match="already holds files; add --resume or --overwrite"),
        run_folder(tmp_path),
    ):
        pass
    assert (tmp_path / RECIPE_NAME).read_text() == "seed = 1"


def test_overwrite_deletes_a_run_but_nothing_else(tmp_path):
    run, photos = tmp_path / "run", tmp_path / "photos"
    for folder in (run, photos):
        folder.mkdir()
        (folder / "file").write_text("x")
    (run / RECIPE_NAME).write_text("")
    with run_folder(run, overwrite=True):
        assert not (run / "file").exists()
    with pytest.raises(ValueError, match="holds no run"), run_folder(photos, overwrite=True):
        pass
    assert (photos / "file").exists()


def test_second_run_in_a_folder_names_the_first_ones_process(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / LOCK_NAME).write_text(str(other.pid))
        with (
            pytest.raises(ValueError, match=f"process {other.pid} is at work"),
            run_folder(tmp_path, resume=True),
        ):
            pass
    finally:
        other.communicate()


def try_folders(folders, barrier, results):
    for folder in folders:
        barrier.wait()
        try:
            with run_folder(folder, overwrite=True):
                results.put(str(folder))
                barrier.wait()  # nobody lets go before all have tried
        except ValueError:
            barrier.wait()


def test_of_processes_that_start_at_once_one_holds_the_folder(tmp_path):
    folders = [tmp_path / str(index) for index in range(30)]
    for folder in folders:
        folder.mkdir()
        (folder / RECIPE_NAME).write_text("")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3, timeout=60), context.SimpleQueue()
    processes = [context.Process(target=try_folders, args=(folders, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    held = [results.get() for _ in folders]
    assert held == [str(folder) for folder in folders]
    assert results.empty()


def test_lock_of_a_dead_process_does_not_hold(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / LOCK_NAME).write_text(str(dead.pid))
    with run_folder(tmp_path, resume=True) as folder:
        assert (folder / LOCK_NAME).read_text() == str(os.getpid())
    assert not (tmp_path / LOCK_NAME).exists()


def test_out_folder_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="is a file"), run_folder(path):
        pass


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    write_json(tmp_path / "x.json", {"loss": float("nan"), "rows": [1.0, float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": None, "rows": [1.0, None]}
