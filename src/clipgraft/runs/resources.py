"""Time and memory that a stage uses, recorded in its folder."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipgraft.errors import UserError
from clipgraft.files import read_json, write_json
from clipgraft.memory import release_memory
from clipgraft.runs.folder import RESOURCES_NAME

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Peaks = dict[str, int]
"""Bytes by key of `resources.json`."""

_peaks: list[Peaks] = []
"""Peaks of the blocks being recorded, outermost first, up to where the latest of them began."""


@contextmanager
def recorded_resources(folder: Path) -> Iterator[None]:
    """Write `resources.json` when the block ends, however it ends.

    Keys: `seconds`, `processor_seconds` (all cores and workers), `peak_memory_bytes` (of this process within
    the block; on other systems than Linux since its start) and, with a GPU, `peak_gpu_memory_bytes`. A
    resumed run adds up seconds and keeps the higher peaks.
    """
    path = folder / RESOURCES_NAME
    try:
        earlier = {key: value for key, value in read_json(path).items() if isinstance(value, int | float)}
    except (OSError, UserError):
        earlier = {}
    release_memory()  # of the stage before
    begun, processor_begun = time.perf_counter(), _processor_seconds()
    _raise_peaks()
    _begin_peaks()
    _peaks.append({})
    try:
        yield
    finally:
        seconds = time.perf_counter() - begun, _processor_seconds() - processor_begun
        added = zip(("seconds", "processor_seconds"), seconds, strict=True)
        used = {key: round(value + earlier.get(key, 0), 1) for key, value in added}
        _raise_peaks()
        peaks = {key: max(value, earlier.get(key, 0)) for key, value in _peaks.pop().items()}
        if folder.is_dir():  # a stage may have refused before it made its folder
            write_json(path, used | peaks)


def _processor_seconds() -> float:
    if resource is None:
        return time.process_time()
    of_all = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in of_all)


def _raise_peaks() -> None:
    """Raise all blocks' peaks to the one since the latest began."""
    now = _peak_memory()
    _peaks[:] = [{key: max(value, peaks.get(key, 0)) for key, value in now.items()} for peaks in _peaks]


def _begin_peaks() -> None:
    """Count peaks anew, so that a stage inherits none."""
    with suppress(OSError):  # as below
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if _has_gpu():
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def _peak_memory() -> Peaks:
    peak = {}
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        peak["peak_memory_bytes"] = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024
    except (OSError, IndexError):  # not Linux, or one without these
        if resource is not None:
            unit = 1 if sys.platform == "darwin" else 1024
            peak["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if _has_gpu():
        peak["peak_gpu_memory_bytes"] = sys.modules["torch"].cuda.max_memory_allocated()
    return peak


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
