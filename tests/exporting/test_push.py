"""Exports pushed to a hub of our own: private, whole, resumed, refused in one line."""

import json
import shutil
import time

import pytest
from distilled_world import PROMPTS
from huggingface_hub import constants

from clipgraft.exporting.export import export
from clipgraft.models.weights import MANIFEST_NAME
from helpers import call, refused
from hub_server import ask_only, serve

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

TOKEN = "hf_sentinelsentinel"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve() as served:
        ask_only(served, monkeypatch, tmp_path / "cache")
        # The small hub has large files by git LFS alone, not by the hub's own storage.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        served.store = tmp_path / "store"
        served.writers = {f"Bearer {TOKEN}"}
        yield served


@pytest.fixture(scope="module")
def folder(distilled, tmp_path_factory):
    return export(distilled, tmp_path_factory.mktemp("push") / "pipeline")


@pytest.fixture(scope="module")
def lora(distilled, tmp_path_factory):
    out = tmp_path_factory.mktemp("push") / "kite.safetensors"
    return export(distilled, out, file_format="lora", prompts=PROMPTS)


def newest(hub, name):
    folder = next(iter(hub.models[name].values()))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_is_pushed_as_its_manifest_lists_it(hub, folder, tmp_path, capsys):
    pushed = shutil.copytree(folder, tmp_path / "pipeline")
    (pushed / "checkpoint.safetensors").write_bytes(b"not listed")
    (pushed / ".env").write_text("HF_TOKEN=secret")
    assert call("push", pushed, "owner/kite") == 0
    assert capsys.readouterr().out == f"pushed: {hub.endpoint}/owner/kite\n"
    listed = json.loads((pushed / MANIFEST_NAME).read_text())["files"]
    assert newest(hub, "owner/kite") == {name: (pushed / name).read_bytes() for name in listed}
    assert hub.private["owner/kite"]


def test_a_model_file_is_pushed_with_its_card(hub, lora):
    assert call("push", lora, "owner/kite") == 0
    assert newest(hub, "owner/kite") == {
        "kite.safetensors": lora.read_bytes(),
        "README.md": lora.with_suffix(".md").read_bytes(),
    }


def test_a_repository_is_public_only_where_asked(hub, lora):
    assert call("push", lora, "owner/kite", "--public") == 0
    assert not hub.private["owner/kite"]


@pytest.mark.parametrize(
    ("private", "options", "message"),
    [
        (False, [], "owner/kite exists and is public; add --public to push to it all the same, or name"),
        (True, ["--public"], "owner/kite exists and is private; leave out --public, or name another"),
    ],
)
def test_a_repository_of_another_visibility_gets_nothing(
    hub, lora, tmp_path, capsys, private, options, message
):
    (tmp_path / "old").mkdir()
    hub.models["owner/kite"] = {"a" * 40: tmp_path / "old"}
    hub.private["owner/kite"] = private
    assert message in refused(capsys, "push", lora, "owner/kite", *options)
    assert newest(hub, "owner/kite") == {}
    assert not any("commit" in request or request.startswith("PUT") for request in hub.requests)


def test_an_upload_that_was_cut_goes_on(hub, folder, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the library's own tries
    listed = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    large = {entry["sha256"] for name, entry in listed.items() if name.endswith(".safetensors")}
    hub.lost = {listed["unet/diffusion_pytorch_model.safetensors"]["sha256"]}
    message = refused(capsys, "push", folder, "owner/kite")
    assert "the connection to the model hub failed while owner/kite was uploaded" in message
    assert "run again: what has arrived is kept" in message
    assert newest(hub, "owner/kite") == {}
    arrived = set(hub.blobs)
    hub.lost, hub.requests = set(), []
    assert call("push", folder, "owner/kite") == 0
    again = {request.rpartition("/")[2] for request in hub.requests if request.startswith("PUT")}
    assert again == large - arrived
    assert newest(hub, "owner/kite").keys() == listed.keys()


def test_a_new_export_replaces_the_old_one(hub, lora, distilled, tmp_path):
    assert call("push", lora, "owner/kite") == 0
    newer = export(distilled, tmp_path / lora.name, file_format="lora", rank=2, prompts=PROMPTS)
    assert call("push", newer, "owner/kite") == 0
    assert newest(hub, "owner/kite")["kite.safetensors"] == newer.read_bytes()


def test_without_a_token_nothing_is_asked(hub, lora, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    message = refused(capsys, "push", lora, "owner/kite")
    assert "no token in HF_TOKEN; set it to one that may write to owner/kite" in message
    assert hub.requests == []


def test_a_token_that_may_not_write_is_refused_in_one_line(hub, lora, capsys):
    hub.writers = set()
    message = refused(capsys, "push", lora, "owner/kite")
    assert "the model hub refused owner/kite: " in message
    assert "does the token in HF_TOKEN allow writing to it?" in message
    assert TOKEN not in message


def test_a_hub_that_is_not_there_is_said_in_one_line(lora, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refused(capsys, "push", lora, "owner/kite")
    assert "the connection to the model hub failed while owner/kite was uploaded" in message


@pytest.mark.parametrize("name", ["kite", "owner/kite/more", "owner/", "../kite"])
def test_a_name_that_is_none_is_refused(lora, capsys, name):
    assert f"'{name}' is no repository; name it owner/name" in refused(capsys, "push", lora, name)


def test_what_is_no_export_is_refused(hub, distilled_run, lora, tmp_path, capsys):
    bare = tmp_path / "bare.safetensors"
    shutil.copyfile(lora, bare)
    (tmp_path / "notes.md").write_text("a card of nothing")
    (tmp_path / "notes.safetensors").write_bytes(b"no weights")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (distilled_run / "text_encoder", distilled_run, empty):
        assert "not an export; name what `clipgraft export` wrote" in refused(capsys, "push", path, "o/kite")
    for path in (bare, tmp_path / "notes.safetensors"):
        assert f"{path} is no export" in refused(capsys, "push", path, "owner/kite")
    assert "nothing at" in refused(capsys, "push", tmp_path / "nowhere", "owner/kite")
    assert hub.requests == []


def test_a_file_that_was_changed_is_refused(hub, folder, lora, tmp_path, capsys):
    damaged = shutil.copytree(folder, tmp_path / "pipeline")
    (damaged / "README.md").write_text("another card")
    assert "README.md is damaged" in refused(capsys, "push", damaged, "owner/kite")
    file = tmp_path / lora.name
    file.write_bytes(lora.read_bytes()[:-1] + b"x")
    shutil.copyfile(lora.with_suffix(".md"), file.with_suffix(".md"))
    assert "its tensors have another hash than its header says" in refused(capsys, "push", file, "owner/kite")
    assert hub.requests == []


def test_a_link_out_of_the_folder_is_not_followed(hub, folder, tmp_path, capsys):
    linked = shutil.copytree(folder, tmp_path / "pipeline")
    secret = tmp_path / "secret"
    secret.write_bytes((linked / "README.md").read_bytes())
    (linked / "README.md").unlink()
    (linked / "README.md").symlink_to(secret)
    assert "is a link out of pipeline" in refused(capsys, "push", linked, "owner/kite")
    assert hub.requests == []
