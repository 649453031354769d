"""The faster engine is measured once on a machine, and remembered."""

import json
import time

import pytest
import torch
from engine_world import CPU

from clipgraft.cli.doctor import examine
from clipgraft.device import num_processes
from clipgraft.generation.engines.choice import Machine, Measured, choose_engine, fastest_turns, kept_choices
from clipgraft.generation.engines.engine import engines_at_hand, why_no_openvino
from clipgraft.generation.generator import load
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig

AUTO = InferenceConfig()
needs_two_engines = pytest.mark.skipif(bool(why_no_openvino(CPU)), reason=why_no_openvino(CPU))


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Where choices are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipgraft" / "engines"


@pytest.fixture
def choose(base, cache):
    """Return the name of the engine that is chosen for the tiny base."""
    light = FrozenBase.load(str(base), components=["tokenizer"])

    def chosen(**options):
        return choose_engine(engines_at_hand(AUTO, CPU, cache), light, **options).name

    return chosen


def engine_in_use(base, inference=AUTO):
    return load(base, device="cpu", inference=inference).models["engine"]


def keep(engines, **seconds):
    """Write other seconds into the only kept file."""
    (path,) = engines.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    return path


@needs_two_engines
def test_the_engine_is_measured_once_and_the_kept_file_decides(base, engines, capsys):
    first = engine_in_use(base)
    assert f"note: engine: {first} " in capsys.readouterr().err
    kept = json.loads(next(engines.glob("*.json")).read_text())
    assert {"openvino", "torch"} == kept["seconds"].keys()
    assert min(kept["seconds"].values()) > 0
    for seconds, expected in (((1.0, 2.0), "openvino"), ((2.0, 1.0), "torch")):
        path = keep(engines, **dict(zip(("openvino", "torch"), seconds, strict=True)))
        content = path.read_bytes()
        assert engine_in_use(base) == expected
        assert path.read_bytes() == content
    assert engine_in_use(base, InferenceConfig(engine="openvino")) == "openvino"
    assert "note: engine" not in capsys.readouterr().err


@needs_two_engines
def test_a_damaged_choice_is_measured_again(choose, engines, capsys):
    choose()
    (path,) = engines.glob("*.json")
    whole = json.loads(path.read_text())
    damaged = [
        b"",
        b"\xff\xfe{",
        b"[]",
        path.read_bytes()[:-20],
        json.dumps(whole | {"seconds": {"torch": -1.0, "openvino": 1.0}}).encode(),
        json.dumps(whole | {"seconds": {"torch": "1", "openvino": 1.0}}).encode(),
        json.dumps(whole | {"seconds": {"openvino": 1.0}}).encode(),
    ]
    for content in damaged:
        path.write_bytes(content)
        assert list(kept_choices()) == []
    path.write_text(json.dumps(whole | {"seconds": {"torch": 1.0}}))
    capsys.readouterr()
    choose()
    assert "the kept choice of an engine is damaged and is measured again" in capsys.readouterr().err
    assert json.loads(path.read_text())["seconds"].keys() == whole["seconds"].keys()


@needs_two_engines
def test_two_numbers_of_threads_have_two_choices(choose, engines):
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 1):
            torch.set_num_threads(num_threads)
            choose()
    finally:
        torch.set_num_threads(before)
    kept = [json.loads(path.read_text()) for path in engines.glob("*.json")]
    assert sorted(choice["machine"]["num_threads"] for choice in kept) == [1, 2]


@needs_two_engines
def test_a_choice_that_cannot_be_kept_is_made_anew(choose, engines, capsys):
    engines.parent.mkdir(parents=True)
    engines.write_text("in the way")
    assert choose() in ("openvino", "torch")
    assert f"which cannot be kept in {engines}: " in capsys.readouterr().err


@needs_two_engines
def test_nothing_is_measured_where_it_would_not_hold(choose, engines, monkeypatch):
    assert choose(can_measure=False) == "openvino"
    with monkeypatch.context() as launched:
        for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
            launched.setenv(name, value)
        launched.setenv("MASTER_ADDR", "127.0.0.1")
        launched.setenv("MASTER_PORT", "29500")
        assert num_processes() == 2
        assert choose() == "openvino"
    assert not engines.exists()


@needs_two_engines
def test_doctor_shows_the_choices_of_this_machine(choose, engines):
    choose()
    path = keep(engines, openvino=2.5, torch=0.0625)
    other = json.loads(path.read_text())
    other["machine"]["cpu"] = "another one"
    path.with_name("other.json").write_text(json.dumps(other))
    path.with_name("damaged.json").write_text("{")
    shown = [finding.value for finding in examine() if "a guided step" in finding.value]
    assert shown == ["torch 62.5 ms a guided step, openvino 2.50 s"]


@pytest.mark.parametrize(
    ("openvino", "torch", "chosen"),
    [(1.0, 2.0, "openvino"), (2.0, 1.0, "torch"), (1.0, 1.029, "torch"), (1.0, 1.031, "openvino")],
)
def test_torch_is_chosen_where_it_is_hardly_slower(openvino, torch, chosen):
    machine = Machine(cpu="one", num_threads=2, versions={})
    seconds = {"openvino": openvino, "torch": torch}
    assert Measured(base="a", side=64, dtypes={}, seconds=seconds, machine=machine).chosen == chosen


def test_turns_find_the_time_of_a_step_without_its_first():
    calls = []

    def compiled():
        time.sleep(0.002 if calls else 0.4)
        calls.append(0)

    begun = time.monotonic()
    found = fastest_turns({"compiled": compiled, "eager": lambda: time.sleep(0.01)})
    assert time.monotonic() - begun < 3
    assert 0.002 <= found["compiled"] < 0.008
    assert 0.01 <= found["eager"] < 0.04


def test_a_gpu_has_one_engine(tmp_path):
    assert [engine.name for engine in engines_at_hand(AUTO, torch.device("cuda"), tmp_path)] == ["torch"]
