"""Trips: which source files a value passes on its way from the user to its use."""

import sys
from collections.abc import Callable
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import clipgraft

SOURCE = str(Path(clipgraft.__file__).parent)
MAX_DEPTH, MAX_MEMBERS = 4, 40
"""How far and wide an object is searched: enough for a caption in a dataset, or a setting in a recipe."""

BESIDE = {"cli/app.py", "training/checkpoints.py"}
"""Start every command, and note what a resumed run is compared by: both beside a value's way."""


def trip(value: object, use: str, work: Callable[[], object]) -> list[str]:
    """Files that a value passes: those that give it, and those on the stack where it is used.

    What merely looks on, such as a log that gets the settings and returns nothing of them, does not count,
    nor do the files of `BESIDE`.

    Args:
        value: A text, number or path that nothing else equals; a text may lie within a longer one.
        use: Qualified name of the function that uses it; the trip ends with its first call.
        work: What is traced, in this thread.
    """
    files: dict[str, None] = {}
    ended = False

    def on_event(frame: FrameType, event: str, returned: object) -> None:
        nonlocal ended
        if ended or not frame.f_code.co_filename.startswith(SOURCE):
            return
        if event == "return" and not frame.f_code.co_name.startswith("<") and holds(returned, value):
            files[name_of(frame)] = None
        if event == "call" and frame.f_code.co_qualname == use:
            ended = True
            caller: FrameType | None = frame
            while caller:
                if caller.f_code.co_filename.startswith(SOURCE):
                    files[name_of(caller)] = None
                caller = caller.f_back

    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(None)
    assert ended, f"{use} was not called"
    return [name for name in files if name not in BESIDE]


def name_of(frame: FrameType) -> str:
    return frame.f_code.co_filename[len(SOURCE) + 1 :]


def holds(thing: Any, value: object, depth: int = MAX_DEPTH) -> bool:
    """Whether a thing is a value, or an object of ours or a collection that holds it."""
    if isinstance(thing, str | PurePath):
        return str(value) in str(thing) if isinstance(value, str | PurePath) else False
    if isinstance(thing, int | float) or thing is None:
        return type(thing) is type(value) and thing == value
    if depth == 0:
        return False
    if isinstance(thing, dict):
        members = list(thing.values())
    elif isinstance(thing, list | tuple | set | frozenset):
        members = list(thing)[:MAX_MEMBERS]
    elif type(thing).__module__.startswith("clipgraft") and not isinstance(thing, type):
        members = list(getattr(thing, "__dict__", {}).values())
    else:
        return False
    return any(holds(member, value, depth - 1) for member in members[:MAX_MEMBERS])
