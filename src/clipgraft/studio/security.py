"""The door: every request passes here before anything reads it.

In this order: the Host it names, the page it comes from, its token, its size and type, the time it takes to
arrive. A web page that a user happens to visit can so neither ask nor listen, and a stranger costs nothing.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from clipgraft.studio.access import Access

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "clipgraft_token"
OPEN_PATHS = ("/health",)
UPLOAD_PATHS = ("/v1/pictures/settings",)
OWN_SITES = ("same-origin", "none")
"""What a browser says of a request by the studio's own page, or by the user's own hand. Another port of the
same machine is `same-site`, and another page."""
PROXY_HINT = "behind a proxy, start the studio with --public-url and the address that browsers open"
DRAIN_FACTOR = 4
"""Of a refused request, so many times the largest body is read and thrown away (guess)."""
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
        send, receive = self._with_security_headers(send), _Body(receive)
        refusal = self._refusal(scope, headers)
        if refusal is None and self._is_login(scope):
            await _respond(send, 303, b"", {"location": "/", "set-cookie": self._cookie(scope)})
            return
        body = b""
        if refusal is None:
            try:
                async with asyncio.timeout(self.body_seconds):
                    body, refusal = await self._read_body(headers, receive)
            except TimeoutError:
                refusal = 408, "request_timeout", f"the request did not arrive within {self.body_seconds:g} s"
        if refusal:
            await self._refuse(headers, receive, send, *refusal)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _refuse(
        self, headers: dict[str, str], receive: "_Body", send: Send, status: int, code: str, message: str
    ) -> None:
        """Answer, and throw away what the client still sends.

        A connection that is closed with bytes unread is reset, and most clients then lose the answer.
        """
        body = json.dumps(error_body(code, message)).encode()
        given = {"content-type": "application/json", "connection": "close"}
        given |= {"www-authenticate": "Bearer"} if status == 401 else {}
        await _respond(send, status, body, given, is_whole=False)
        if status != 408 and "expect" not in headers:  # who waits for 100 Continue sends nothing any more
            with suppress(TimeoutError):
                async with asyncio.timeout(self.body_seconds):
                    await receive.drain(DRAIN_FACTOR * self.max_body_bytes)
        await send({"type": "http.response.body", "body": b""})

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self.access.allows_host(host):
            return 403, "host_not_allowed", f"this server does not go by that name (Host); {PROXY_HINT}"
        origin = headers.get("origin")
        if origin is not None and not self.access.allows_origin(origin, host):
            message = f"requests from other web pages are not answered (Origin); {PROXY_HINT}"
            return 403, "origin_not_allowed", message
        if headers.get("sec-fetch-site", "none") not in OWN_SITES and not _is_link_to_the_page(
            scope, headers
        ):
            message = "requests from other web pages are not answered (Sec-Fetch-Site)"
            return 403, "origin_not_allowed", message
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

    def _cookie(self, scope: Scope) -> str:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{COOKIE}={self.access.token}; HttpOnly; SameSite=Strict; Path=/{secure}"

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


def _is_link_to_the_page(scope: Scope, headers: dict[str, str]) -> bool:
    """Whether a user follows a link from elsewhere to the page itself, which tells the other page nothing."""
    wanted = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return scope["method"] == "GET" and scope["path"] == "/" and wanted == ("navigate", "document")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read already; what comes after it, such as a lost connection, passes through."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replay


class _Body:
    """A request's messages; knows when there are no more, for the next one comes only at the end."""

    def __init__(self, receive: Receive):
        self._receive, self.has_ended = receive, False

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self.has_ended = not message.get("more_body")
        return message

    async def drain(self, max_bytes: int) -> None:
        """Read and throw away what is still sent."""
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
