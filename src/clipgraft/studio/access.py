"""Who is let in: hosts, origins, token. Read by the guard, decided from the command line."""

import hmac
import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from clipgraft.errors import UserError

TOKEN_VARIABLE = "CLIPGRAFT_TOKEN"
MIN_TOKEN_LENGTH = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
"""A name, an IPv4 address or an IPv6 address in brackets, and a port; nothing that a URL may hold besides."""


@dataclass(frozen=True)
class Access:
    """Who is let in."""

    token: str = ""
    """Empty = nobody is asked; for loopback alone."""
    hosts: frozenset[str] = LOOPBACK_NAMES
    """Names that a request may give as its Host, without port."""
    any_address: bool = False
    """Whether a Host that is a plain IP address will do: a foreign page can only ever bring a name."""
    public_url: str = ""
    """Origin under which a proxy serves the studio, without a slash at its end; empty = there is no proxy."""

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
        """Whether an Origin header names the page of this server, asked under that Host.

        A proxy may send on the Host that it was asked for, or its own.
        """
        if self.public_url and origin.lower() == self.public_url:
            return True
        scheme, _, place = origin.lower().partition("://")
        if self.public_url and host_name(host) == host_name(urlsplit(self.public_url).netloc):
            return False  # of the public name, the one public origin
        return scheme in ("http", "https") and bool(host_name(place)) and place == host.lower()

    def allows_token(self, given: str) -> bool:
        """Compare in a time that does not depend on where they differ."""
        return not self.token or hmac.compare_digest(given.encode(), self.token.encode())


def host_name(host: str) -> str:
    """Return a Host without its port, an IPv6 address without brackets; empty where it is no host."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def make_access(host: str, with_token: bool, public_url: str = "") -> Access:
    """Decide who is let in.

    Args:
        host: Address to listen on.
        with_token: Whether a token is asked for.
        public_url: Where a proxy serves the studio, or empty.

    Raises:
        UserError: If others can reach the address and no token is asked for, the given token is short, or the
            public URL holds more than scheme, name and port.
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
    """Bring a public URL into the form of an Origin: lower case, no slash, no default port."""
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
