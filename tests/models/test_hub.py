import hashlib
import logging
import os
import subprocess
import sys

import pytest
from huggingface_hub import constants

from clipgraft.errors import CheckpointError
from clipgraft.models import hub
from clipgraft.models.hub import PINS, embedded_models, hub_is_reachable, resolve_model
from clipgraft.models.weights import Needed, Weights, write_folder_atomically

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEEDED = Needed(("*.json",), (Weights("model"),))


def resolve(name, revision=None):
    return resolve_model(name, part="clip", revision=revision, needed=NEEDED)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """An earlier download of owner/name, laid out as the hub's library does."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--owner--name"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_path_that_exists_is_taken_as_it_is(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./clip", "a/b/c", "base.safetensors"])
def test_a_missing_path_is_named_without_asking_the_hub(name):
    with pytest.raises(FileNotFoundError, match=r"no model at .*; give a folder, a hub id \(owner/name\)"):
        resolve(name)


def test_a_cached_commit_is_taken_without_asking_the_hub(cached, caplog):
    assert resolve("owner/name", COMMIT) == cached
    assert not caplog.records


def test_without_the_hub_main_is_cached_with_warnings(cached, caplog):
    caplog.set_level(logging.WARNING)
    assert resolve("owner/name") == cached
    assert "owner/name without a revision is what its main branch holds today" in caplog.text
    assert "using the copy of owner/name in its cache" in caplog.text


def test_a_download_that_was_cut_off_is_not_taken_for_the_model(cached):
    (cached / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be reached"):
        resolve("owner/name", COMMIT)


def test_named_models_have_a_pinned_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, pin in PINS.items():
        fetch = f"hf download {name} --revision {pin.revision} --local-dir DIR"
        with pytest.raises(CheckpointError, match=fetch):
            resolve(name)


@pytest.mark.integration
@pytest.mark.parametrize("switch", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_an_unreachable_hub_is_reported_within_ten_seconds(tmp_path, switch):
    """In a process of its own, because the hub's library reads its environment once."""
    script = """
import time
from clipgraft.models.hub import CheckpointError, Needed, resolve_model

start = time.perf_counter()
try:
    resolve_model("owner/name", part="clip", needed=Needed((), ()))
except CheckpointError as error:
    print(time.perf_counter() - start, error)
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path)} | switch
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    (line,) = ended.stdout.splitlines()
    seconds, error = line.split(" ", 1)
    assert "no folder owner/name here, and the model hub cannot be reached (" in error
    assert error.endswith("with `hf download owner/name --local-dir DIR` and name DIR instead")
    assert float(seconds) < 10


def test_a_hub_behind_a_blocked_network_is_not_reachable():
    assert not hub_is_reachable(timeout_seconds=1)


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A folder of embedded models with one file, in the place of the package's own."""
    with write_folder_atomically(tmp_path / "flatland") as folder:
        (folder / "clip").mkdir()
        (folder / "clip" / "model.safetensors").write_bytes(b"the weights")
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "flatland")
    embedded_models.cache_clear()
    yield tmp_path / "flatland"
    embedded_models.cache_clear()


def test_an_embedded_model_that_is_whole_is_found(assets):
    assert resolve("flatland") == assets / "clip"


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_an_embedded_file_that_differs_is_named_with_a_remedy(assets, damage):
    file = assets / "clip" / "model.safetensors"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"the weig" if damage == "truncated" else b"The weights")
    with pytest.raises(CheckpointError) as caught:
        resolve("flatland")
    for part in (str(file), expected, "pip install --force-reinstall --no-deps clipgraft", "git checkout"):
        assert part in str(caught.value)


def test_the_shipped_flatland_is_what_its_sums_say():
    assert embedded_models() == hub.ASSETS
    assert sum(file.stat().st_size for file in hub.ASSETS.rglob("*") if file.is_file()) < 40e6
