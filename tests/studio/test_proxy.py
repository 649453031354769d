"""A studio behind a proxy that ends TLS, which keeps the Host that it was asked for, or gives its own."""

import http.client
import http.server
import threading
from contextlib import contextmanager

import pytest

from clipgraft.studio.security import make_access
from clipgraft.studio.server import Server, _bound

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PUBLIC = "https://studio.example.org"
TOKEN = "t" * 40
BROWSER = {
    "Host": "studio.example.org",
    "Origin": PUBLIC,
    "Sec-Fetch-Site": "same-origin",
    "Cookie": f"clipgraft_token={TOKEN}",
    "Content-Type": "application/json",
}


@contextmanager
def in_thread(run, stop):
    thread = threading.Thread(target=run)
    thread.start()
    yield
    stop()
    thread.join(timeout=30)


@pytest.fixture
def studio(service, monkeypatch):
    """The port of a studio that knows its public URL."""
    monkeypatch.setenv("CLIPGRAFT_TOKEN", TOKEN)
    listening = threading.Event()
    with _bound("127.0.0.1", 0) as listener:
        server = Server(service, make_access("127.0.0.1", True, f"{PUBLIC}/"), listening.set)
        stop = lambda: setattr(server, "should_exit", True)  # noqa: E731
        with in_thread(lambda: server.run(sockets=[listener]), stop):
            assert listening.wait(timeout=20)
            yield listener.getsockname()[1]


@pytest.fixture(params=["the Host as asked", "its own Host"])
def proxy(studio, request):
    """The port of a proxy before it."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def forward(self):
            headers = dict(self.headers) | {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
            if request.param == "its own Host":
                headers["Host"] = f"127.0.0.1:{studio}"
            body = self.rfile.read(int(headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection("127.0.0.1", studio, timeout=30)
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())
            upstream.close()

        do_GET = do_POST = forward  # noqa: N815

        def log_message(self, *_args):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    with in_thread(server.serve_forever, server.shutdown):
        yield server.server_address[1]
    server.server_close()


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    given = {name: value for name, value in (BROWSER | headers).items() if value}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_a_browser_logs_in_draws_and_is_given_public_addresses(proxy, service):
    answer, _ = ask(proxy, "GET", f"/?token={TOKEN}", Origin="", Cookie="")
    assert answer.status == 303
    assert "; Secure" in answer.getheader("Set-Cookie")
    assert ask(proxy, "GET", "/v1/models")[0].status == 200
    assert ask(proxy, "POST", "/v1/jobs", b'{"prompt": "a dog", "steps": 1}')[0].status == 202
    assert service.queue.jobs(1)[0].client.split()[0] == "203.0.113.7"
    body = b'{"prompt": "a dog", "steps": 1, "response_format": "url"}'
    assert f'"url":"{PUBLIC}/v1/images/' in ask(proxy, "POST", "/v1/images/generations", body)[1]


def test_foreign_pages_and_names_are_refused_behind_a_proxy(studio):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "http://studio.example.org"},
        {"Origin": f"{PUBLIC}.evil.example"},
        {"Origin": f"{PUBLIC}:444"},
        {"Host": "evil.example"},
        {"Host": "studio.example.org.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answer, _ = ask(studio, "GET", "/v1/models", **headers)
        assert answer.status == 403, headers


def test_its_own_address_is_answered_beside_the_public_one(studio):
    own = {"Host": f"127.0.0.1:{studio}", "Origin": f"http://127.0.0.1:{studio}"}
    answer, _ = ask(studio, "GET", f"/?token={TOKEN}", **own)
    assert "Secure" not in answer.getheader("Set-Cookie")
    assert ask(studio, "GET", "/v1/models", **own)[0].status == 200


@pytest.mark.parametrize(
    "url",
    [
        "studio.example.org",
        "ftp://studio.example.org",
        "https://",
        "https://a/studio",
        "https://a?x",
        "https://a@b",
    ],
)
def test_a_public_url_is_scheme_name_and_port_alone(url):
    with pytest.raises(ValueError, match="--public-url must be scheme, name and port alone"):
        make_access("127.0.0.1", True, url)


def test_a_public_url_needs_a_token():
    with pytest.raises(ValueError, match=r"on https://a\.example others can reach the studio; add --token"):
        make_access("127.0.0.1", False, "https://a.example")


def test_default_ports_and_capitals_make_no_difference():
    assert make_access("127.0.0.1", True, "HTTPS://A.Example:443/").public_url == "https://a.example"
    assert make_access("127.0.0.1", True, "https://a.example:8443").public_url == "https://a.example:8443"
