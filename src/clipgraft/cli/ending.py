"""How the process ends: exit codes, signals, an error in one line."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from clipgraft.console import unhindered_output
from clipgraft.errors import UserError, is_user_error, one_line, printable

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes, by the shell's convention; typer too has the first for Ctrl-C."""
STOPPED = {INTERRUPTED: "stopped by Ctrl-C", TERMINATED: "stopped by SIGTERM"}


class Commands(TyperGroup):
    """Keeps typer from taking an EOFError of ours for the end of what a user types."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"unexpected end of a file: {error}") from error


def run_to_an_end(app: Callable[[], Any]) -> None:
    """Run the command line, and end the process in one line.

    Exit code 0, 2 for what the user can mend, 130 or 143 for a signal, 1 and a traceback for our bugs.

    Args:
        app: Reads argv, and leaves by `SystemExit`.
    """
    with unhindered_output(), _ended_by_signals():
        handler = logging.StreamHandler()
        handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # warns of a cache of its own that it lacks
        try:
            app()
        except (
            SystemExit
        ) as end:  # how each command that came to its end leaves, one with failed pictures too
            _end_process_group()
            if end.code in STOPPED:
                _end(STOPPED[end.code], end.code)
            raise
        except KeyboardInterrupt:
            _end(STOPPED[INTERRUPTED], INTERRUPTED)
        except Exception as error:
            _end_by(error)


def _end_by(error: Exception) -> None:
    """End with one line for what the user can mend or has asked for; else with the traceback."""
    exit_code = getattr(error, "exit_code", None)
    if "--debug" in sys.argv or not (exit_code or is_user_error(error)):
        raise error
    if exit_code:
        _end(f"{error}; go on with the same command and --resume", exit_code)
    advice = _cache_advice(error) if isinstance(error, OSError) else ""
    _end(f"error: {one_line(error)}{advice}", 2)


def _cache_advice(error: OSError) -> str:
    """Say how to have the cache elsewhere, where it is the cache that cannot be written."""
    if not error.filename or error.errno is None:
        return ""
    from clipgraft.cache import cache_dir

    try:
        place, cache = Path(os.fsdecode(error.filename)), cache_dir()
    except UserError:  # no home folder, so no cache
        return ""
    is_cache = place == cache or place in cache.parents or cache in place.parents
    return "; the cache cannot be kept there: set XDG_CACHE_HOME to a folder that can be written" * is_cache


class _PlainFormatter(logging.Formatter):
    """Escapes what a terminal would obey: a warning may hold a stranger's file name."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end this process by way of every `finally`, so that nothing is left half done.

    A signal that is to be ignored, as Ctrl-C under nohup, stays ignored.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    mine = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in mine:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)


def _stop(signal_number: int, _frame: FrameType | None) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch.__spec__, "_initializing", False):
        # Half imported, its C++ would abort the process at an exception; no folder is held yet.
        os.write(2, f"{STOPPED[128 + signal_number]}\n".encode())
        os._exit(128 + signal_number)
    raise KeyboardInterrupt if signal_number == signal.SIGINT else SystemExit(TERMINATED)


def _end_process_group() -> None:
    """A process that leaves with its group still open may be aborted on its way out, all work done."""
    if "WORLD_SIZE" in os.environ:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _end(message: str, exit_code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(exit_code)
