"""The benchmark of generation says how far the measured engine is from the fastest."""

import json
import sys
from pathlib import Path

import pytest
import torch

from clipgraft.device import inference_dtype
from clipgraft.generation.engines.engine import why_no_openvino

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_generation

MISSING = why_no_openvino(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_the_chosen_engine_is_compared_with_all_others(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_generation, "RESULT", tmp_path / "generation.json")
    monkeypatch.setattr(sys, "argv", ["bench", "--rows", "flatland_auto", "--repeats", "5"])
    bench_generation.main()
    row = json.loads((tmp_path / "generation.json").read_text())["flatland_auto"]
    seconds = row["median_seconds"]
    dtype = str(inference_dtype(torch.device("cpu"))).removeprefix("torch.")
    engines = [seconds[f"{engine} engine {dtype}"] for engine in ("torch", "openvino")]
    assert row["auto / fastest engine"] == seconds[f"{row['chosen']} engine {dtype}"] / min(engines)
    assert row["auto / fastest engine"] < 1.5  # 1.03 on a quiet machine
    assert row["faster stock / auto"] > 0
