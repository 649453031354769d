"""Console output: progress and notes on stderr, results on stdout."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import wrap
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipgraft.errors import printable

SECONDS_BETWEEN_LINES = 10.0
"""Of progress in a log file, where a bar would be thousands of lines."""
SECONDS_TO_STAY = 2.0
"""From which a finished bar stays: dozens of a moment would push notes and results out of sight."""
WIDTH_OF_FILES = 1000
"""Columns of a table in a file or pipe, where programs and editors read long lines."""

Update = Callable[[int, str], None]
"""`update(done, note)`: items done so far, and a short text beside the bar."""


class ForgivingStream:
    """Text stream that discards output after its first error."""

    def __init__(self, stream: TextIO, errors: type[OSError]):
        self._stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        """Write a text; drop it if that fails."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush; drop the rest if that fails."""
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except self._errors:
            # What the stream still holds would fail again when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Discard notes that cannot be written, and results without a reader."""
    streams = sys.stdout, sys.stderr
    for name, errors in (("stdout", BrokenPipeError), ("stderr", OSError)):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, ForgivingStream(stream, errors))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def is_first_process() -> bool:
    """Whether this is the process that prints, of several."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def track(description: str, total: int) -> Iterator[Update]:
    """Show progress over `total` items: a bar, or lines without a terminal."""
    if not is_first_process():
        yield lambda _done, _note: None
        return
    console, description = Console(stderr=True), printable(description)
    if not console.is_terminal:
        yield _line_printer(console, description, total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=printable(note))
        progress.live.transient = time.monotonic() - started < SECONDS_TO_STAY


def _line_printer(console: Console, description: str, total: int) -> Update:
    started = last = time.monotonic()
    done_before: int | None = None  # in an earlier run: a resumed task begins somewhere in the middle

    def update(done: int, note: str) -> None:
        nonlocal last, done_before
        now = time.monotonic()
        done_before = done - 1 if done_before is None else done_before
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        remaining = (now - started) * (total - done) / max(1, done - done_before)
        clock = f"{remaining:.0f} s left" if done < total else f"in {now - started:.0f} s"
        _print(f"{description}: " + " ".join(filter(None, (f"{done}/{total}", note, clock))), console)

    return update


def say(note: str) -> None:
    """Print a note on stderr; a terminal's lines end between words."""
    console, text = Console(stderr=True), f"note: {note}"
    if console.is_terminal:  # a path or command stays whole, so that it can be copied
        wrapped = wrap(printable(text), console.width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(wrapped)
    _print(text, console)


def announce(text: str) -> None:
    """Print the heading of a part of the work on stderr."""
    if is_first_process():
        _print(text, Console(stderr=True, style="bold"))


def print_line(text: str) -> None:
    """Print a line on stdout, with control characters escaped."""
    _print(text, Console())


def _print(text: str, console: Console) -> None:
    """Print text as it is: neither its `[brackets]` nor its `:names:` are rich's."""
    console.print(printable(text), emoji=False, highlight=False, markup=False, soft_wrap=True)


def print_table(table: RenderableType) -> None:
    """Print a table on stdout without markup, cut by a terminal only."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_FILES
    console.print(table)
