"""The fastest of several ways on this machine, measured once and kept.

Deleting the folder `measured` of the cache has everything measured again.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from clipgraft.cache import cache_dir, cached_file
from clipgraft.console import say
from clipgraft.errors import DataError, UserError
from clipgraft.files import fingerprint, read_json, write_json
from clipgraft.section import Positive, Section

FOLDER = "measured"
VERSIONED = ("torch", "diffusers", "openvino")


class Machine(Section):
    """What decides how fast something is, beside the work itself."""

    cpu: str
    num_threads: int
    versions: dict[str, str]
    """Of libraries that are installed."""

    @classmethod
    def here(cls) -> "Machine":
        """Return this one."""
        versions = {}
        for name in VERSIONED:
            with suppress(PackageNotFoundError):
                versions[name] = version(name)
        return cls(cpu=cpu_name(), num_threads=torch.get_num_threads(), versions=versions)


class Measured(Section):
    """Seconds of several ways on one machine, and the chosen one."""

    what: str
    """Was measured: "a guided step of flatland at 128 px"."""
    chosen: str
    seconds: dict[str, Positive]
    """By way."""
    machine: Machine

    def __str__(self) -> str:
        ways = sorted(self.seconds, key=lambda way: way != self.chosen)
        return ", ".join(f"{way} {short_time(self.seconds[way])}" for way in ways)


def measured_once(what: str, key: object, measure: Callable[[], tuple[str, Mapping[str, float]]]) -> Measured:
    """Return what is kept; if missing or damaged, measure.

    Other processes wait meanwhile. Without a cache that can be written, nothing is kept.

    Args:
        what: Is measured, for people.
        key: Covers what decides the figures, beside the machine; as JSON.
        measure: Returns the chosen way, and the seconds of each.
    """
    if (found := kept(key)) is not None:
        return found
    made: list[Measured] = []

    def now() -> Measured:
        chosen, seconds = measure()
        made.append(Measured(what=what, chosen=chosen, seconds=dict(seconds), machine=Machine.here()))
        return made[0]

    try:
        (cache_dir() / FOLDER / _name(key)).unlink(missing_ok=True)  # it is damaged
        path = cached_file(FOLDER, _name(key), lambda part: write_json(part, now().model_dump())).path
        return made[0] if made else _read(path)
    except (OSError, UserError):  # of a cache that cannot be written, or measuring's own, which comes again
        return made[0] if made else now()


def kept(key: object) -> Measured | None:
    """Return what is kept; None if missing, or damaged, with a note."""
    try:
        path = cache_dir() / FOLDER / _name(key)
    except UserError:  # no folder for a cache
        return None
    try:
        return _read(path)
    except OSError:
        return None
    except UserError as error:
        say(f"a measurement in the cache is damaged, and is made again: {error}")
        return None


def all_kept() -> Iterator[Measured]:
    """Yield what is kept for this machine."""
    with suppress(OSError, UserError):
        for path in sorted((cache_dir() / FOLDER).glob("*.json")):
            with suppress(OSError, UserError):
                measured = _read(path)
                if measured.machine == Machine.here():
                    yield measured


def _name(key: object) -> str:
    return f"{fingerprint(key, Machine.here().model_dump())[:32]}.json"


def _read(path: Path) -> Measured:
    measured = Measured.build(read_json(path))
    if measured.chosen not in measured.seconds:
        raise DataError(f"{path} has no seconds of what it chooses, {measured.chosen!r}")
    return measured


def short_time(seconds: float) -> str:
    """Format seconds: `2.29 s`, `18.4 ms`."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def cpu_name() -> str:
    """Return the processor's model, with torch's name of its vector units.

    Virtual machines with and without AVX512 may both say "AMD EPYC".
    """
    return f"{_model_name()} ({torch.backends.cpu.get_cpu_capability()})"


def _model_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
