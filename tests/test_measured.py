"""What was measured on a machine decides from then on, and is measured again where it does not hold."""

import json
import subprocess
import sys

import pytest
import torch

from clipgraft.cli.doctor import examine
from clipgraft.device import cpu_gains_from_bf16
from clipgraft.measured import all_kept, kept, measured_once

WHAT, KEY = "a test", ["test", 1]
TWO_PROCESSES = """
import sys, time
from clipgraft.measured import measured_once

def measure():
    time.sleep(1)
    return sys.argv[1], {"a": 1.0, "b": 2.0}

print(measured_once("a test", "key", measure).chosen)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where measurements are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipgraft" / "measured"


@pytest.fixture
def measure():
    """Return a function that counts its calls, and chooses `fast`."""

    def now():
        now.calls += 1
        return "fast", {"fast": 0.0184, "slow": 2.29}

    now.calls = 0
    return now


def only_file(folder):
    (path,) = folder.glob("*.json")
    return path


def test_it_is_measured_once_and_the_kept_file_decides(folder, measure):
    assert kept(KEY) is None
    assert [measured_once(WHAT, KEY, measure).chosen for _ in range(3)] == ["fast"] * 3
    assert measure.calls == 1
    path = only_file(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chosen": "slow"}))
    assert measured_once(WHAT, KEY, measure).chosen == kept(KEY).chosen == "slow"
    assert measure.calls == 1
    measured_once(WHAT, ["test", 2], measure)
    assert measure.calls == 2
    path.unlink()
    assert measured_once(WHAT, KEY, measure).chosen == "fast"


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: b"",
        lambda whole: b"\xff\xfe{",
        lambda whole: b"[]",
        lambda whole: json.dumps(whole).encode()[:-20],
        lambda whole: json.dumps(whole | {"chosen": "third"}).encode(),
        lambda whole: json.dumps(whole | {"seconds": {"fast": -1.0}}).encode(),
        lambda whole: json.dumps(whole | {"seconds": {"fast": "1"}}).encode(),
        lambda whole: json.dumps(whole | {"more": 1}).encode(),
    ],
)
def test_a_damaged_file_is_measured_again_with_a_note(change, folder, measure, capsys):
    measured_once(WHAT, KEY, measure)
    whole = json.loads(only_file(folder).read_text())
    only_file(folder).write_bytes(change(whole))
    assert list(all_kept()) == []
    assert measured_once(WHAT, KEY, measure).chosen == "fast"
    assert "a measurement in the cache is damaged, and is made again: " in capsys.readouterr().err
    assert measure.calls == 2
    assert json.loads(only_file(folder).read_text()) == whole


def test_each_number_of_threads_is_measured(folder, measure):
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 1):
            torch.set_num_threads(num_threads)
            measured_once(WHAT, KEY, measure)
    finally:
        torch.set_num_threads(before)
    kept_threads = [json.loads(path.read_text())["machine"]["num_threads"] for path in folder.glob("*.json")]
    assert sorted(kept_threads) == [1, 2]
    assert measure.calls == 2


def test_it_is_measured_each_time_without_a_cache(folder, measure, monkeypatch, capsys):
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    assert [measured_once(WHAT, KEY, measure).chosen for _ in range(2)] == ["fast"] * 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("clipgraft.cache.Path.home", homeless)
    assert measured_once(WHAT, KEY, measure).chosen == "fast"
    assert measure.calls == 3
    assert list(all_kept()) == []
    assert capsys.readouterr().err == ""


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_an_error_while_measuring_is_raised_and_nothing_kept(folder):
    def fails():
        raise ValueError("no such way")

    with pytest.raises(ValueError, match="no such way"):
        measured_once(WHAT, KEY, fails)
    assert list(folder.glob("*")) == []


@pytest.mark.slow
def test_of_two_processes_one_measures_for_both(folder):
    words = [sys.executable, "-c", TWO_PROCESSES]
    started = [subprocess.Popen([*words, way], stdout=subprocess.PIPE, text=True) for way in "ab"]
    said = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1] in ("a\n", "b\n")


def test_doctor_shows_what_holds_on_this_machine(folder, measure):
    measured_once("a step of a test", KEY, measure)
    other = json.loads(only_file(folder).read_text())
    other["machine"]["cpu"] = "another one"
    (folder / "other.json").write_text(json.dumps(other))
    (folder / "damaged.json").write_text("{")
    shown = {finding.what: finding.value for finding in examine()}
    assert shown["a step of a test"] == "fast is used: fast 18.4 ms, slow 2.29 s"


@pytest.mark.integration
def test_the_dtype_of_a_cpu_is_measured_once(folder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    cpu_gains_from_bf16.cache_clear()
    gains = cpu_gains_from_bf16()
    content = json.loads(only_file(folder).read_text())
    assert gains == (content["seconds"]["float32"] > 1.2 * content["seconds"]["bfloat16"])
    only_file(folder).write_text(json.dumps(content | {"chosen": "float32" if gains else "bfloat16"}))
    cpu_gains_from_bf16.cache_clear()
    assert cpu_gains_from_bf16() == (not gains)
    cpu_gains_from_bf16.cache_clear()
