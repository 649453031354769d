"""Time and memory that a stage leaves in its folder."""

import gc
import json
import sys
import time
import weakref

import pytest

from clipgraft.config import Recipe
from clipgraft.runs.folder import is_locked
from clipgraft.runs.resources import recorded_resources
from clipgraft.runs.run import Run


def used(folder):
    return json.loads((folder / "resources.json").read_text())


def test_stage_leaves_what_it_used_and_a_resumed_one_adds_to_it(tmp_path):
    folder = tmp_path / "stage"
    found = []
    for resume in (False, True):
        with Run.begin(folder, Recipe(), resume=resume):
            time.sleep(0.2)
        found.append(used(folder))
    assert found[0]["seconds"] >= 0.2
    assert found[1]["seconds"] >= found[0]["seconds"] + 0.2
    assert found[1]["peak_memory_bytes"] >= found[0]["peak_memory_bytes"] > 10**7


def test_stage_that_fails_leaves_what_it_used_as_well(tmp_path):
    folder = tmp_path / "stage"
    with (
        pytest.raises(KeyboardInterrupt),
        Run.begin(folder, Recipe()),
    ):
        raise KeyboardInterrupt
    assert used(folder)["processor_seconds"] >= 0
    assert not is_locked(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's peak anew")
def test_stage_has_its_own_peak_and_a_whole_run_the_highest(tmp_path):
    sizes = {"first": 40, "second": 240, "third": 40}  # above 32 MiB glibc always maps memory of its own
    with recorded_resources(tmp_path):
        for stage, megabytes in sizes.items():
            (tmp_path / stage).mkdir()
            with recorded_resources(tmp_path / stage):
                assert len(b"1" * (megabytes * 10**6)) == megabytes * 10**6
    first, second, third, whole = (used(tmp_path / stage)["peak_memory_bytes"] for stage in (*sizes, ""))
    assert second - first == pytest.approx(200e6, abs=20e6)
    assert third == pytest.approx(first, abs=20e6)
    assert whole == second


def test_stage_begins_without_models_of_the_stage_before(tmp_path):
    class Model:
        def __init__(self):
            self.layer = self

    gc.disable()
    try:
        before = weakref.ref(Model())
        assert before() is not None
        with recorded_resources(tmp_path):
            assert before() is None
    finally:
        gc.enable()
