"""`clipgraft report`: from a folder to its page, several to one, and a run at work."""

import subprocess
import sys
import threading
import time

import pytest

from clipgraft.cli import app as cli
from clipgraft.config import Recipe, to_toml
from clipgraft.reporting.report import watch
from clipgraft.runs.folder import LOCK_NAME, is_locked, run_folder
from helpers import interrupted_when


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "mine"
    (folder / "finetune").mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(Recipe()))
    (folder / "finetune" / "log.jsonl").write_text('{"step": 1, "epoch": 0, "loss": 2.0}\n')
    return folder


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["clipgraft", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_one_folder_gives_a_page_and_several_a_comparison(run_dir, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "report", run_dir) == 0
    assert capsys.readouterr().out.split() == ["report:", str(run_dir / "report.html")]
    assert (run_dir / "model_card.md").is_file()
    assert call(monkeypatch, "report", run_dir, run_dir, "--out", tmp_path) == 0
    assert (tmp_path / "comparison.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "error: run folder not found: nowhere"),
        (["."], "error: . is an empty folder, not a run; name a folder that `clipgraft run`"),
        (["a", "b", "--watch"], "error: --watch shows one run; name one folder"),
        (
            ["a", "--out", "b"],
            "error: --out is for a comparison of several runs; the page of one lies in its folder",
        ),
    ],
)
def test_wrong_folder_is_said_in_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "report", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.integration
def test_watched_page_renews_itself_until_the_run_ends(run_dir):
    pages = []

    def work():
        with run_folder(run_dir, resume=True):
            deadline = time.monotonic() + 30
            while not (run_dir / "report.html").is_file() and time.monotonic() < deadline:
                time.sleep(0.05)
            pages.append((run_dir / "report.html").read_text())

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while worker.is_alive() and not is_locked(run_dir):
        time.sleep(0.01)
    page = watch(run_dir, every=0.2)
    worker.join()
    assert 'http-equiv="refresh"' in pages[0]
    assert "Fine-tuning: epoch 1 of 9, step 1." in pages[0]
    assert 'http-equiv="refresh"' not in page.read_text()


@pytest.mark.integration
def test_evaluation_within_a_run_is_watched_too(run_dir, capsys):
    def work():
        with run_folder(run_dir / "evaluate", resume=True):
            deadline = time.monotonic() + 30
            while not (run_dir / "report.html").is_file() and time.monotonic() < deadline:
                time.sleep(0.05)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while worker.is_alive() and not is_locked(run_dir / "evaluate"):
        time.sleep(0.01)
    watch(run_dir, every=0.2)
    worker.join()
    assert "nothing is at work" not in capsys.readouterr().out


def test_page_is_at_rest_when_ctrl_c_ends_the_watch(run_dir):
    is_shown = (run_dir / "report.html").is_file
    with run_folder(run_dir, resume=True), pytest.raises(KeyboardInterrupt), interrupted_when(is_shown):
        watch(run_dir, every=30)
    assert 'http-equiv="refresh"' not in (run_dir / "report.html").read_text()


def test_lock_of_a_process_that_was_killed_is_no_run_at_work(run_dir, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (run_dir / LOCK_NAME).write_text(str(ended.pid))
    watch(run_dir)
    assert "nothing is at work in" in capsys.readouterr().out
