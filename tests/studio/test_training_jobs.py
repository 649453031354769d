"""Trainings and checks as real processes: one at a time, on record, never the studio's end."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from starlette.testclient import TestClient

import tiny
from app_client import refused
from clipgraft.config import Recipe
from clipgraft.errors import UserError
from clipgraft.studio.api import build_app
from clipgraft.studio.queue import BusyError
from clipgraft.studio.service import Service
from clipgraft.studio.training_jobs import TrainingJob, TrainingJobs
from clipgraft.studio.training_plans import TrainingPlan


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with a data set, `photos`, and one without a caption, `empty`."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write_flickr8k(folder / "photos")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def jobs(tmp_path):
    """The trainings of a studio whose device is always free."""
    made = new_jobs(tmp_path)
    yield made
    made.begin_to_stop()
    made.join(timeout=20)


def new_jobs(tmp_path, hold_device=None) -> TrainingJobs:
    @contextmanager
    def free(_name):
        yield

    (tmp_path / "runs").mkdir(exist_ok=True)
    return TrainingJobs(tmp_path / "training", tmp_path / "runs", hold_device or free)


def until(condition, seconds=60.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def ended(jobs, name, seconds=60.0):
    until(lambda: jobs.current is None, seconds)
    return jobs.training(name) or jobs.check(name)


@pytest.mark.integration
def test_a_check_tells_what_it_found(tmp_path, data_dir, runs_dir):
    service = Service(runs_dir, tmp_path / "home", device="cpu", data_dir=data_dir)
    client = TestClient(build_app(service), base_url="http://localhost")
    assert "there is no check" in refused(client.get("/v1/checks?data=photos"), 404)
    started = client.post("/v1/checks", json={"data": "photos"})
    assert (started.status_code, started.json()["state"]) == (202, "waiting")
    assert "a data check is at work" in refused(client.post("/v1/checks", json={}), 429)
    ended(service.trainings, "photos")
    found = client.get("/v1/checks?data=photos").json()
    assert (found["state"], found["error"]) == ("done", "")
    assert found["result"]["counts"]["train"] == {"images": 16, "captions": 80}
    [finding] = found["result"]["findings"]
    assert finding["summary"] == "24 photographs look alike, in more than one split (1 group)"
    sheet = client.get("/v1/checks/sheet?data=photos")
    assert b"look alike" in sheet.content
    assert "sandbox" in sheet.headers["content-security-policy"]
    assert str(data_dir) not in str(found) + sheet.text
    (service.trainings.folder(service.trainings.check("photos")) / "result.json").write_text("{")
    found = client.get("/v1/checks?data=photos").json()
    assert (found["result"], found["error"]) == (None, "the check's result is damaged; check again")
    service.stop(timeout=20)


def test_a_check_that_fails_says_why_in_one_line(jobs, data_dir):
    jobs.start_check("empty", data_dir / "empty")
    job = ended(jobs, "empty")
    assert job.state == "failed"
    assert "empty" in job.error
    assert str(data_dir) not in job.error
    with pytest.raises(UserError, match="empty is not at work"):
        jobs.stop(job)


def test_a_stopped_check_leaves_room_for_the_next(jobs, data_dir):
    jobs.stop(jobs.start_check("photos", data_dir / "photos"))
    assert ended(jobs, "photos").state == "stopped"
    jobs.start_check("photos", data_dir / "photos")
    until(lambda: jobs.current.state == "running")
    jobs.stop(jobs.current)
    assert ended(jobs, "photos").state == "stopped"


def test_a_second_stop_kills_even_without_sigkill(jobs, data_dir, monkeypatch):
    on_windows = SimpleNamespace(SIGTERM=signal.SIGTERM)
    monkeypatch.setattr("clipgraft.studio.training_jobs.signal", on_windows)
    jobs.start_check("photos", data_dir / "photos")
    until(lambda: jobs.current.state == "running")
    process = psutil.Process(jobs.current.process_id)
    status = Path(f"/proc/{process.pid}/status")
    until(lambda: int(status.read_text().split("SigCgt:")[1].split()[0], 16) & 1 << (signal.SIGTERM - 1))
    process.suspend()  # so that it cannot answer the first stop
    jobs.stop(jobs.current)
    assert process.status() == psutil.STATUS_STOPPED
    jobs.stop(jobs.current)
    assert ended(jobs, "photos").state == "stopped"


def test_a_check_stops_though_the_studio_ignores_sigint(jobs, data_dir):
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background
    try:
        jobs.start_check("photos", data_dir / "photos")
        until(lambda: jobs.current.state == "running")
    finally:
        signal.signal(signal.SIGINT, usual)
    until(lambda: psutil.Process(jobs.current.process_id).cpu_times().user > 0.1)
    jobs.stop(jobs.current)
    assert ended(jobs, "photos").state == "stopped"


def test_the_end_of_the_studio_interrupts_and_is_remembered(tmp_path, data_dir):
    jobs = new_jobs(tmp_path)
    jobs.start_check("photos", data_dir / "photos")
    until(lambda: jobs.current.state == "running")
    jobs.begin_to_stop()
    jobs.join(timeout=30)
    again = new_jobs(tmp_path)
    job = again.check("photos")
    assert (job.state, job.error) == ("interrupted", "the studio was stopped meanwhile")
    (again.folder(job) / "job.json").write_text("{")
    assert new_jobs(tmp_path).check("photos") is None


@pytest.mark.integration
def test_a_process_that_outlives_the_studio_is_found_again(tmp_path, data_dir):
    killed = new_jobs(tmp_path)
    killed.start_check("photos", data_dir / "photos")
    until(lambda: killed.current.state == "running")
    again = new_jobs(tmp_path)
    again.recover()
    with pytest.raises(BusyError, match="a data check is at work; wait for its end, or stop it"):
        again.start_check("photos", data_dir / "photos")
    assert ended(again, "photos").state == "done"


def test_a_training_that_ends_between_two_looks_is_done(tmp_path, monkeypatch):
    killed = new_jobs(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as command:
        created = psutil.Process(command.pid).create_time()
        job = TrainingJob(
            kind="check", name="photos", state="running", process_id=command.pid, process_created=created
        )
        folder = killed.folder(job)
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(job.model_dump_json())
        (folder / "sheet.html").touch()
        is_running = psutil.Process.is_running

        def ends_then(process):
            answer = is_running(process)
            command.communicate(b"\n")
            return answer

        monkeypatch.setattr(psutil.Process, "is_running", ends_then)
        again = new_jobs(tmp_path)
        again.recover()
        found = ended(again, "photos")
    assert (found.state, found.error) == ("done", "")


def test_a_process_that_went_with_the_studio_is_interrupted(tmp_path, data_dir):
    killed = new_jobs(tmp_path)
    job = killed.start_check("photos", data_dir / "photos")
    until(lambda: killed.current.state == "running")
    process = psutil.Process(killed.current.process_id)
    record = (killed.folder(job) / "job.json").read_bytes()
    process.kill()
    until(lambda: killed.current is None)
    (killed.folder(job) / "job.json").write_bytes(record)  # as the kill of both leaves it
    again = new_jobs(tmp_path)
    again.recover()
    assert (again.current, again.check("photos").state) == (None, "interrupted")


def test_a_training_that_waits_for_the_device_can_be_stopped(tmp_path):
    may_go = threading.Event()

    @contextmanager
    def busy(_name):
        may_go.wait(20)
        yield

    jobs = new_jobs(tmp_path, busy)
    job = jobs.start_training("finetune", "dogs", "", TrainingPlan(Recipe()))
    with pytest.raises(BusyError, match="training dogs is at work; wait for its end, or stop it"):
        jobs.start_training("finetune", "cats", "", TrainingPlan(Recipe()))
    jobs.stop(job)
    may_go.set()
    assert ended(jobs, "dogs").state == "stopped"
    assert not (tmp_path / "runs" / "dogs").exists()


def test_a_name_among_the_runs_is_taken(jobs, tmp_path):
    (tmp_path / "runs" / "dogs").mkdir()
    (tmp_path / "runs" / "link").symlink_to("nowhere")
    for name in ("dogs", "link", "studio", "Studio"):
        with pytest.raises(UserError, match=f"name: there is a '{name}' among the runs already"):
            jobs.start_training("finetune", name, "", TrainingPlan(Recipe()))
    assert jobs.trainings() == []


def test_a_full_disk_starts_nothing(jobs, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipgraft.studio.training_jobs.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        jobs.start_training("finetune", "dogs", "", TrainingPlan(Recipe()))
    assert (jobs.current, jobs.trainings()) == (None, [])


@pytest.mark.integration
def test_images_wait_for_a_training_which_gets_no_token(tmp_path, data_dir, runs_dir, monkeypatch):
    monkeypatch.setenv("CLIPGRAFT_TOKEN", "a-token-of-32-letters-and-digits")
    service = Service(runs_dir, tmp_path / "home", device="cpu", data_dir=data_dir)
    with TestClient(build_app(service), base_url="http://localhost") as client:
        monkeypatch.setattr(service.trainings, "runs_dir", tmp_path / "runs")
        service.catalog.runs_dir = tmp_path / "runs"
        (tmp_path / "runs").mkdir()
        body = {"name": "dogs", "kind": "finetune", "data": "photos", "num_epochs": 500, "batch_size": 8}
        assert client.post("/v1/trainings", json=body).status_code == 202
        until(lambda: service.training_name == "dogs")
        call = client.post("/v1/images/generations", json={"prompt": "A dog", "steps": 1})
        assert refused(call, 503) == "the studio is training dogs; ask again when that has ended"
        assert call.json()["error"]["code"] == "training"
        job_id = client.post("/v1/jobs", json={"prompt": "A dog", "steps": 1}).json()["id"]
        assert client.post("/v1/estimates", json={"prompt": "A dog"}).json()["training"] == "dogs"
        until(lambda: service.trainings.current.state == "running")
        environment = psutil.Process(service.trainings.current.process_id).environ()
        assert "CLIPGRAFT_TOKEN" not in environment
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"
        assert client.post("/v1/trainings/dogs/stop", json={}).json()["state"] == "stopping"
        stopped = ended(service.trainings, "dogs")
        assert stopped.state == "stopped"
        assert service.wait(job_id).result(timeout=30).state == "done"
        assert client.get("/v1/trainings").json()["trainings"][0]["can_resume"]


def test_signals_for_the_studio_do_not_reach_its_trainings(jobs, data_dir):
    jobs.start_check("photos", data_dir / "photos")
    until(lambda: jobs.current.state == "running")
    assert os.getsid(jobs.current.process_id) != os.getsid(0)
    os.kill(jobs.current.process_id, signal.SIGKILL)
    job = ended(jobs, "photos")
    assert (job.state, job.error) == ("failed", "it was killed; the machine may have run out of memory")
