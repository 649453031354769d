"""What a stage used: seconds, processor time and memory, kept beside its results."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clipgraft.files import write_json

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

NAME = "resources.json"


@contextmanager
def recorded_resources(folder: Path) -> Iterator["Resources"]:
    """Write `resources.json` when the work in a folder ends, however it ends.

    What a resumed run used before is added: seconds are summed, of memory the most is kept.
    """
    used = Resources(folder / NAME)
    try:
        yield used
    finally:
        used.write()


class Resources:
    """Measures from its making on.

    Args:
        path: The file; what it holds already is an earlier part of the same run.
    """

    def __init__(self, path: Path):
        self.path = path
        self.earlier = _read(path)
        self.begun = time.perf_counter()
        self.processor_seconds = _processor_seconds()

    def write(self) -> None:
        """Write `seconds`, `processor_seconds` (all cores and workers), `peak_memory_bytes` of this process,
        and `peak_gpu_memory_bytes` where there is one."""
        used: dict[str, float] = {
            "seconds": time.perf_counter() - self.begun,
            "processor_seconds": _processor_seconds() - self.processor_seconds,
        }
        for key in used:
            used[key] = round(used[key] + self.earlier.get(key, 0), 1)
        for key, value in _peak_memory().items():
            used[key] = max(value, self.earlier.get(key, 0))
        if self.path.parent.is_dir():  # a stage may have refused before it made its folder
            write_json(self.path, used)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in values.items() if isinstance(value, int | float)}
    except (OSError, ValueError, AttributeError):
        return {}


def _processor_seconds() -> float:
    if resource is None:
        return time.process_time()
    of_all = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in of_all)


def _peak_memory() -> dict[str, int]:
    peak = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak
