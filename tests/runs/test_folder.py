"""A run's folder: one process at a time; nothing is lost that was there before."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipgraft.config import Recipe, to_toml
from clipgraft.errors import UserError
from clipgraft.runs.folder import (
    LOCK_NAME,
    MOVING_NAME,
    OLD_RUN_NAME,
    RECIPE_NAME,
    discard_old_run,
    hold_folder,
    is_locked,
    refuse_inputs_within,
    run_folder,
)


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder but the lock, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    folder = tmp_path / "run"
    files = {RECIPE_NAME: to_toml(Recipe()), "log.jsonl": "{}\n", "clip/model": "old", "checkpoints/a/b": "x"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_text("photograph")
    return folder


def refused(path, **how) -> str:
    """Return the refusal of a folder, which stays as it was."""
    before = content(path)
    with pytest.raises(UserError) as caught, run_folder(path, **how):
        pass
    assert content(path) == before
    return str(caught.value)


def test_folder_with_content_is_left_alone(run, photos):
    assert "already holds files; add --resume or --overwrite" in refused(run)
    assert "already holds files; add --resume or --overwrite" in refused(photos)


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_folder_that_holds_no_run_never_becomes_one(photos, how):
    assert "holds no run (no recipe.toml), so it is left alone" in refused(photos, **how)
    assert os.listdir(photos) == ["a.jpg"]


def test_overwrite_leaves_a_run_with_other_files_alone(run):
    (run / "IMG_1.jpg").write_text("photograph")
    said = refused(run, overwrite=True)
    assert "holds what no run wrote (IMG_1.jpg), so --overwrite leaves it alone" in said


def test_new_and_empty_folders_are_taken_either_way(tmp_path):
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with run_folder(tmp_path / "new", **how) as folder:
            assert folder.is_dir()
            assert is_locked(folder)


def test_overwrite_ends_with_the_new_run_alone(run):
    with run_folder(run, overwrite=True):
        assert content(run).keys() == {f"{OLD_RUN_NAME}/{name}" for name in (
            RECIPE_NAME, "log.jsonl", "clip/model", "checkpoints/a/b"
        )}  # fmt: skip
        (run / "clip").mkdir()
        (run / "clip" / "model").write_text("new")
    assert content(run) == {"clip/model": "new"}


@pytest.mark.parametrize("error", [UserError("no such data"), KeyboardInterrupt(), SystemExit(143)])
def test_old_run_is_back_where_the_new_one_fails_first(run, error):
    before = content(run)

    def fail():
        for name in (RECIPE_NAME, "data.json", "finetune/recipe.toml"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("new")
        (run / "log.jsonl").touch()  # opened, no step made
        (run / "report.html").write_text("a report of nothing")
        raise error

    with pytest.raises(type(error)), run_folder(run, overwrite=True):
        fail()
    assert content(run) == before
    assert not (run / "finetune").exists()


def test_old_run_is_gone_where_the_new_one_has_a_result(run):
    def stop_at_step_1():
        (run / "log.jsonl").write_text('{"step": 1}\n')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_folder(run, overwrite=True):
        stop_at_step_1()
    assert content(run) == {"log.jsonl": '{"step": 1}\n'}


def test_old_run_is_let_go_of_with_the_first_step(run):
    with run_folder(run, overwrite=True):
        (run / "finetune").mkdir()
        discard_old_run(run / "finetune")
        assert content(run) == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from clipgraft.runs.folder import run_folder
folder, calls, result = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rename = Path.rename
def counted(path, target):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = counted
try:
    with run_folder(folder, overwrite=True):
        (folder / "recipe.toml").write_text("new")
        if result == "result":
            (folder / "log.jsonl").write_text("new")
        if result == "failure":
            raise ValueError
        os.kill(os.getpid(), signal.SIGKILL)
except ValueError:
    pass
"""


@pytest.mark.parametrize("moves", range(10))
@pytest.mark.parametrize("end", ["kill", "failure", "result"])
def test_a_killed_overwrite_loses_neither_run(run, moves, end):
    before = content(run)
    killed = [sys.executable, "-c", KILLED, str(run), str(moves), end]
    subprocess.run(killed, check=False, timeout=60)
    with run_folder(run, resume=True):
        after = content(run)
    assert after == ({RECIPE_NAME: "new", "log.jsonl": "new"} if end == "result" and moves > 4 else before)
    assert not {OLD_RUN_NAME, MOVING_NAME} & set(os.listdir(run))


def test_partial_files_of_killed_processes_are_cleared(run):
    (run / ".best.safetensors.123.part").write_text("half")
    (run / "checkpoints" / ".step-00000002.part").mkdir()
    (run / "checkpoints" / ".step-00000002.part" / "tensors.safetensors").write_text("half")
    with run_folder(run, resume=True):
        assert not [name for name in content(run) if ".part" in name]
        assert len(content(run)) == 4


@pytest.mark.integration
def test_second_process_is_refused_and_told_the_lock(run):
    code = "import sys, pathlib, clipgraft.runs.folder as r\n"
    code += "with r.hold_folder(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert is_locked(run)
        assert re.search(rf"another process is at work in .*{LOCK_NAME}", refused(run, resume=True))
    finally:
        other.kill()
        other.communicate()
    assert not is_locked(run)  # the system lets go of what a killed process held
    with run_folder(run, resume=True):
        assert is_locked(run)
        assert "another process is at work" in refused(run, resume=True)  # this one included
    assert not is_locked(run)


@pytest.mark.parametrize(
    "text",
    ["", "1", "-1", str(10**30), str(os.getpid())],
    ids=["none", "first", "negative", "absurd", "this"],
)
def test_lock_files_of_old_runs_hold_nothing(run, text):
    (run / LOCK_NAME).write_text(text)
    assert not is_locked(run)
    with run_folder(run, resume=True):
        pass


def test_asking_who_is_at_work_changes_nothing(run):
    assert not is_locked(run)
    assert not (run / LOCK_NAME).exists()
    (run / LOCK_NAME).mkdir()
    assert not is_locked(run)
    (run / LOCK_NAME).rmdir()
    os.mkfifo(run / LOCK_NAME)
    assert not is_locked(run)


def test_workers_of_a_killed_process_hold_nothing(run):
    code = """
import multiprocessing, os, pathlib, signal, sys, time
from clipgraft.runs.folder import run_folder
with run_folder(pathlib.Path(sys.argv[1]), resume=True):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True).start()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(run)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert not is_locked(run)


def try_folders(folders, barrier, results):
    for folder in folders:
        barrier.wait()
        try:
            with run_folder(folder, overwrite=True):
                results.put(str(folder))
                barrier.wait()  # nobody lets go before all have tried
        except UserError:
            barrier.wait()


@pytest.mark.integration
def test_of_processes_that_start_at_once_one_holds_the_folder(tmp_path):
    folders = [tmp_path / str(index) for index in range(5)]
    for folder in folders:
        folder.mkdir()
        (folder / RECIPE_NAME).write_text("")
        (folder / LOCK_NAME).write_text("999999")  # of a process that is no more
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3, timeout=60), context.SimpleQueue()
    processes = [context.Process(target=try_folders, args=(folders, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [results.get() for _ in folders] == [str(folder) for folder in folders]
    assert results.empty()


def test_out_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"), run_folder(tmp_path / "file"):
        pass


def test_out_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not UTF-8"), hold_folder(tmp_path / "caf\udce9"):
        pass


def test_inputs_and_out_folder_lie_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("out/graft", "data/run", "other"):
        Path(name).mkdir(parents=True)
    Path("link").symlink_to("out")
    out = Path("out")
    refuse_inputs_within(out, {"--data": "other", "--clip": "owner/name", "--graft": None, "--base": "gone"})
    for given in ("out/graft", "out", "link", "./out/../out/graft", str(tmp_path / "link" / "graft")):
        with pytest.raises(UserError, match=r"^--graft .* lies in the out folder out"):
            refuse_inputs_within(out, {"--data": "other", "--graft": given})
    with pytest.raises(UserError, match=r"^the out folder data/run lies in --data data"):
        refuse_inputs_within(Path("data/run"), {"--data": "data"})
