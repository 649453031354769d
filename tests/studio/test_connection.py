"""How long a connection may take to say what it wants, on a server of our own over loopback."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn

from clipgraft.studio.server import TimedConnection

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


def test_the_headers_of_a_second_request_have_their_own_limit(connection):
    connection.send(WHOLE)
    connection.recv(1000)
    connection.send(b"GET / HTTP/1.1\r\nX-Slow: ")
    assert SECONDS / 2 < seconds_until_closed(connection, drip=b"a") < 5 * SECONDS
