"""The door: every request passes here before anything reads it.

In this order: the Host it names, the page it comes from, its token, its size and type, the time it takes to
arrive. A web page that a user happens to visit can so neither ask nor listen, and a stranger costs nothing.
"""

import asyncio
import hmac
import ipaddress
import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "clipgraft_token"
OPEN_PATHS = ("/health",)
UPLOAD_PATHS = ("/v1/pictures/settings",)
UPLOAD_TYPES = ("image/png", "image/jpeg", "image/webp")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who is let in."""

    token: str = ""
    """Empty = nobody is asked; for loopback alone."""
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    """Names that a request may give as its Host, without port."""
    any_address: bool = False
    """Whether a Host that is a plain IP address will do: a foreign page can only ever bring a name."""

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this server."""
        name = _host_name(host)
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address

    def allows_token(self, given: str) -> bool:
        """Compare in a time that does not depend on where they differ."""
        return not self.token or hmac.compare_digest(given.encode(), self.token.encode())


@dataclass
class Guard:
    """ASGI middleware around the whole application."""

    app: ASGIApp
    access: Access
    max_body_bytes: int
    body_seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by status code."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = self._with_security_headers(send)
        refusal = self._refusal(scope, headers)
        if refusal is None and self._is_login(scope):
            await _respond(send, 303, b"", {"location": "/", "set-cookie": self._cookie()})
            return
        body = b""
        if refusal is None:
            try:
                async with asyncio.timeout(self.body_seconds):
                    body, refusal = await self._read_body(headers, receive)
            except TimeoutError:
                refusal = 408, "request_timeout", f"the request did not arrive within {self.body_seconds:g} s"
        if refusal:
            await _refuse(send, *refusal)
            return
        await self.app(scope, _replay(body, receive), send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self.access.allows_host(host):
            return 403, "host_not_allowed", "this server does not go by that name (Host)"
        origin = headers.get("origin")
        if origin is not None and (
            _origin_host(origin) != host or headers.get("sec-fetch-site") == "cross-site"
        ):
            return 403, "origin_not_allowed", "requests from other web pages are not answered (Origin)"
        if scope["path"] in OPEN_PATHS:
            return None
        if not self.access.allows_token(_token(scope, headers)):
            return 401, "invalid_api_key", "a token is needed: Authorization: Bearer TOKEN, or /?token=TOKEN"
        if scope["method"] in ("POST", "PUT", "PATCH"):
            given = headers.get("content-type", "").partition(";")[0].strip().lower()
            allowed = UPLOAD_TYPES if scope["path"] in UPLOAD_PATHS else ("application/json",)
            if given not in allowed:
                return 415, "unsupported_media_type", f"Content-Type must be {' or '.join(allowed)}"
        return None

    async def _read_body(
        self, headers: dict[str, str], receive: Receive
    ) -> tuple[bytes, tuple[int, str, str] | None]:
        too_large = 413, "body_too_large", f"a request has at most {self.max_body_bytes:,} bytes"
        length = headers.get("content-length", "0")
        if (
            not length.isascii()
            or not length.isdigit()
            or len(length) > 12
            or int(length) > self.max_body_bytes
        ):
            return b"", too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body_bytes:
                return b"", too_large
            if not message.get("more_body"):
                break
        return b"".join(parts), None

    def _is_login(self, scope: Scope) -> bool:
        return bool(self.access.token) and scope["path"] == "/" and b"token=" in scope["query_string"]

    def _cookie(self) -> str:
        return f"{COOKIE}={self.access.token}; HttpOnly; SameSite=Strict; Path=/"

    def _with_security_headers(self, send: Send) -> Send:
        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (k.encode(), v.encode())
                        for k, v in SECURITY_HEADERS.items()
                        if k.encode() not in given
                    ),
                ]
            await send(message)

        return send_with_headers


def error_body(
    code: str, message: str, kind: str = "invalid_request_error", param: str | None = None
) -> dict:
    """An error in the shape that OpenAI's clients read."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _token(scope: Scope, headers: dict[str, str]) -> str:
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if scope["path"] == "/":
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if "token" in query:
            return query["token"][0]
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def _host_name(host: str) -> str:
    """Host without its port, and an IPv6 address without brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _origin_host(origin: str) -> str | None:
    """Host of an Origin, with its port; None where it is none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read already; what comes after it, such as a lost connection, passes through."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    headers = {"content-type": "application/json", "connection": "close"}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    await _respond(send, status, json.dumps(error_body(code, message)).encode(), headers)


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
