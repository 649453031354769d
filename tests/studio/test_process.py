"""A studio as its own process: killed, asked to stop, and what it tells at its start."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

import tiny
from clipgraft.studio.queue import Queue

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]
SENTINEL = "hf_SENTINEL_OF_THE_ENVIRONMENT"


class Studio:
    """A studio process on a free port of loopback."""

    def __init__(self, runs_dir, home, *options: str):
        command = [
            sys.executable,
            "-m",
            "clipgraft",
            "studio",
            runs_dir,
            "--out",
            home,
            "--port",
            "0",
            *options,
        ]
        environment = os.environ | {"HF_TOKEN": SENTINEL}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.said = self.process.stdout.readline()
        self.address = re.search(r"http://\S+:\d+/", self.said)[0]
        self.until_ready()

    def until_ready(self) -> None:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                urllib.request.urlopen(f"{self.address}health", timeout=5)
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the studio does not answer")

    def ask(self, path: str, body=None, headers=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(self.address + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def draw(self, **values) -> str:
        return self.ask("v1/jobs", {"prompt": "A dog", "steps": 150, "seed": 0} | values)["id"]

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def rest(self) -> str:
        return self.process.stdout.read()


@pytest.fixture
def start(runs_dir, tmp_path):
    """Starts studios, one after another, in one home."""
    studios = []

    def start_one(*options: str, runs_dir=runs_dir) -> Studio:
        studios.append(Studio(runs_dir, tmp_path / "home", *options))
        return studios[-1]

    yield start_one
    for studio in studios:
        if studio.process.poll() is None:
            studio.process.kill()
            studio.process.wait()


def until(condition):
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_killed_studio_loses_no_image_and_tells_of_every_job(start):
    studio = start()
    done = studio.draw(steps=2, num_images=2)
    until(lambda: studio.ask(f"v1/jobs/{done}")["state"] == "done")
    cut_off = studio.draw(width=256, height=256, num_images=16)
    until(lambda: studio.ask(f"v1/jobs/{cut_off}")["step"] > 0)
    waiting = studio.draw(steps=3)
    studio.stop(signal.SIGKILL)
    again = start()
    assert again.ask(f"v1/jobs/{cut_off}")["state"] == "interrupted"
    until(lambda: again.ask(f"v1/jobs/{waiting}")["state"] == "done")
    images = again.ask("v1/images")["images"]
    assert len(images) >= 3
    for image in images:
        urllib.request.urlopen(f"{again.address}v1/images/{image['id']}.png", timeout=30).read()
    states = [job["state"] for job in again.ask("v1/jobs")["jobs"]]
    assert sorted(states) == ["done", "done", "interrupted"]


def test_sigterm_finishes_the_batch_and_keeps_what_waits(start, tmp_path):
    studio = start()
    at_work = studio.draw(num_images=2)
    until(lambda: studio.ask(f"v1/jobs/{at_work}")["state"] == "running")
    waiting = studio.draw(steps=5)
    assert studio.stop(signal.SIGTERM) == 0
    queue = Queue(tmp_path / "home" / "queue.sqlite")
    assert [queue.job(job_id).state for job_id in (at_work, waiting)] == ["done", "queued"]
    queue.database.close()


def test_a_training_outlasts_a_restart_of_the_studio(start, runs_dir, tmp_path):
    data = ("--data", tiny.write_flickr8k(tmp_path / "data" / "photos").parent)
    (tmp_path / "runs").mkdir()
    studio = start(*data, runs_dir=tmp_path / "runs")
    body = {"name": "dogs", "kind": "finetune", "data": "photos", "batch_size": 8, "num_epochs": 40}
    assert studio.ask("v1/trainings", body)["state"] == "waiting"
    until(lambda: studio.ask("v1/trainings/dogs")["state"] == "running")
    log = tmp_path / "runs" / "dogs" / "log.jsonl"
    until(lambda: log.is_file() and log.read_text().count("\n") >= 4)
    assert studio.stop(signal.SIGTERM) == 0
    assert list((tmp_path / "runs" / "dogs" / "checkpoints").iterdir())
    again = start(*data, runs_dir=tmp_path / "runs")
    told = again.ask("v1/trainings/dogs")
    assert (told["state"], told["can_resume"]) == ("interrupted", True)
    again.ask("v1/trainings/dogs/resume", {})
    until(lambda: again.ask("v1/trainings/dogs")["state"] == "running")
    again.stop(signal.SIGKILL)  # the training goes on by itself
    last = start(*data, runs_dir=tmp_path / "runs")
    assert last.ask("v1/trainings/dogs")["state"] in ("running", "done")
    until(lambda: last.ask("v1/trainings/dogs")["state"] == "done")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 81))


def test_a_data_folder_that_is_not_there_exits_with_code_2(runs_dir, tmp_path):
    command = [sys.executable, "-m", "clipgraft", "studio", runs_dir, "--out", tmp_path, "--data", "nope"]
    refused = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert (refused.returncode, refused.stderr.strip()) == (2, "error: --data nope: no such folder")


def test_the_token_is_shown_once_and_written_nowhere(start, tmp_path):
    studio = start("--token")
    token = re.search(r"\?token=(\S+)", studio.said)[1]
    studio.ask("v1/models", headers={"Authorization": f"Bearer {token}"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        studio.ask("v1/models")
    studio.stop(signal.SIGTERM)
    assert token not in studio.rest()
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes()
            assert SENTINEL.encode() not in path.read_bytes()


def test_one_home_is_one_studios(start, runs_dir, tmp_path):
    start()
    command = [
        sys.executable,
        "-m",
        "clipgraft",
        "studio",
        str(runs_dir),
        "--out",
        str(tmp_path / "home"),
        "--port",
        "0",
    ]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert "is at work in" in refused.stderr


def test_an_open_address_without_a_token_exits_with_code_2(runs_dir, tmp_path):
    command = [
        sys.executable,
        "-m",
        "clipgraft",
        "studio",
        str(runs_dir),
        "--host",
        "0.0.0.0",
        "--out",
        str(tmp_path),
    ]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        "error: on 0.0.0.0 others can reach the studio; add --token, which makes one and shows it once, "
        "or stay on 127.0.0.1"
    )
