"""The faster engine is measured at an architecture's first use, and taken from then on."""

import json
import time
import weakref
from functools import partial
from typing import ClassVar

import pytest
import torch
from engine_world import CPU

from clipgraft.device import num_processes
from clipgraft.generation.engines import choice
from clipgraft.generation.engines.choice import choose_engine, fastest_steps, prefer
from clipgraft.generation.engines.engine import engines_at_hand, why_no_openvino
from clipgraft.generation.generator import load
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig

AUTO = InferenceConfig()
needs_two_engines = pytest.mark.skipif(bool(why_no_openvino(CPU)), reason=why_no_openvino(CPU))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Where choices are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipgraft" / "measured"


def kept_choice(folder):
    """The file of the only choice of an engine."""
    found = [path for path in folder.glob("*.json") if "openvino" in json.loads(path.read_text())["seconds"]]
    assert len(found) <= 1
    return found[0] if found else None


def engine_in_use(base, inference=AUTO):
    return load(base, device="cpu", inference=inference).models["engine"]


@pytest.mark.integration
@needs_two_engines
def test_the_engine_is_measured_once_and_the_kept_file_decides(base, measured, capsys):
    first = engine_in_use(base)
    said = capsys.readouterr().err
    assert f"note: engine {first}: a guided step of base at 64 px takes openvino " in said
    path = kept_choice(measured)
    content = json.loads(path.read_text())
    assert content["chosen"] == first
    assert {"openvino", "torch"} == content["seconds"].keys()
    for engine in ("openvino", "torch"):
        path.write_text(json.dumps(content | {"chosen": engine}))
        assert engine_in_use(base) == engine
    assert engine_in_use(base, InferenceConfig(engine="openvino")) == "openvino"
    assert engine_in_use(base, InferenceConfig(feature_cache=2)) == "torch"  # the kept one holds
    assert "note: engine" not in capsys.readouterr().err


@needs_two_engines
def test_nothing_is_measured_where_it_would_not_hold(base, cache, measured, monkeypatch):
    light, engines = FrozenBase.load(str(base), components=["tokenizer"]), engines_at_hand(AUTO, CPU, cache)
    assert choose_engine(engines, light, can_measure=False).name == "openvino"
    assert choose_engine(engines[1:], light).name == "torch"
    launched = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "::1",
        "MASTER_PORT": "29500",
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert num_processes() == 2
    assert choose_engine(engines, light).name == "openvino"
    assert kept_choice(measured) is None


def test_torch_is_chosen_where_it_is_hardly_slower():
    cases = {"openvino": (1.0, 2.0), "torch": (2.0, 1.0)}, {"torch": (1.0, 1.029), "openvino": (1.0, 1.031)}
    for chosen, seconds in (case for group in cases for case in group.items()):
        assert prefer(dict(zip(("openvino", "torch"), seconds, strict=True))) == chosen


class Sleeper:
    """A step that sleeps, the first time for longer; counts those alive."""

    alive: ClassVar[list[str]] = []
    loaded: ClassVar[list[str]] = []

    def __init__(self, name, seconds):
        self.seconds, self.first = seconds, 0.2
        self.myself = self  # as in a U-Net, only a collection of cycles frees it
        assert not self.alive, f"{self.alive} and {name} are in memory"
        self.loaded.append(name)
        self.alive.append(name)
        weakref.finalize(self, self.alive.remove, name)

    def __call__(self):
        time.sleep(self.first + self.seconds)
        self.first = 0.0


@pytest.mark.integration
@pytest.mark.parametrize(("seconds", "rounds"), [((0.002, 0.02), 2), ((0.02, 0.02), 3)])
def test_steps_are_timed_with_one_network_in_memory(monkeypatch, seconds, rounds):
    monkeypatch.setattr(choice, "MAX_STEPS", 5)
    Sleeper.loaded.clear()
    names = dict(zip(("openvino", "torch"), seconds, strict=True))
    found = fastest_steps({name: partial(Sleeper, name, each) for name, each in names.items()})
    assert Sleeper.loaded == ["openvino", "torch"] * rounds
    assert not Sleeper.alive
    for name, least in found.items():
        assert names[name] <= least < names[name] + 0.015  # without the first


def test_a_gpu_has_one_engine(tmp_path):
    assert [engine.name for engine in engines_at_hand(AUTO, torch.device("cuda"), tmp_path)] == ["torch"]


@needs_two_engines
@pytest.mark.parametrize(("interval", "expected"), [((0.0, 1.0), 1), ((0.0, 0.5), 2)])
def test_shapes_that_take_turns_both_stay_compiled(tmp_path, interval, expected):
    engine = engines_at_hand(InferenceConfig(guidance_interval=interval), CPU, tmp_path)[0]
    assert engine.min_compiled == expected
