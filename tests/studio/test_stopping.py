"""A server that is told to stop, in this process: whoever waits is answered, and it ends."""

import json
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from clipgraft.studio.security import Access
from clipgraft.studio.server import Server, _bound


def test_a_signal_takes_no_lock_that_the_code_it_interrupts_may_hold(service):
    server = Server(service, Access(), lambda: None)
    handler = threading.Thread(target=server.handle_exit, args=(signal.SIGTERM, None), daemon=True)
    with service._lock, service.queue.database._write_lock, service.queue.database._read_lock:
        handler.start()
        handler.join(timeout=5)
        assert not handler.is_alive()
    assert server.should_exit  # so that a second signal ends the process at once


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_call_of_more_images_than_a_batch_is_answered_and_the_server_ends(service):
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
