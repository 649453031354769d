"""The studio's page in Chromium: where it is, how it starts, and waiting for what it shows."""

import re
import time
from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EXPECTED = re.compile("status of (422|404)")
"""Refusals that the page shows, and what it asks for that may not be there."""


def until(page, expression, seconds=30.0):
    """Wait for an expression to be true; the page's policy forbids the library's own way, which is eval."""
    give_up = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < give_up, expression
        page.wait_for_timeout(50)


def view(page, name):
    """Open one of the page's views."""
    page.goto(f"{page.url.split('#')[0]}#{name}")
    page.wait_for_selector(f"nav a[href='#{name}'][aria-current]")
