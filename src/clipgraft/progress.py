"""What is said: progress (a bar on a terminal, lines elsewhere) and notes on stderr, results on stdout."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
"""In a log file; a bar is drawn several times a second."""

Update = Callable[[int, str], None]
"""`update(done, note)`: items done so far, and what to say beside the bar."""


@contextmanager
def track(description: str, total: int) -> Iterator[Update]:
    """Show how far a task is.

    Args:
        description: What is done, e.g. "fine-tuning CLIP".
        total: Items in all.

    Yields:
        A function to call with the number of items done so far and a short note.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda _done, _note: None  # of several processes the first one speaks
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(console, description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


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
        console.print(f"{description}: {done}/{total} {note} {remaining:.0f} s left", highlight=False)

    return update


def say(note: str) -> None:
    """Print a note on standard error."""
    Console(stderr=True).print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line on standard output as it is."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
