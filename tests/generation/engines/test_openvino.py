"""Networks converted for OpenVINO: kept on disk, verified, converted again after damage."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from engine_world import openvino

import tiny
from clipgraft.files import file_sha256
from clipgraft.models.weights import write_folder_atomically
from helpers import files_of_at_most, import_openvino, resident_kilobytes


class Layer(torch.nn.Module):
    """A network as small as can be, to try how networks are kept."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.layer = torch.nn.Conv2d(4, 4, 1)
        torch.nn.init.constant_(self.layer.weight, weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, sample):
        return (self.layer(sample),)


def run_layer(engine, weight=1.0):
    """Ones through the layer give four times its weight."""
    run = engine.prepare("a layer", Layer(weight), (torch.ones(1, 4, 9, 9),))
    return float(run(torch.ones(2, 4, 8, 8))[0].mean())


def test_kept_network_is_found_and_damaged_one_converted(tmp_path, capsys):
    assert run_layer(openvino(tmp_path)) == 4
    assert "converting a layer" in capsys.readouterr().err
    kept = next(tmp_path.rglob("*.bin"))
    written = kept.stat().st_mtime_ns
    assert run_layer(openvino(tmp_path)) == 4
    assert "converting" not in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == written
    whole_sum = file_sha256(kept)
    kept.write_bytes(kept.read_bytes()[:-4] + b"oops")
    assert run_layer(openvino(tmp_path)) == 4
    assert "is damaged and is converted again" in " ".join(capsys.readouterr().err.split())
    assert file_sha256(kept) == whole_sum


def test_other_weights_or_another_dtype_are_other_networks(tmp_path):
    assert run_layer(openvino(tmp_path)) == 4
    assert run_layer(openvino(tmp_path), weight=2.0) == 8
    assert run_layer(openvino(tmp_path, torch.bfloat16)) == 4
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("num_bytes", "min_compiled", "expected"),
    [(2**31, 1, "abab"), (2**31, 2, "ab"), (2**29, 1, "ab"), (16, 1, "ab")],
)
def test_a_large_network_stays_compiled_for_one_shape(tmp_path, num_bytes, min_compiled, expected):
    engine = type(openvino(tmp_path))(torch.float32, tmp_path, min_compiled=min_compiled)
    template = engine.template("a layer", "its key", Layer(), (torch.ones(1, 4, 9, 9),))
    compiled = []
    run = engine.runner(lambda: compiled.append(shape) or template(), num_bytes)
    for shape in "aabab":
        assert float(run(torch.ones(1 + (shape == "b"), 4, 8, 8))[0].mean()) == 4
    assert "".join(compiled) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone")
def test_weights_on_disk_leave_memory_once_they_are_compiled(tmp_path):
    engine, states = openvino(tmp_path, torch.bfloat16), torch.ones(1, 7, 1024)
    layer = torch.nn.Linear(1024, 1024)
    wrapped = torch.nn.Sequential(layer)
    wrapped.forward = lambda states: (layer(states),)
    run = engine.runner(engine.template("a layer", "its key", wrapped, (states,)), num_bytes=2**22)
    for _ in range(2):
        assert torch.allclose(run(states)[0], layer(states), atol=0.02)
    assert resident_kilobytes(tmp_path / "its key" / "network.bin") == 0


SIGNAL_STACK = """
import ctypes, signal, subprocess, sys
from pathlib import Path
import torch
from clipgraft.generation.engines.openvino import OpenVinoEngine

def network(weight):
    engine, layer = OpenVinoEngine(torch.float32, Path(sys.argv[1])), torch.nn.Conv2d(4, 4, 1)
    wrapped = torch.nn.Sequential(layer)
    wrapped.forward = lambda sample: (layer(sample),)
    run = engine.prepare(f"layer {weight}", wrapped, (torch.ones(1, 4, 9, 9),))
    run(torch.ones(2, 4, 8, 8))
    return run

def stack():
    found = (ctypes.c_uint64 * 3)()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return list(found)

before = stack()
first, second = network(1), network(2)
del first, second  # in the order in which they were made
assert stack() == before, (stack(), before)
signal.signal(signal.SIGCHLD, lambda *_: None)
for _ in range(5):
    subprocess.run(["true"], check=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are Linux's here")
def test_networks_that_are_freed_leave_the_signal_stack(tmp_path):
    openvino(tmp_path)  # skips without it
    done = subprocess.run([sys.executable, "-c", SIGNAL_STACK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


GENERATOR_LEFT = """
import sys
import clipgraft
from clipgraft.sampling_params import InferenceConfig
generator = clipgraft.load(sys.argv[1], inference=InferenceConfig(engine="openvino"))
generator.generate("a dog", num_inference_steps=1)
"""


@pytest.mark.slow
def test_a_script_ends_quietly_with_a_generator_alive(tmp_path):
    openvino(tmp_path)  # skips without it
    tiny.write_base(tmp_path / "base")
    words = [sys.executable, "-c", GENERATOR_LEFT, tmp_path / "base"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Traceback" not in done.stderr


def _as_junk(folder):
    (folder / "network.xml").write_text("junk")
    (folder / "manifest.json").write_text('{"files": {}}')


def _as_signed_junk(folder):
    with write_folder_atomically(folder) as part:
        (part / "network.xml").write_text("junk")
        (part / "network.bin").write_bytes(b"junk")


def _as_file(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


DAMAGE = {
    "manifest is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest is deep": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "manifest is gone": lambda folder: (folder / "manifest.json").unlink(),
    "nothing is listed and the network is junk": _as_junk,
    "the network is junk that its manifest lists": _as_signed_junk,
    "the folder is a file": _as_file,
    "the folder is empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A converted layer."""
    folder = tmp_path_factory.mktemp("openvino")
    assert run_layer(openvino(folder)) == 4
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_the_damage_a_network_is_converted_anew(damage, kept, tmp_path, capsys):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    [folder] = tmp_path.iterdir()
    DAMAGE[damage](folder)
    capsys.readouterr()
    assert run_layer(openvino(tmp_path)) == 4
    assert "is damaged and is converted again" in " ".join(capsys.readouterr().err.split())
    assert run_layer(openvino(tmp_path)) == 4
    assert "converted anew" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_full_disk_keeps_no_network_and_still_generates(tmp_path, capsys):
    engine = openvino(tmp_path)
    with files_of_at_most(100):
        assert run_layer(engine) == 4
    assert "cannot be kept" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_kept_is_used_all_the_same(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert run_layer(openvino(blocked)) == 4
    assert "cannot be kept for the next time" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_openvino_tells_nobody_what_it_converts():
    import_openvino()
    code = (
        "import sys, clipgraft.generation.engines.openvino; from openvino.tools.ovc import telemetry_utils; "
        "print(telemetry_utils.tm.__name__, any('openvino_telemetry.' in name for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


def test_processes_may_convert_at_once(tmp_path):
    own, others = openvino(tmp_path), openvino(tmp_path)
    keep = own._keep

    def keep_after_the_other(model, folder):
        run_layer(others)
        keep(model, folder)

    own._keep = keep_after_the_other
    assert run_layer(own) == 4
    assert len(list(tmp_path.iterdir())) == 1
