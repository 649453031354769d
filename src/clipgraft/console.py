"""What is said: progress (a bar on a terminal, lines elsewhere) and notes on stderr, results on stdout."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipgraft.errors import printable

SECONDS_BETWEEN_LINES = 10.0
"""In a log file; a bar is drawn several times a second."""

Update = Callable[[int, str], None]
"""`update(done, note)`: items done so far, and what to say beside the bar."""


class Unhindered:
    """A text stream that goes nowhere from its first error on, so that no work ends for want of a reader.

    Args:
        stream: Of the operating system.
        errors: Class of the errors that are meant.
    """

    def __init__(self, stream: TextIO, errors: type[OSError]):
        self._stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        """Write a text; drop it where that fails."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush; drop what is left where that fails."""
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except self._errors:
            # What the stream still holds would fail again at the process's end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unhindered_output() -> Iterator[None]:
    """Drop notes that cannot be written, and results that nobody reads any more (`| head -1`)."""
    streams = sys.stdout, sys.stderr
    for name, errors in (("stdout", BrokenPipeError), ("stderr", OSError)):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, Unhindered(stream, errors))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def is_first_process() -> bool:
    """Whether this one of several processes is the one to speak."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def track(description: str, total: int) -> Iterator[Update]:
    """Show how far a task is.

    Args:
        description: What is done, e.g. "fine-tuning CLIP".
        total: Items in all.

    Yields:
        A function to call with the number of items done so far and a short note.
    """
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
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=printable(note))


def _line_printer(console: Console, description: str, total: int) -> Update:
    started = last = time.monotonic()
    done_before: int | None = None  # by an earlier run: a resumed task begins somewhere in the middle

    def update(done: int, note: str) -> None:
        nonlocal last, done_before
        now = time.monotonic()
        done_before = done - 1 if done_before is None else done_before
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        remaining = (now - started) * (total - done) / max(1, done - done_before)
        line = f"{description}: {done}/{total} {printable(note)} {remaining:.0f} s left"
        console.print(line, highlight=False, markup=False)

    return update


def say(note: str) -> None:
    """Print a note on standard error."""
    Console(stderr=True).print(printable(f"note: {note}"), highlight=False, markup=False, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line on standard output as it is, but for what a terminal would obey."""
    Console().print(printable(text), highlight=False, markup=False, soft_wrap=True)
