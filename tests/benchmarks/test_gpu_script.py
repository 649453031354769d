"""benchmarks/gpu.sh, rehearsed on the CPU: all parts, stopped on the way and run again."""

import json
import os
import subprocess
import sys

import pytest
import torch

from conftest import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.slow
PARTS = ["training_32", "training_256", "generation_1", "generation_16"]


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    words = ["bash", SCRIPT, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_how_to_rehearse(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "no CUDA GPU: torch.cuda.is_available() is false; --rehearse"
    )


def test_rehearsal_answers_every_part_and_resumes(tmp_path):
    stopped = run("--rehearse", tmp_path, "0.6")  # minutes: enough for a part or none
    assert stopped.returncode == 1
    out = tmp_path / "rehearsal"
    kept = {path.name: path.read_bytes() for path in out.glob("*.json") if path.name != "gpu.json"}
    assert json.loads((out / "gpu.json").read_text())["missing"]
    done = run("--rehearse", tmp_path, "30")
    assert done.returncode == 0, done.stderr
    assert all((out / name).read_bytes() == content for name, content in kept.items())
    merged = json.loads((out / "gpu.json").read_text())
    assert merged["missing"] == {}
    measured = {name: part["contenders"] for name, part in merged["parts"].items() if "contenders" in part}
    assert set(measured) == {*PARTS, *(f"{name}_compiled" for name in PARTS)}
    assert [found for part in measured.values() for found in part.values() if "failed" in found] == []
    tests = [test for part in merged["parts"].values() for test in part.get("tests", {}).values()]
    assert {test["outcome"] for test in tests} == {"passed", "skipped"}
