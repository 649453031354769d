"""Access control: every request passes here before anything reads it.

Checked in this order: its Host, the page it comes from, its token, type and size, and the time it takes to
arrive. So a web page that a user happens to visit can neither ask nor listen, and a stranger costs nothing.
"""

import asyncio
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipgraft.errors import UserError

TOKEN_VARIABLE = "CLIPGRAFT_TOKEN"
MIN_TOKEN_LENGTH = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
"""A name, an IPv4 address or an IPv6 address in brackets, and a port; nothing else that a URL may hold."""
COOKIE = "clipgraft_token"
OPEN_PATHS = ("/health",)
UPLOAD_PATHS = ("/v1/images/settings", "/v1/pictures/settings", "/v1/uploads")
FORM_PATHS, FORM_TYPES = ("/v1/images/edits", "/v1/images/variations"), ("multipart/form-data",)
UPLOAD_TYPES = tuple(f"image/{kind}" for kind in ("png", "jpeg", "webp", "avif", "heic", "heif"))
BODY_TYPES = dict.fromkeys(UPLOAD_PATHS, UPLOAD_TYPES) | dict.fromkeys(FORM_PATHS, FORM_TYPES)
"""By path; of other paths JSON."""
OWN_SITES = ("same-origin", "none")
"""Sec-Fetch-Site of the studio's own page, or of the user's own hand; another port is `same-site`."""
PROXY_HINT = "behind a proxy, start the studio with --public-url and the address that browsers open"
DRAIN_FACTOR = 4
"""Of a refused request, this many times the largest body is read and thrown away (guess)."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    b"content-security-policy": PAGE_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}
Refusal = tuple[int, str, str]
"""Status, code and message."""


@dataclass(frozen=True)
class Access:
    """Who is let in."""

    token: str = ""
    """Empty = not asked for; on loopback only."""
    hosts: frozenset[str] = LOOPBACK_NAMES
    """Host names, without port, that a request may use."""
    any_address: bool = False
    """Whether the Host may be any plain IP address: a foreign page can only bring a name."""
    public_url: str = ""
    """Origin under which a proxy serves the studio, without a trailing slash; empty = no proxy."""

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this server, or the proxy before it."""
        name = host_name(host)
        if name in self.hosts or (name and name == host_name(urlsplit(self.public_url).netloc)):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header names this server's page, requested under that Host.

        A proxy may pass on the Host that it was asked for, or send its own.
        """
        if self.public_url and origin.lower() == self.public_url:
            return True
        scheme, _, place = origin.lower().partition("://")
        if self.public_url and host_name(host) == host_name(urlsplit(self.public_url).netloc):
            return False  # the public name has one origin, the public one
        return scheme in ("http", "https") and bool(host_name(place)) and place == host.lower()

    def allows_token(self, given: str) -> bool:
        """Compare tokens in constant time."""
        return not self.token or hmac.compare_digest(given.encode(), self.token.encode())


@dataclass
class Guard:
    """ASGI middleware around the whole application."""

    app: ASGIApp
    access: Access
    max_body_bytes: int
    body_seconds: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send, body = _with_security_headers(send), _Body(receive)
        refusal = self._refusal(scope, headers)
        if refusal is None and self._is_login(scope):
            await _respond(send, 303, b"", {"location": "/", "set-cookie": self._cookie(scope)})
            return
        content = b""
        if refusal is None:
            try:
                async with asyncio.timeout(self.body_seconds):
                    content, refusal = await self._read_body(headers, body)
            except TimeoutError:
                refusal = 408, "request_timeout", f"the request did not arrive within {self.body_seconds:g} s"
        if refusal:
            await self._refuse(headers, body, send, refusal)
            return
        await self.app(scope, _replay(content, body), send)

    async def _refuse(self, headers: dict[str, str], body: "_Body", send: Send, refusal: Refusal) -> None:
        """Answer, and throw away what the client still sends.

        A connection that is closed with unread bytes is reset, and most clients then lose the answer.
        """
        status, code, message = refusal
        given = {"content-type": "application/json", "connection": "close"}
        given |= {"www-authenticate": "Bearer"} if status == 401 else {}
        await _respond(send, status, json.dumps(error_body(code, message)).encode(), given, is_whole=False)
        if status != 408 and "expect" not in headers:  # who waits for 100 Continue sends nothing more
            with suppress(TimeoutError):
                async with asyncio.timeout(self.body_seconds):
                    await body.drain(DRAIN_FACTOR * self.max_body_bytes)
        await send({"type": "http.response.body", "body": b""})

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Refusal | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.access.allows_host(host):
            return 403, "host_not_allowed", f"this server does not go by that name (Host); {PROXY_HINT}"
        foreign = 403, "origin_not_allowed", "requests from other web pages are not answered"
        if origin is not None and not self.access.allows_origin(origin, host):
            return (*foreign[:2], f"{foreign[2]} (Origin); {PROXY_HINT}")
        if headers.get("sec-fetch-site", "none") not in OWN_SITES and not _is_page_link(scope, headers):
            return (*foreign[:2], f"{foreign[2]} (Sec-Fetch-Site)")
        if scope["path"] in OPEN_PATHS:
            return None
        if not self.access.allows_token(_token(scope, headers)):
            return 401, "invalid_api_key", "a token is needed: Authorization: Bearer TOKEN, or /?token=TOKEN"
        if scope["method"] in ("POST", "PUT", "PATCH"):
            given = headers.get("content-type", "").partition(";")[0].strip().lower()
            allowed = BODY_TYPES.get(scope["path"], ("application/json",))
            if given not in allowed:
                return 415, "unsupported_media_type", f"Content-Type must be {' or '.join(allowed)}"
        return None

    async def _read_body(self, headers: dict[str, str], receive: Receive) -> tuple[bytes, Refusal | None]:
        too_large = 413, "body_too_large", f"a request has at most {self.max_body_bytes:,} bytes"
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > self.max_body_bytes:
            return b"", too_large
        parts, size = [], 0
        while (message := await receive())["type"] != "http.disconnect":
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body_bytes:
                return b"", too_large
            if not message.get("more_body"):
                break
        return b"".join(parts), None

    def _is_login(self, scope: Scope) -> bool:
        return bool(self.access.token) and scope["path"] == "/" and b"token=" in scope["query_string"]

    def _cookie(self, scope: Scope) -> str:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{COOKIE}={self.access.token}; HttpOnly; SameSite=Strict; Path=/{secure}"


def error_body(
    code: str, message: str, kind: str = "invalid_request_error", param: str | None = None
) -> dict[str, Any]:
    """Return an error in the shape that OpenAI's clients read."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def host_name(host: str) -> str:
    """Return a Host without port and brackets; empty if invalid."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def make_access(host: str, with_token: bool, public_url: str = "") -> Access:
    """Decide who is let in.

    Raises:
        UserError: If others can reach the address without a token, the given token is short, or the public
            URL holds more than scheme, name and port.
    """
    public_url = _checked_public_url(public_url)
    is_loopback = host in LOOPBACK_NAMES or _is_loopback(host)
    if not with_token and (public_url or not is_loopback):
        raise UserError(
            f"on {public_url or host} others can reach the studio; add --token, which makes one and shows it "
            "once, or stay on 127.0.0.1"
        )
    token = (os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(32)) if with_token else ""
    if with_token and (len(token) < MIN_TOKEN_LENGTH or not re.fullmatch(r"[\w.~-]+", token, re.ASCII)):
        raise UserError(
            f"{TOKEN_VARIABLE} must have at least {MIN_TOKEN_LENGTH} letters, digits, or any of . _ ~ -; "
            "without it one is made"
        )
    own = {host.lower()} if is_loopback else {host.lower(), socket.gethostname().lower()}
    return Access(token, LOOPBACK_NAMES | own, any_address=not is_loopback, public_url=public_url)


def _checked_public_url(url: str) -> str:
    """Normalise a public URL to an Origin: lower case, no default port."""
    if not url:
        return ""
    scheme, _, place = url.lower().removesuffix("/").partition("://")
    if scheme not in ("http", "https") or not host_name(place):
        raise UserError(
            f"--public-url must be scheme, name and port alone, as https://studio.example.org; got {url!r} "
            "(the studio has to lie at the root of its name)"
        )
    return f"{scheme}://{place.removesuffix(':443' if scheme == 'https' else ':80')}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def _is_page_link(scope: Scope, headers: dict[str, str]) -> bool:
    """Whether a user follows a foreign link to the page itself."""
    wanted = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return scope["method"] == "GET" and scope["path"] == "/" and wanted == ("navigate", "document")


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message["headers"]}
            own = [(name, value) for name, value in SECURITY_HEADERS.items() if name not in given]
            message["headers"] = [*message["headers"], *own]
        await send(message)

    return send_with_headers


def _replay(content: bytes, receive: Receive) -> Receive:
    """Give the body already read, then later messages, such as a disconnect."""
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class _Body:
    """A request's messages, and whether the last one has come."""

    def __init__(self, receive: Receive):
        self._receive, self.has_ended = receive, False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.has_ended = not message.get("more_body")
        return message

    async def drain(self, max_bytes: int) -> None:
        """Read and throw away the rest."""
        size = 0
        while size <= max_bytes and not self.has_ended:
            size += len((await self()).get("body", b""))


async def _respond(
    send: Send, status: int, body: bytes, headers: dict[str, str], *, is_whole: bool = True
) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": not is_whole})
