"""The door: who is let in, from where, with how much, in what time; and what every answer carries."""

import asyncio
import logging
import re
import socket
from contextlib import suppress

import pytest
from fastapi.routing import APIRoute

from clipgraft.studio.api import build_app
from clipgraft.studio.security import Access, Guard, make_access
from clipgraft.studio.server import Server, redact_secrets, serve

TOKEN = "t" * 40
BEARER = {"authorization": f"Bearer {TOKEN}"}


def routes_of(guard):
    """Every method and path that the application has, with ids in the place of their names."""
    found = []
    pending = [guard.app.router]
    while pending:
        for route in pending.pop().routes:
            if isinstance(route, APIRoute):
                path = re.sub(r"{[^}]+}", "1f0c9a52e3b84d17", route.path)
                found += [(method, path) for method in route.methods]
            elif hasattr(route, "routes"):
                pending.append(route)
            elif hasattr(route, "original_router"):
                pending.append(route.original_router)
            else:
                found.append(("GET", route.path))
    return found


def test_no_route_but_health_answers_without_the_token(locked, service):
    routes = routes_of(build_app(service))
    assert len(routes) >= 22
    for method, path in [
        *routes,
        ("GET", "/nope"),
        ("OPTIONS", "/v1/jobs"),
        ("HEAD", "/"),
        ("PUT", "/v1/jobs"),
    ]:
        answer = locked.request(method, path)
        assert answer.status_code == (200 if path == "/health" else 401), (method, path)
    assert locked.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer tü"},
        {"cookie": "clipgraft_token=nope"},
        {"cookie": "clipgraft_token"},
        {"x-token": TOKEN},
    ],
)
def test_another_token_is_none(locked, headers):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = locked.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_token_admits_programs_and_browsers(locked):
    assert locked.get("/v1/models", headers=BEARER).status_code == 200
    answer = locked.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert locked.get("/v1/models").status_code == 200  # by the cookie
    locked.cookies.clear()
    assert locked.get(f"/v1/models?token={TOKEN}").status_code == 401  # an address ends in logs


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "",
        "[",
        "192.168.0.7",
        "evil@127.0.0.1",
        "127.0.0.1#x",
        "127.0.0.1/x",
        "127.0.0.1?x",
        "127.0.0.1\\x",
        "localhost:x",
        "localhost:",
        "::1",
        "[::1",
        "[127.0.0.1]x",
        "localhost localhost",
        "localhost, evil.example",
        "127.0.0.1:123456",
    ],
)
def test_another_host_is_refused_before_its_body_is_read(client, host):
    answer = client.post("/v1/jobs", json={"prompt": "a"}, headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"
    assert "--public-url" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:9999", "file://", "", "http://[", "http://]:1"],
)
def test_another_page_is_refused(client, origin):
    for method, path in (("POST", "/v1/jobs"), ("GET", "/v1/images"), ("OPTIONS", "/v1/jobs")):
        answer = client.request(method, path, headers={"origin": origin})
        assert answer.status_code == 403
        assert "--public-url" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", ""])
def test_an_image_in_another_page_is_refused_without_an_origin(client, site):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    for path in ("/", "/v1/images", "/health"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/v1/images", headers=headers).status_code == 403
    assert client.post("/", json={}, headers=headers).status_code == 403
    for site in ("none", "same-origin"):
        assert client.get("/v1/images", headers=headers | {"sec-fetch-site": site}).status_code == 200


def test_the_own_page_is_answered(client):
    assert client.get("/v1/images", headers={"origin": "http://localhost"}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_only_json_is_taken_so_that_no_form_can_post(client, kind):
    answer = client.post("/v1/jobs", content=b'{"prompt": "a"}', headers={"content-type": kind})
    assert answer.status_code == 415
    assert (
        client.post(
            "/v1/images/settings", content=b"x", headers={"content-type": "image/svg+xml"}
        ).status_code
        == 415
    )


def test_large_bodies_are_refused_by_header_and_by_content(client):
    headers = {"content-type": "application/json"}
    said = client.post("/v1/jobs", content=b"{}", headers=headers | {"content-length": "99999999"})
    assert said.status_code == 413
    streamed = client.post("/v1/jobs", content=(b"x" * 1_000_000 for _ in range(13)), headers=headers)
    assert streamed.status_code == 413
    assert client.get("/health").status_code == 200


class BodyReadError(Exception):
    """Raised where somebody asks for a body."""


def status_at_the_door(access, receive, **headers: str) -> int:
    """Send a request that must not come past the guard; return the answer's status."""

    async def app(scope, receive, send):
        raise AssertionError("it must not come this far")

    sent = []

    async def send(message):
        sent.append(message)

    headers = {"host": "localhost", "content_type": "application/json"} | headers
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "query_string": b"", "headers": pairs}
    with suppress(BodyReadError):
        asyncio.run(Guard(app, access, 10_000, body_seconds=0.2)(scope, receive, send))
    return sent[0]["status"]


def test_a_body_that_drips_in_is_given_up():
    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    assert status_at_the_door(Access(), receive) == 408


def test_strangers_and_large_bodies_are_refused_unread():
    async def receive():
        raise BodyReadError

    assert status_at_the_door(Access(TOKEN), receive, content_length="2") == 401
    assert status_at_the_door(Access(), receive, content_length="10001") == 413
    assert status_at_the_door(Access(), receive, origin="http://[") == 403


@pytest.mark.parametrize("ended", [True, False])
def test_a_refused_body_is_drained_within_bounds(ended):
    read = []

    async def receive():
        read.append(1000)
        return {"type": "http.request", "body": bytes(1000), "more_body": not ended or len(read) < 5}

    assert status_at_the_door(Access(TOKEN), receive) == 401
    assert sum(read) == 5000 if ended else 40_000 < sum(read) <= 41_000


def test_every_answer_forbids_foreign_content_and_guessing(client):
    for path in ("/", "/health", "/v1/models", "/nope", "/page/main.js"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "server" not in headers


def test_an_address_that_others_reach_needs_a_token(runs_dir, tmp_path):
    for host in ("0.0.0.0", "192.168.0.7", "::", "studio.example"):
        with pytest.raises(ValueError, match=f"on {host} others can reach the studio; add --token"):
            serve(runs_dir, tmp_path, host=host, port=0, with_token=False, device="cpu")
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        access = make_access(host, False)
        assert access.token == ""
        assert access.allows_host(f"[{host}]:8080" if ":" in host else f"{host}:8080")
        assert not access.allows_host("127.0.0.3:8080")


def test_tokens_are_made_long_or_taken_from_the_environment(monkeypatch):
    monkeypatch.delenv("CLIPGRAFT_TOKEN", raising=False)
    first, second = make_access("0.0.0.0", True), make_access("0.0.0.0", True)
    assert len(first.token) >= 40
    assert first.token != second.token
    monkeypatch.setenv("CLIPGRAFT_TOKEN", "x" * 16)
    assert make_access("0.0.0.0", True).token == "x" * 16
    for bad in ("short", "x" * 15, "with space " * 3, "semi;colon" * 3):
        monkeypatch.setenv("CLIPGRAFT_TOKEN", bad)
        with pytest.raises(ValueError, match="CLIPGRAFT_TOKEN must have at least 16 letters"):
            make_access("0.0.0.0", True)


def test_an_open_address_takes_ip_hosts_but_no_foreign_names():
    access = make_access("0.0.0.0", True)
    for host in ("192.168.0.7:8080", "[::1]:8080", "localhost", f"{socket.gethostname()}:8080"):
        assert access.allows_host(host), host
    for host in ("evil.example", "192.168.0.7.nip.io:8080", ""):
        assert not access.allows_host(host), host


def test_secrets_never_reach_the_log(monkeypatch, tmp_path, service):
    monkeypatch.setenv("HF_TOKEN", "hf_SENTINEL_IN_THE_ENVIRONMENT")
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(logging.getLogger("uvicorn"), "handlers", [])  # of servers of other tests
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    try:
        redact_secrets(TOKEN)
        Server(service, Access(TOKEN), lambda: None)
        logging.getLogger("uvicorn.error").error("the server was asked with %s", TOKEN)
        logger = logging.getLogger("clipgraft.test")
        logger.warning("asked with %s and %s", TOKEN, {"token": "hf_SENTINEL_IN_THE_ENVIRONMENT"})
        try:
            raise RuntimeError(f"no access with {TOKEN}")
        except RuntimeError:
            logger.exception("failed")
    finally:
        logging.getLogger().removeHandler(handler)
    text = (tmp_path / "log.txt").read_text()
    assert "the server was asked with [secret]" in text
    assert "RuntimeError: no access with [secret]" in text
    assert TOKEN not in text
    assert "SENTINEL" not in text
