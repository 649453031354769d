"""Server-sent events: a bound that holds, one description for all listeners, and an end."""

import json
import socket
import threading
import time

import pytest
from starlette.testclient import TestClient

from clipgraft.studio.api import build_app
from clipgraft.studio.events import MAX_STREAMS
from clipgraft.studio.security import Access
from clipgraft.studio.server import Server, _bound
from helpers import image_request

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
JOB = {"prompt": "A dog", "steps": 3}


@pytest.fixture
def port(service):
    """The port of a studio whose device a test may hold."""
    listening = threading.Event()
    with _bound("127.0.0.1", 0) as listener:
        server = Server(service, Access(), listening.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert listening.wait(timeout=20)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(timeout=30)


def submit(service, **values) -> str:
    return service.submit(
        "a", "generate", [("tiny/after", image_request("A dog", num_inference_steps=3))] * 2
    )


def listen(port: int, job_id: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(20)
    connection.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    read = b""
    while end not in read and (more := connection.recv(65536)):
        read += more
    return read


def events_of(content: bytes) -> list[dict]:
    return [json.loads(line[6:]) for line in content.split(b"\n") if line.startswith(b"data: ")]


@pytest.mark.integration
def test_the_65th_listener_is_refused_and_places_come_back(port, service):
    with service.cache.lock:  # nothing is generated meanwhile
        job_id = submit(service)
        connections = [listen(port, job_id) for _ in range(MAX_STREAMS)]
        assert all(b" 200 OK" in read_until(connection, b"\n\n") for connection in connections)
        refused = [listen(port, job_id) for _ in range(5)]
        for connection in refused:
            answer = read_until(connection, b"}}")
            assert b" 429 " in answer
            assert b"64 clients are listening to events already" in answer
            assert b"retry-after: " in answer
            connection.close()
        for connection in connections[:10]:
            connection.close()
        give_up = time.monotonic() + 10
        while b" 200 OK" not in read_until(again := listen(port, job_id), b"\n\n"):
            again.close()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        again.close()
    for connection in connections[10:]:
        assert events_of(read_until(connection, b"0\r\n\r\n"))[-1]["state"] == "done"
        connection.close()


@pytest.mark.integration
def test_a_job_is_described_once_a_change_however_many_listen(port, service):
    described = []
    describe = service.describe
    service.describe = lambda job: described.append(job.id) or describe(job)
    with service.cache.lock:
        job_id, other = submit(service), submit(service)
        time.sleep(1.5)  # the first is taken, and waits for the device
        described.clear()
        connections = [listen(port, job_id) for _ in range(16)] + [listen(port, other)]
        told = [read_until(connection, b"\n\n") for connection in connections]
        time.sleep(1)
        assert sorted(described) == sorted([job_id, other])
        assert len({content.partition(b"event: ")[2] for content in told[:16]}) == 1
    for connection in connections:
        connection.close()


def test_listeners_are_told_of_the_end_when_the_studio_stops(port, service):
    with service.cache.lock:
        connection = listen(port, submit(service))
        read_until(connection, b"\n\n")
        service.worker.begin_to_stop()
        assert read_until(connection, b"0\r\n\r\n").endswith(b"0\r\n\r\n")
    connection.close()


def test_an_ended_job_is_told_once(service):
    client = TestClient(build_app(service), base_url="http://localhost")
    job_id = submit(service)
    service.cancel(job_id)
    for _ in range(2):
        [event] = events_of(client.get(f"/v1/jobs/{job_id}/events").content)
        assert event["state"] == "cancelled"
    assert client.get("/v1/jobs/0123456789abcdef/events").status_code == 404
