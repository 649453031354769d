"""`clipgraft studio`: what it refuses, in one line with exit code 2; what it finds in a folder of runs."""

import logging
import shutil
import socket
import sys

import pytest

from clipgraft.cli import app as cli
from clipgraft.errors import CheckpointError
from clipgraft.models.defaults import DrawingDefaults
from clipgraft.studio.catalog import Catalog
from clipgraft.studio.search import load_embedder


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """Run the command, which must fail; return its one line."""
    monkeypatch.setattr(sys, "argv", ["clipgraft", "studio", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "clipgraft.studio.server", raising=False)
    said = refused(monkeypatch, capsys, tmp_path)
    assert said == "error: the studio needs uvicorn; pip install 'clipgraft[app]'"


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_port_that_is_taken_is_named(monkeypatch, capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(monkeypatch, capsys, tmp_path, "--port", port)
    assert said == (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; name another with --port"
    )


def test_single_grafts_are_offered_and_unreadable_runs_are_named(runs_dir, tmp_path, caplog):
    shutil.copytree(runs_dir / "tiny" / "bridge", tmp_path / "alone")
    shutil.copytree(runs_dir / "tiny" / "finetune", tmp_path / "tuned")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.toml").write_text("[finetune]\nlearning_rat = 1\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        models = Catalog(tmp_path).models()
        Catalog(tmp_path).models()
    assert list(models) == ["flatland/teacher", "alone/teacher", "alone/graft"]
    assert models["alone/graft"][0].defaults == DrawingDefaults(2.0, 2)
    assert set(Catalog(tmp_path).clips()) == {"flatland", "tuned/before", "tuned/after"}
    assert [record.getMessage() for record in caplog.records] == [
        "the studio leaves out run other: unknown recipe key 'finetune.learning_rat'; "
        "did you mean 'learning_rate'?"
    ]


def test_the_clip_before_fine_tuning_is_of_the_commit_that_the_recipe_names(runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(runs_dir / "tiny" / "finetune" / "clip", tmp_path / "tuned" / "clip")
    commit = "0123456789abcdef" * 2 + "01234567"
    (tmp_path / "tuned" / "recipe.toml").write_text(f'[clip]\nname = "no/such"\nrevision = "{commit}"\n')
    with pytest.raises(CheckpointError, match=commit):
        load_embedder(Catalog(tmp_path).clips()["tuned/before"], "cpu")


def test_without_runs_the_embedded_base_draws(tmp_path):
    assert list(Catalog(tmp_path / "none").models()) == ["flatland/teacher"]
