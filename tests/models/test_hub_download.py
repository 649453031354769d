"""Downloads from a hub of our own: what is fetched, resumed, verified and refused."""

import logging
import shutil
import time

import pytest
import torch

import tiny
from clipgraft.errors import CheckpointError
from clipgraft.models import hub as hub_module
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.models.hub import PINS, FileChecksum, Pin, fetch, find_model
from clipgraft.models.weights import Needed, Weights
from hub_server import ask_only, file_entry, serve

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

COMMIT, LATER = "a" * 40, "b" * 40
NEEDED = Needed(("*.json",), (Weights("model"),))


@pytest.fixture
def hub(tmp_path, monkeypatch, clip_dir, base_dir):
    """A hub with a CLIP and a base, and an empty cache."""
    with serve() as served:
        ask_only(served, monkeypatch, tmp_path / "cache")
        served.models = {
            "owner/clip": {COMMIT: shutil.copytree(clip_dir, tmp_path / "clip")},
            "owner/base": {COMMIT: shutil.copytree(base_dir, tmp_path / "base")},
        }
        yield served


@pytest.fixture
def pinned(hub, monkeypatch):
    """The base of that hub with its checksums known, and a copy of it under another name."""
    folder = hub.models["owner/base"][COMMIT]
    entries = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {}
    for name, path in entries.items():
        entry = file_entry(path)
        files[name] = FileChecksum(entry["size"], hub_module.file_sha256(path))
    pin = Pin(COMMIT, files, "CreativeML OpenRAIL-M", mirrors=("gone/base", "other/base"))
    monkeypatch.setitem(PINS, "owner/base", pin)
    hub.models["other/base"] = {LATER: shutil.copytree(folder, folder.parent / "mirror")}
    return pin


def test_a_clip_is_downloaded_once(hub):
    first = load_clip("owner/clip", revision=COMMIT)
    hub.requests.clear()
    again = load_clip("owner/clip", revision=COMMIT)
    assert hub.requests == []
    assert first.tokenizer.get_vocab() == again.tokenizer.get_vocab()


def test_a_base_of_the_hub_says_which_commit_it_is(hub, base):
    loaded = FrozenBase.load("owner/base", revision=COMMIT)
    assert loaded.weight_checksums() == base.weight_checksums()
    assert loaded.record().revision == COMMIT
    assert FrozenBase.load("owner/base").record().revision == COMMIT


def test_pickles_beside_safetensors_are_not_fetched(hub):
    (hub.models["owner/clip"][COMMIT] / "pytorch_model.bin").write_bytes(b"a pickle")
    load_clip("owner/clip", revision=COMMIT)
    assert hub.sent("pytorch_model.bin") == 0
    assert hub.sent("model.safetensors") == 1


def test_pickles_alone_are_refused_with_how_to_convert(hub):
    folder = hub.models["owner/clip"][COMMIT]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"has no model\.safetensors on the hub; .* save_pretrained\(DIR\)"
    ):
        load_clip("owner/clip", revision=COMMIT)


def test_a_wrong_download_is_refused_and_repeated_next_time(hub):
    hub.altered = {"model.safetensors"}
    expected = file_entry(hub.models["owner/clip"][COMMIT] / "model.safetensors")["lfs"]["oid"]
    with pytest.raises(CheckpointError) as caught:
        load_clip("owner/clip", revision=COMMIT)
    for part in ("model.safetensors of owner/clip", expected, "the hub lists", "out of the cache: run again"):
        assert part in str(caught.value)
    hub.altered = set()
    load_clip("owner/clip", revision=COMMIT)


def test_other_text_than_the_hub_lists_is_refused(hub):
    hub.altered = {"config.json"}
    with pytest.raises(CheckpointError, match=r"config\.json of owner/clip has checksum [0-9a-f]{40}, but"):
        load_clip("owner/clip", revision=COMMIT)


def test_a_file_other_than_the_pinned_one_is_refused(hub, pinned):
    path = hub.models["owner/base"][COMMIT] / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.02"))
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json of owner/base .* this package pins"):
        FrozenBase.load("owner/base")


def test_a_cached_file_that_was_changed_is_refused(hub):
    load_clip("owner/clip", revision=COMMIT)
    cached = next((hub.models["owner/clip"][COMMIT].parent / "cache").rglob("model.safetensors"))
    cached.resolve().write_bytes(cached.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors of owner/clip has checksum"):
        load_clip("owner/clip", revision=COMMIT)


def test_a_revision_that_vanished_is_said_with_what_to_do(hub):
    with pytest.raises(
        CheckpointError, match=rf"no revision {LATER} of owner/clip \(any more\); name another"
    ):
        load_clip("owner/clip", revision=LATER)


def test_a_model_that_is_gone_is_said(hub):
    with pytest.raises(CheckpointError, match=r"refused owner/nothing at revision main: .*`hf auth login`"):
        load_clip("owner/nothing")


def test_a_branch_is_recorded_as_its_commit_with_a_warning(hub, caplog):
    loaded = FrozenBase.load("owner/base", revision="main")
    assert loaded.record().revision == COMMIT
    assert "owner/base at revision main is what that holds today; name a commit" in caplog.text


def test_a_branch_of_a_pinned_model_warns_of_missing_checksums(hub, pinned, caplog):
    assert FrozenBase.load("owner/base", revision="main").record().revision == COMMIT
    assert "its files are not compared with this package's own checksums" in caplog.text


def test_a_connection_cut_again_and_again_is_one_line(hub, monkeypatch):
    found = find_model("owner/clip", COMMIT, NEEDED)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the library's own tries

    class Always(set):
        def remove(self, _):
            """Cut it the next time too."""

    hub.cut = Always({"model.safetensors"})
    with pytest.raises(CheckpointError, match=r"the connection to the model hub failed while owner/clip was"):
        fetch(found)


def test_a_mirror_that_does_not_answer_is_passed_over(hub, pinned, base):
    del hub.models["owner/base"]
    hub.models["gone/base"] = {}  # the server breaks down over it
    assert FrozenBase.load("owner/base").weight_checksums() == base.weight_checksums()


@pytest.mark.parametrize("gone", ["model", "commit"])
def test_a_pinned_model_that_is_gone_comes_from_a_mirror(hub, pinned, base, gone, caplog):
    if gone == "model":
        del hub.models["owner/base"]
    else:
        hub.models["owner/base"] = {"c" * 40: hub.models["owner/base"][COMMIT]}
    loaded = FrozenBase.load("owner/base")
    assert loaded.weight_checksums() == base.weight_checksums()
    assert loaded.record().revision == COMMIT
    assert "its copy other/base has the same checksums" in caplog.text
    hub.models.clear()
    assert FrozenBase.load("owner/base").weight_checksums() == base.weight_checksums()


def test_a_mirror_with_other_weights_is_not_asked_for_them(hub, pinned):
    del hub.models["owner/base"]
    path = hub.models["other/base"][LATER] / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="refused owner/base"):
        FrozenBase.load("owner/base")
    assert hub.sent("diffusion_pytorch_model.safetensors") == 0


@pytest.mark.integration
def test_a_connection_that_is_cut_goes_on_where_it_was(hub):
    hub.cut = {"model.safetensors"}
    load_clip("owner/clip", revision=COMMIT)
    assert hub.sent("model.safetensors") == 2


def test_files_that_are_there_are_not_fetched_again(hub):
    hub.altered = {"model.safetensors"}
    with pytest.raises(CheckpointError):
        load_clip("owner/clip", revision=COMMIT)
    hub.requests.clear()
    hub.altered = set()
    load_clip("owner/clip", revision=COMMIT)
    assert hub.sent("model.safetensors") == 1
    assert hub.sent("config.json") == 0


def test_a_text_that_a_cut_off_download_lacks_is_fetched(hub, tmp_path):
    load_clip("owner/clip", revision=COMMIT)
    next((tmp_path / "cache").rglob("snapshots/*/preprocessor_config.json")).unlink()
    load_clip("owner/clip", revision=COMMIT)
    assert hub.sent("model.safetensors") == 1


def test_half_precision_is_downloaded_only_if_it_is_used(hub, base):
    folder = hub.models["owner/base"][COMMIT]
    tiny.halve(folder)
    FrozenBase.load("owner/base", revision=COMMIT, dtype=torch.bfloat16)
    assert hub.sent("diffusion_pytorch_model.fp16.safetensors") == 2
    assert hub.sent("diffusion_pytorch_model.safetensors") == 0
    full = FrozenBase.load("owner/base", revision=COMMIT)
    assert full.weight_checksums() == base.weight_checksums()


def test_a_token_of_the_environment_is_sent_and_written_nowhere(hub, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_sentinelsentinel")
    load_clip("owner/clip", revision=COMMIT)
    assert "Bearer hf_sentinelsentinel" in hub.tokens
    assert "sentinel" not in caplog.text
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written
    assert not any(b"sentinel" in path.read_bytes() for path in written)


def test_sizes_are_known_before_a_download(hub):
    found = find_model("owner/clip", COMMIT, NEEDED)
    folder = hub.models["owner/clip"][COMMIT]
    assert found.files == {
        path.name: path.stat().st_size
        for path in folder.iterdir()
        if path.suffix in (".json", ".safetensors")
    }
    assert not any("resolve" in request for request in hub.requests)
