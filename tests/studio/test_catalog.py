"""Runs by name: models, CLIPs; a damaged or hostile run affects no other."""

import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from app_client import ended
from clipgraft.errors import CheckpointError
from clipgraft.exporting.export import export
from clipgraft.files import inside
from clipgraft.models.defaults import SamplingDefaults
from clipgraft.studio.catalog import Catalog
from clipgraft.studio.search import load_embedder

NOT_UTF8 = os.fsdecode(b"caf\xe9")  # "café" of an old archive


@pytest.fixture
def runs(own_runs, runs_dir):
    """A folder of two runs, `good` and `bad`; tests damage the second."""
    for name in ("good", "bad"):
        shutil.copytree(runs_dir / "tiny", own_runs / name)
    return own_runs


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def deep(num: int = 100_000) -> str:
    return '{"a": ' + "[" * num + "]" * num + "}"


def lock_as_folder(run: Path) -> None:
    (run / "run.lock").unlink(missing_ok=True)
    (run / "run.lock").mkdir()


def log_rows(*rows: str):
    return lambda run: write(run / "finetune" / "log.jsonl", "\n".join(rows))


UNREADABLE = {
    "a recipe nested 600 deep": lambda run: write(run / "recipe.toml", "a = " + "[" * 600 + "]" * 600),
    "a recipe nested 100 deep": lambda run: write(run / "recipe.toml", "a = " + "[" * 100 + "]" * 100),
    "a recipe that is not TOML": lambda run: write(run / "recipe.toml", "= nothing"),
    "a recipe that is not UTF-8": lambda run: (run / "recipe.toml").write_bytes(b"\xff\xfe[data]"),
    "a recipe of 2 MB": lambda run: write(run / "recipe.toml", "#" * 2_000_000),
    "a recipe with a number of 5,000 digits": lambda run: write(run / "recipe.toml", f"a = {'9' * 5000}"),
    "an unknown setting": lambda run: write(run / "recipe.toml", "[finetune]\nlearning_rat = 1\n"),
    "a recipe that is a link out": lambda run: relinked(run / "recipe.toml", "/etc/hosts"),
    "guidance beyond a float": lambda run: write(run / "recipe.toml", "[generate]\nguidance_scale = inf\n"),
    "a name that is not UTF-8": lambda run: run.rename(run.with_name(NOT_UTF8)),
}
READABLE = {
    "a lock of an absurd process": lambda run: write(run / "run.lock", "1" + "0" * 30),
    "a lock that is no number": lambda run: write(run / "run.lock", "\x00\x00"),
    "a lock that is a folder": lock_as_folder,
    "a lock that is a pipe": lambda run: os.mkfifo(piped(run / "run.lock")),
    "deep metrics": lambda run: write(run / "finetune" / "metrics.json", deep()),
    "metrics beyond a float": lambda run: write(run / "finetune" / "metrics.json", '{"num_epochs": 1e400}'),
    "metrics that are a folder": lambda run: foldered(run / "finetune" / "metrics.json"),
    "a deep log": log_rows(deep(), '{"step": 1, "epoch": 0, "loss": 2.5}'),
    "a log beyond a float": log_rows(
        '{"step": 1, "epoch": 0, "loss": 1e400}',
        '{"step": 1e400, "epoch": 0, "loss": 1}',
        '{"step": 3, "epoch": NaN, "loss": 1}',
        '{"step": -1, "epoch": 0, "loss": 1}',
        '{"step": 1' + "0" * 400 + ', "epoch": 0, "loss": 1}',
        '{"step": 5, "epoch": 0, "loss": 1' + "0" * 400 + "}",
        '{"step": 6, "epoch": 0, "loss": 1e308}',
        '{"step": 7, "epoch": 0, "loss": 1e308}',
        '{"step": 8, "epoch": 0, "loss": [1e400]}',
    ),
    "half a surrogate pair": log_rows('{"step": 1, "epoch": 0, "loss": 1, "x": "\\ud83d"}'),
    "evaluations beyond a float": lambda run: write(
        run / "finetune" / "evaluations.jsonl",
        '{"step": 1e400, "x": NaN, "y": -1e999, "z": 1' + "0" * 400 + "}",
    ),
    "deep evaluations": lambda run: write(run / "finetune" / "evaluations.jsonl", deep()),
    "stages that are files": lambda run: [shutil.rmtree(run / "finetune"), write(run / "finetune", "")],
    "deep resources": lambda run: write(run / "resources.json", deep()),
    "an image list of another kind": lambda run: write(run / "generate" / "images.json", '{"file": 1}'),
    "a report that is a folder": lambda run: foldered(run / "report.html"),
    "a report that is a pipe": lambda run: os.mkfifo(piped(run / "report.html")),
}


def relinked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def piped(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


def foldered(path: Path) -> None:
    path.unlink()
    path.mkdir()


def check_all_works(client) -> dict[str, dict]:
    """Ask for everything that lists runs, and draw with the good one; return the runs by name."""
    models = client.get("/v1/models")
    assert models.status_code == 200, models.text
    assert {"flatland/teacher", "good/after"} <= {row["id"] for row in models.json()["data"]}
    listed = client.get("/v1/runs")
    assert listed.status_code == 200, listed.text
    runs = {run["name"]: run for run in listed.json()["runs"]}
    assert runs["good"]["state"] == "finished"
    for name in runs:
        answer = client.get(f"/v1/runs/{name}")
        assert answer.status_code == 200, answer.text
    job = client.post("/v1/jobs", json={"prompt": "A dog", "steps": 1, "models": ["good/after"]})
    assert ended(client, job.json()["id"])["state"] == "done"
    return runs


def damaged(runs, kinds: dict) -> dict[str, str]:
    """Make a bad run of each kind, all at once; return the kinds by the run's name."""
    names = {}
    for number, (kind, damage) in enumerate(kinds.items()):
        name = f"bad {number}"
        shutil.copytree(runs / "bad", runs / name)
        damage(runs / name)
        names[name if (runs / name).exists() else "caf\\udce9"] = kind
    shutil.rmtree(runs / "bad")
    return names


def test_an_export_among_the_runs_is_none_of_them(runs, runs_dir):
    folder = export(runs_dir / "tiny" / "bridge" / "graft", runs / "exported", file_format="bridge")
    assert (folder / "recipe.toml").is_file()
    assert [run["name"] for run in Catalog(runs).runs()] == ["bad", "good"]


@pytest.mark.integration
def test_runs_that_cannot_be_read_are_listed_with_the_reason(client, runs):
    kinds = damaged(runs, UNREADABLE)
    listed = check_all_works(client)
    assert set(listed) == {"good", *kinds}
    models = " ".join(row["id"] for row in client.get("/v1/models").json()["data"])
    for name, kind in kinds.items():
        assert listed[name]["state"] == "unreadable", kind
        [problem] = client.get(f"/v1/runs/{name}").json()["problems"]
        assert problem.startswith("It cannot be read: "), kind
        assert str(runs.parent) not in problem
        assert "went wrong here" not in problem, kind
        assert client.get(f"/v1/runs/{name}/report").status_code == 422, kind
        assert name not in models


@pytest.mark.integration
def test_runs_with_a_damaged_file_are_read_as_far_as_that_goes(client, runs):
    kinds = damaged(runs, READABLE)
    listed = check_all_works(client)
    for name, kind in kinds.items():
        assert listed[name]["state"] in ("finished", "stopped"), kind
        text = client.get(f"/v1/runs/{name}").text
        assert "went wrong here" not in text, kind


def test_a_bug_in_reading_a_run_concerns_that_run_alone(runs, caplog):
    def read(run, recipe):
        return {"good": 1}[run.name]

    for _ in range(2):
        found, unreadable = Catalog(runs).read(read)
    assert found == {"good": 1}
    assert unreadable == {"bad": "reading it went wrong here; the studio's log says how"}
    assert [record.exc_info is not None for record in caplog.records] == [True]


@pytest.mark.parametrize("name", ["report.html", "finetune/log.jsonl", "finetune/metrics.json", "finetune"])
def test_links_out_of_a_run_are_neither_served_nor_read(client, runs, tmp_path, name):
    text = '{"step": 1, "epoch": 0, "loss": 0.123456}'
    (tmp_path / "outside").mkdir()
    for file in ("log.jsonl", "metrics.json", "report.html"):
        write(tmp_path / "outside" / file, text)
    link = runs / "bad" / name
    if link.is_dir():
        shutil.rmtree(link)
        link.symlink_to(tmp_path / "outside")
    else:
        relinked(link, str(tmp_path / "outside" / link.name))
    listed = check_all_works(client)
    told = client.get("/v1/runs/bad")
    assert "0.123456" not in told.text
    report = client.get("/v1/runs/bad/report")
    if name == "report.html":
        assert not listed["bad"]["has_report"]
        assert report.status_code == 422
        assert "is a link out of bad" in report.json()["error"]["message"]
        assert "0.123456" not in report.text
    else:
        assert report.status_code == 200
        assert any("is a link out of bad" in problem for problem in told.json()["problems"])


def test_links_within_a_run_and_runs_that_are_links_are_read(client, runs, tmp_path):
    shutil.move(runs / "bad", tmp_path / "elsewhere")
    (runs / "bad").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "report.html").rename(tmp_path / "elsewhere" / "page.html")
    (tmp_path / "elsewhere" / "report.html").symlink_to("page.html")
    assert check_all_works(client)["bad"]["has_report"]
    assert client.get("/v1/runs/bad/report").status_code == 200


def test_a_loop_of_links_is_no_way_out(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert inside(tmp_path / "a", tmp_path) == tmp_path / "a"


@pytest.mark.integration
def test_runs_that_are_deleted_while_the_page_looks_do_no_harm(client, runs, runs_dir):
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            shutil.rmtree(runs / "bad", ignore_errors=True)
            shutil.copytree(runs_dir / "tiny", runs / "bad", dirs_exist_ok=True)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(60):
            for route in ("/v1/runs", "/v1/models"):
                answer = client.get(route)
                assert answer.status_code == 200, answer.text
            assert client.get("/v1/runs/bad").status_code in (200, 404)
    finally:
        done.set()
        thread.join()


def test_a_folder_of_runs_that_cannot_be_listed_offers_the_base(tmp_path):
    (tmp_path / "file").touch()
    assert Catalog(tmp_path / "file").read(lambda run, _: run) == ({}, {})
    assert Catalog(tmp_path / "none").read(lambda run, _: run) == ({}, {})


def test_single_grafts_are_offered_unreadable_runs_named(runs_dir, tmp_path, caplog):
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
    assert models["alone/graft"][0].defaults == SamplingDefaults(2.0, 2)
    assert set(Catalog(tmp_path).clips()) == {"flatland", "tuned/before", "tuned/after"}
    assert [record.getMessage() for record in caplog.records] == [
        "the studio leaves out run other: unknown recipe key 'finetune.learning_rat'; "
        "did you mean 'learning_rate'?"
    ]


def test_the_clip_before_is_of_the_recipes_commit(runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(runs_dir / "tiny" / "finetune" / "clip", tmp_path / "tuned" / "clip")
    commit = "0123456789abcdef" * 2 + "01234567"
    (tmp_path / "tuned" / "recipe.toml").write_text(f'[clip]\nname = "no/such"\nrevision = "{commit}"\n')
    with pytest.raises(CheckpointError, match=commit):
        load_embedder(Catalog(tmp_path).clips()["tuned/before"], "cpu")


def test_a_clip_before_that_was_given_in_python_is_left_out(runs_dir, tmp_path):
    shutil.copytree(runs_dir / "tiny" / "finetune" / "clip", tmp_path / "tuned" / "clip")
    (tmp_path / "tuned" / "recipe.toml").write_text('[clip]\nname = "(given in Python)"\n')
    clips = Catalog(tmp_path).clips()
    assert "tuned/after" in clips
    assert "tuned/before" not in clips


def test_without_runs_there_is_the_embedded_base(tmp_path):
    assert list(Catalog(tmp_path / "none").models()) == ["flatland/teacher"]
