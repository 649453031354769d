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

from clipgraft.errors import UserError, is_user_error, one_line, printable
from clipgraft.progress import unhindered_output

TERMINATED = 128 + signal.SIGTERM
"""Exit code, by the shell's convention."""


class Commands(TyperGroup):
    """Keeps typer from answering Ctrl-C without a word, and an EOFError of ours as an abortion."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped from stop
        except EOFError as error:
            raise RuntimeError(f"unexpected end of a file: {error}") from error


class _Stopped(Exception):
    """Ctrl-C."""


def run_to_an_end(app: Callable[[], Any]) -> None:
    """Run the command line, and end the process in one line.

    Exit code 0, 2 for what the user can mend, 130 or 143 for a signal, 1 and a traceback for our bugs.

    Args:
        app: Reads argv, and leaves by `SystemExit`.
    """
    with unhindered_output(), _ended_by_sigterm():
        handler = logging.StreamHandler()
        handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        try:
            app()
        except (
            SystemExit
        ) as end:  # how each command that came to its end leaves, one with failed pictures too
            _end_process_group()
            if end.code == TERMINATED:
                _end("stopped by SIGTERM", TERMINATED)
            raise
        except (KeyboardInterrupt, _Stopped):
            _end("stopped by Ctrl-C", 130)
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
    from clipgraft.runtime import cache_dir

    try:
        place, cache = Path(os.fsdecode(error.filename)), cache_dir()
    except UserError:  # there is none
        return ""
    is_cache = place == cache or place in cache.parents or cache in place.parents
    return "; the cache cannot be kept there: set XDG_CACHE_HOME to a folder that can be written" * is_cache


class _PlainFormatter(logging.Formatter):
    """Escapes what a terminal would obey: a warning may hold a stranger's file name."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process by way of every `finally`, so that nothing is left half done."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(_signal_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def _end_process_group() -> None:
    """A process that leaves with its group still open may be aborted on its way out, all work done."""
    if "WORLD_SIZE" in os.environ:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _end(message: str, exit_code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(exit_code)
