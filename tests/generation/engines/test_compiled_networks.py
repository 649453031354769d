"""Compiled networks: read from the cache to the same bits, compiled again after damage."""

import zlib

import numpy as np
import pytest
import torch
from engine_world import openvino
from safetensors.numpy import load_file, save_file
from test_openvino import Layer


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The folder of compiled networks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipgraft" / "compiled"


class Layers(torch.nn.Module):
    """Convolutions of fixed weights."""

    def __init__(self, weight):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                Layer(weight).layer, torch.nn.SiLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.GroupNorm(2, 4)
            )

    def forward(self, sample):
        return (self.layers(sample),)


def run_layers(folder, weight=1.0, dtype=torch.float32):
    run = openvino(folder, dtype).prepare("layers", Layers(weight), (torch.ones(1, 4, 9, 9),))
    return run(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)))[0]


def write_blob(path, key, blob):
    save_file({key: blob}, path, metadata={key: str(zlib.crc32(blob.data))})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_network_gives_the_same_bits(compiled, tmp_path, dtype):
    first = run_layers(tmp_path, dtype=dtype)
    [file] = compiled.iterdir()
    written = file.read_bytes()
    assert torch.equal(run_layers(tmp_path, dtype=dtype), first)
    assert [path.read_bytes() for path in compiled.iterdir()] == [written]


def test_a_kept_network_is_what_runs(compiled, tmp_path):
    one = run_layers(tmp_path, weight=1.0)
    [file] = compiled.iterdir()
    two = run_layers(tmp_path, weight=2.0)
    [other] = set(compiled.iterdir()) - {file}
    (key,), (blob,) = load_file(file), load_file(other).values()
    write_blob(file, key, blob)
    assert torch.equal(run_layers(tmp_path, weight=1.0), two)
    assert not torch.equal(one, two)


def test_another_size_is_another_compiled_network(compiled, tmp_path):
    run = openvino(tmp_path).prepare("a layer", Layer(), (torch.ones(1, 4, 9, 9),))
    for size in (8, 16, 8):
        run(torch.ones(2, 4, size, size))
    assert len(list(compiled.iterdir())) == 2


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a bit is flipped": _flip,
    "it is cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "it is empty": lambda file: file.write_bytes(b""),
    "it is junk": lambda file: file.write_text("junk"),
    "it is gone": lambda file: file.unlink(),
    "OpenVINO cannot read it": lambda file: write_blob(file, *load_file(file), np.zeros(99, np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_the_damage_a_network_is_compiled_anew(compiled, tmp_path, damage):
    first = run_layers(tmp_path)
    [file] = compiled.iterdir()
    DAMAGE[damage](file)
    for _ in range(3):
        assert torch.equal(run_layers(tmp_path), first)
    assert len(list(compiled.iterdir())) == 1


def test_without_a_cache_that_can_be_written_it_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.isfinite(run_layers(tmp_path)).all()
