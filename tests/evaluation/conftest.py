"""A run of tiny models, and its evaluation."""

from pathlib import Path

import pytest
import torch
from evaluated import SETTINGS, evaluate_run

import tiny
from clipgraft.config import Recipe
from clipgraft.runs.run import Run
from clipgraft.whole_run import run_all


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory) -> Path:
    """A run of tiny models, not evaluated; 8 of its images are for testing."""
    folder = tmp_path_factory.mktemp("evaluated")
    recipe = Recipe.model_validate(
        {
            "data": {"source": str(tiny.write_flickr8k(folder / "data", 48))},
            "clip": {"name": str(tiny.write_clip(folder / "clip"))},
            "base": {"name": str(tiny.write_base(folder / "base"))},
            "finetune": {"batch_size": 8, "num_epochs": 1, "learning_rate": 1e-3},
            "bridge": {"num_epochs": 0},
            "generate": {"num_inference_steps": 1},
        }
    )
    with Run.begin(folder / "run", recipe) as run:
        run_all(recipe, run.path)
    return folder / "run"


@pytest.fixture(scope="session")
def record(run_dir):
    """What evaluation.json of the run holds; computed with one thread, as each of several processes does."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = evaluate_run(run_dir, SETTINGS | {"evaluate.force": True})
    torch.set_num_threads(num_threads)
    return found
