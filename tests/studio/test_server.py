"""The server: what the command refuses, slow connections, stopping."""

import asyncio
import json
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import uvicorn

from clipgraft.cli import app as cli
from clipgraft.studio.security import Access
from clipgraft.studio.server import Server, TimedConnection, _announce, _bound

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
SECONDS = 0.4
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Impatient(TimedConnection):
    """With a limit that a test can wait for."""

    header_seconds = SECONDS


async def answer_late(scope, receive, send):
    """An application that takes longer than headers may."""
    await asyncio.sleep(2 * SECONDS)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture
def connection():
    """A connection to a server in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            answer_late,
            http=Impatient,
            log_config=None,  # by default it closes the handlers that other tests have made
            lifespan="off",
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with socket.create_connection(listener.getsockname()) as connection:
        connection.settimeout(10 * SECONDS)
        yield connection
    server.should_exit = True
    thread.join()
    listener.close()


def seconds_until_closed(connection: socket.socket, drip: bytes = b"") -> float:
    """Send a byte every now and then until the other end closes."""
    begun = time.monotonic()
    connection.settimeout(SECONDS / 8)
    while time.monotonic() - begun < 10 * SECONDS:
        try:
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            if drip:
                connection.send(drip)
        except ConnectionError:
            break
    return time.monotonic() - begun


def test_headers_that_drip_in_are_given_up(connection):
    connection.send(b"GET / HTTP/1.1\r\nX-Slow: ")
    assert SECONDS / 2 < seconds_until_closed(connection, drip=b"a") < 5 * SECONDS


def test_a_connection_that_asks_nothing_is_closed(connection):
    assert SECONDS / 2 < seconds_until_closed(connection) < 5 * SECONDS


def test_an_answer_may_take_longer_than_headers_may(connection):
    connection.send(WHOLE)
    assert connection.recv(100).startswith(b"HTTP/1.1 204")


@pytest.mark.integration
def test_the_headers_of_a_second_request_have_their_own_limit(connection):
    connection.send(WHOLE)
    connection.recv(1000)
    connection.send(b"GET / HTTP/1.1\r\nX-Slow: ")
    assert SECONDS / 2 < seconds_until_closed(connection, drip=b"a") < 5 * SECONDS


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


def test_an_ipv6_address_is_shown_whole(capsys):
    _announce("fe80::1", 8188, Access(), False)  # in brackets, which would be markup to rich
    assert capsys.readouterr().out.splitlines()[0] == "studio: http://[fe80::1]:8188/"


def test_the_signal_handler_takes_no_lock(service):
    server = Server(service, Access(), lambda: None)
    handler = threading.Thread(target=server.handle_exit, args=(signal.SIGTERM, None), daemon=True)
    with service._lock, service.queue.database._write_lock, service.queue.database._read_lock:
        handler.start()
        handler.join(timeout=5)
        assert not handler.is_alive()
    assert server.should_exit  # so that a second signal ends the process at once


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_call_beyond_a_batch_is_answered_when_stopping(service):
    def ask(address):
        body = {"prompt": "A dog", "n": 10, "steps": 100}
        request = urllib.request.Request(
            f"{address}/v1/images/generations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answers.append((error.code, json.loads(error.read())["error"]["message"]))

    answers = []
    is_listening = threading.Event()
    with _bound("127.0.0.1", 0) as listener:
        server = Server(service, Access(), is_listening.set)
        threads = [
            threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True),
            threading.Thread(
                target=ask, args=(f"http://127.0.0.1:{listener.getsockname()[1]}",), daemon=True
            ),
        ]
        threads[0].start()
        assert is_listening.wait(timeout=20)
        threads[1].start()
        give_up = time.monotonic() + 20
        while not service.worker.progress:
            assert time.monotonic() < give_up
            time.sleep(0.005)
        server.handle_exit(signal.SIGTERM, None)
        for thread in threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in threads)
    assert answers == [(503, "the studio is stopping")]
