"""The studio's database: refused at the start in one line, told of with 503 later, and never deleted."""

import shutil
import sqlite3
import sys
import time
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from app_client import ended
from clipgraft.cli import app as cli
from clipgraft.studio.api import build_app
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.queue import Queue
from helpers import files_of_at_most, image_request

JOB = {"prompt": "A dog", "steps": 1}
NEW = ("m", image_request("a dog", num_inference_steps=1))


def filled(path) -> bytes:
    """A database with some pages in it; its content."""
    queue = Queue(path)
    for _ in range(20):
        queue.add("a", "generate", [NEW] * 10)
        queue.end_job(1, "cancelled")
        queue.max_waiting = queue.max_jobs_per_client = 10**6
    queue.database.close()
    return path.read_bytes()


def foreign(path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()


def middle_overwritten(path) -> None:
    content = bytearray(filled(path))
    content[4096:-4096] = bytes(range(256)) * ((len(content) - 8192) // 256)
    path.write_bytes(content)


BAD = {
    "junk": (lambda path: path.write_bytes(b"\x07junk" * 5000), "is no SQLite database; move it away"),
    "a word": (lambda path: path.write_bytes(b"hello"), "is no SQLite database; move it away"),
    "cut": (lambda path: path.write_bytes(filled(path)[:-8000]), "is damaged"),
    "cut in its first page": (lambda path: path.write_bytes(filled(path)[:1000]), "is damaged"),
    "overwritten": (middle_overwritten, "is damaged"),
    "another program's": (lambda path: foreign(path, "CREATE TABLE songs (name TEXT)"), "another program's"),
    "other columns": (lambda path: foreign(path, "CREATE TABLE jobs (id TEXT)"), "another program's"),
    "a folder": (lambda path: path.mkdir(), "cannot be opened"),
}


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("kind", BAD)
def test_a_database_that_is_none_is_refused_in_one_line(kind, monkeypatch, capsys, tmp_path):
    make, message = BAD[kind]
    path = tmp_path / "queue.sqlite"
    make(path)
    before = path.is_dir() or path.read_bytes()
    monkeypatch.setattr(
        sys, "argv", ["clipgraft", "studio", str(tmp_path / "runs"), "--out", str(tmp_path), "--port", "0"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: the studio's queue cannot be used: queue.sqlite")
    assert message in line
    assert (path.is_dir() or path.read_bytes()) == before


def test_a_queue_of_an_earlier_version_is_upgraded(tmp_path):
    path = tmp_path / "queue.sqlite"
    queue = Queue(path)
    queue.add("a", "generate", [NEW])
    queue.database.close()
    foreign(
        path,
        "ALTER TABLE images RENAME TO pictures; UPDATE jobs SET kind = 'draw';"
        "DROP INDEX images_by_job; DROP INDEX images_by_state;"
        "CREATE INDEX pictures_by_job ON pictures (job); CREATE INDEX pictures_by_state ON pictures (state);"
        "CREATE TABLE turns (client TEXT PRIMARY KEY, turn INTEGER NOT NULL);",
    )
    for _ in range(2):
        queue = Queue(path)
        assert [job.kind for job in queue.jobs(9)] == ["generate"]
        assert [row.prompt for row in queue.images_of(1)] == ["a dog"]
        queue.database.close()


def test_a_locked_database_is_not_called_damaged(tmp_path):
    filled(tmp_path / "queue.sqlite")
    with (
        used_by_another_program(
            tmp_path / "queue.sqlite", "PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE"
        ),
        pytest.raises(ValueError, match="is locked by another"),
    ):
        Queue(tmp_path / "queue.sqlite")


@contextmanager
def used_by_another_program(path, *statements):
    other = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        other.execute(statement)
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def full_database(service):
    """SQLite's own bound in the place of a full disk's."""
    writer = service.queue.database._writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count={pages}")
    try:
        yield
    finally:
        writer.execute("PRAGMA max_page_count=1000000")


def refused(answer) -> str:
    """Return the message of an answer that says, in our shape, to try again later."""
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]["message"]


def until_health_is(client, status: int, reason: str = "") -> None:
    """Wait for what `/health` says: it looks once a second, and the worker tries again after one."""
    give_up = time.monotonic() + 6
    while True:
        answer = client.get("/health")
        found = answer.status_code, answer.json().get("reason", "")
        if found[0] == status and reason in found[1]:
            return
        assert time.monotonic() < give_up, found
        time.sleep(0.1)


@pytest.mark.integration
def test_another_writer_delays_jobs_briefly_and_lists_never(client, service):
    with used_by_another_program(service.queue.database.path, "BEGIN IMMEDIATE"):
        begun = time.monotonic()
        assert "locked by another program" in refused(client.post("/v1/jobs", json=JOB))
        assert time.monotonic() - begun < 4
        begun = time.monotonic()
        assert client.get("/v1/jobs").status_code == 200
        assert time.monotonic() - begun < 1
        until_health_is(client, 503, "queue.sqlite is locked by another program; close that program")
    until_health_is(client, 200)
    assert ended(client, client.post("/v1/jobs", json=JOB).json()["id"])["state"] == "done"


def test_a_database_that_cannot_grow_is_a_full_disk(client, service):
    answers = []
    with full_database(service):
        for _ in range(200):
            answers.append(client.post("/v1/jobs", json=JOB | {"prompt": "x" * 4000}))
            if answers[-1].status_code != 202:
                break
    assert "no space left on the disk" in refused(answers[-1])


@pytest.mark.integration
def test_a_full_disk_is_reported_until_there_is_room(client, service):
    assert client.post("/v1/images/generations", json=JOB).status_code == 200
    with files_of_at_most(0):
        until_health_is(client, 503, "no space left on the disk; free some")
        answer = client.post("/v1/images/generations", json=JOB)
    assert refused(answer)
    until_health_is(client, 200)
    assert client.post("/v1/images/generations", json=JOB).status_code == 200


@pytest.mark.parametrize("damage", ["junk", "gone", "replaced"])
def test_a_database_that_breaks_is_reported_by_health(client, service, tmp_path, damage):
    path = service.queue.database.path
    if damage == "junk":
        with path.open("r+b") as file:
            file.write(b"\x07" * 8192)
    elif damage == "gone":
        path.unlink()
    else:
        shutil.copy(path, tmp_path / "other")
        (tmp_path / "other").replace(path)
    until_health_is(client, 503, "queue.sqlite ")
    answer = client.get("/v1/jobs")  # not necessarily read from the file again
    assert answer.status_code == 200 or refused(answer)


def test_a_damaged_row_is_told_as_damage(client, service):
    ended(client, client.post("/v1/jobs", json=JOB).json()["id"])
    with service.queue.database.transaction() as run:
        run("UPDATE images SET settings = ?", b"\xff\xfe{")
    assert "is damaged in the studio's database" in refused(client.get("/v1/images"))
    with service.queue.database.transaction() as run:
        run("UPDATE images SET settings = CAST(x'fffe' AS TEXT)")
    assert "is damaged" in refused(client.get("/v1/images"))


def test_a_transaction_that_fails_leaves_nothing_open(tmp_path):
    queue = Queue(tmp_path / "queue.sqlite")
    other = sqlite3.connect(tmp_path / "queue.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError):
        queue.add("a", "generate", [NEW])
    other.execute("ROLLBACK")
    assert queue.jobs(1) == []
    queue.add("a", "generate", [NEW])
    assert len(queue.jobs(9)) == 1
    queue.database.close()
    other.close()


def test_our_own_bug_is_a_500_with_the_tracebacks_number(service):
    service.queue.jobs = None
    client = TestClient(build_app(service), base_url="http://localhost")
    with pytest.raises(TypeError) as error:
        client.get("/v1/jobs")
    [note] = error.value.__notes__
    quiet = TestClient(build_app(service), base_url="http://localhost", raise_server_exceptions=False)
    answer = quiet.get("/v1/jobs")
    assert answer.status_code == 500
    number = answer.json()["error"]["message"].rpartition(" ")[2]
    assert len(number) == len(note.rpartition(" ")[2]) == 16
    assert answer.json()["error"]["code"] == "internal_error"
