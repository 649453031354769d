"""What commands import, and how."""

import gc
import json
import subprocess
import sys

import pytest
from diffusers import LMSDiscreteScheduler

from clipgraft.cli.imports import importing

IDLE_PACKAGES = {
    "datasets",
    "fastapi",
    "imagehash",
    "matplotlib",
    "peft",
    "py3langid",
    "pyarrow",
    "scipy",
    "tensorboard",
    "webdataset",
}
IDLE_ROOMS = {"distilling", "evaluation", "finetuning", "pretraining", "reporting", "studio", "training"}


@pytest.mark.integration
def test_generating_imports_no_package_that_it_does_not_use():
    code = (
        "import json, sys\nfrom clipgraft.cli.imports import importing\n"
        "with importing(): import clipgraft.generation.generate, clipgraft.generation.grid\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    modules = set(json.loads(printed))
    assert "diffusers" in modules
    assert not IDLE_PACKAGES & modules
    assert not {f"clipgraft.{room}" for room in IDLE_ROOMS} & modules


@pytest.mark.slow
def test_packages_hidden_from_libraries_are_there_for_us(tmp_path):
    LMSDiscreteScheduler(use_beta_sigmas=True).save_pretrained(tmp_path)
    code = f"""
import sys, pathlib
from clipgraft.cli.imports import importing
with importing(): from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base_scheduler import load_scheduler
import torch
scheduler = build_scheduler("lms", load_scheduler(pathlib.Path({str(tmp_path)!r})))
scheduler.set_timesteps(2)
assert "scipy.integrate" not in sys.modules
scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))
assert "scipy.integrate" in sys.modules
import peft
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_nothing_is_collected_during_imports(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    frozen = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        import colorsys  # noqa: F401
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_nothing_is_frozen_where_nothing_was_imported():
    frozen = gc.get_freeze_count()
    with importing():
        pass
    assert gc.get_freeze_count() == frozen


def test_a_failed_import_leaves_the_collector_at_work():
    with pytest.raises(ModuleNotFoundError), importing():
        import no_such_package  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
