"""A disk that is full at any file of a training: one line says so, and with room again the run goes on."""

import pytest
import torch

from clipgraft.errors import CheckpointError, is_user_error, one_line
from clipgraft.models.weights import write_tensors
from helpers import files_of_at_most
from regression import read_log, rows_of, run

LIMITS = [0, 50, 150, 400, 700, 900, 1100, 1500, 2000, 3000, 4000]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


@pytest.mark.parametrize("limit", LIMITS)
def test_full_disk_is_one_line_and_the_run_resumes_from_there(tmp_path, unbroken, limit):
    with files_of_at_most(limit), pytest.raises((OSError, CheckpointError)) as caught:
        run(tmp_path)
    assert is_user_error(caught.value)
    assert one_line(caught.value).startswith("no space left")
    assert not list(tmp_path.rglob("*.part"))
    expected_folder, expected = unbroken
    resumed = run(tmp_path, resume=True)
    assert torch.equal(resumed.linear.weight, expected.linear.weight)
    assert read_log(tmp_path) == read_log(expected_folder)
    assert rows_of(tmp_path) == rows_of(expected_folder)


def test_each_kind_of_file_is_named_where_it_fills_the_disk(tmp_path):
    for name, limit, metric in (
        ("evaluations.jsonl", 50, ""),
        ("log.jsonl", 100, ""),
        ("best.safetensors", 150, "recall"),
        ("step-00000004", 1000, ""),
        ("log.jsonl", 4000, "recall"),
    ):
        with files_of_at_most(limit), pytest.raises((OSError, CheckpointError)) as caught:
            run(tmp_path / f"{name}{limit}", metric=metric)
        assert name in one_line(caught.value)


def test_tensors_are_whole_or_as_they_were_on_a_full_disk(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    with files_of_at_most(1000), pytest.raises(OSError, match="too large") as caught:
        write_tensors(path, {"a": torch.ones(1000)})
    assert one_line(caught.value) == f"no space left on the disk ({path}); free some and run again"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
