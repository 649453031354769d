"""The faster of the engines at hand, measured once and kept.

Which one that is depends on the CPU: OpenVINO took 0.59 of torch's time on an AMD with AVX512-BF16, and 1.06
of it on an Intel with AMX.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from clipgraft.cache import cache_dir
from clipgraft.console import say, track
from clipgraft.device import cpu_name, num_processes, without_folders
from clipgraft.errors import MissingFileError, UserError
from clipgraft.files import fingerprint, read_json, write_json
from clipgraft.generation.engines.attach import engine_unet, unet_loader
from clipgraft.generation.engines.engine import Engine
from clipgraft.models.base import FrozenBase
from clipgraft.section import Positive, Section

TIE = 1.03
"""Times the fastest step that torch's may take to be chosen: it converts nothing, and starts sooner."""
MIN_TURNS, TURN_SECONDS, ENOUGH_SECONDS = 2, 0.1, 0.5
"""A turn is one step, or as many as fit: the other engine's threads, still spinning, slow the first."""
VERSIONED = ("torch", "diffusers", "openvino")

Step = Callable[[], object]


class Machine(Section):
    """What decides how fast engines are, beside the U-Net."""

    cpu: str
    num_threads: int
    versions: dict[str, str]
    """Of the libraries."""

    @classmethod
    def here(cls) -> "Machine":
        """Return this one; OpenVINO must be installed."""
        versions = {name: version(name) for name in VERSIONED}
        return cls(cpu=cpu_name(), num_threads=torch.get_num_threads(), versions=versions)


class Measured(Section):
    """Engines measured on one machine, for U-Nets of one architecture."""

    base: str
    """The first one's name."""
    side: int
    """Pixels of the image."""
    dtypes: dict[str, str]
    """By engine."""
    seconds: dict[str, Positive]
    """Of a guided step, by engine."""
    machine: Machine

    @property
    def chosen(self) -> str:
        """The fastest engine's name, or torch if that is hardly slower."""
        fastest = min(self.seconds, key=self.seconds.__getitem__)
        return "torch" if self.seconds["torch"] <= TIE * self.seconds[fastest] else fastest

    def __str__(self) -> str:
        others = [f"{name} {_short(value)}" for name, value in self.seconds.items() if name != self.chosen]
        return f"{self.chosen} {_short(self.seconds[self.chosen])} a guided step, {', '.join(others)}"


def choose_engine(engines: Sequence[Engine], base: FrozenBase, *, can_measure: bool = True) -> Engine:
    """Return the faster engine; measure at an architecture's first use.

    Args:
        engines: From `engines_at_hand`. Several processes take the first, which is the same for all.
        base: Without its U-Net, which is loaded for each engine that is measured.
        can_measure: If not, the first is returned where nothing is kept.
    """
    if len(engines) == 1 or num_processes() > 1:
        return engines[0]
    path = _folder() / f"{_key(engines, base)}.json"
    measured = _read(path, engines)
    if measured is None and can_measure:
        measured = _measure(engines, base)
        _keep(measured, path)
    return next((engine for engine in engines if measured and engine.name == measured.chosen), engines[0])


def kept_choices() -> Iterator[Measured]:
    """Yield what is kept for this machine."""
    for path in sorted(_folder().glob("*.json")):
        measured = _read(path)
        if measured and measured.machine == Machine.here():
            yield measured


def _folder() -> Path:
    return cache_dir() / "engines"


def _key(engines: Sequence[Engine], base: FrozenBase) -> str:
    config = {name: value for name, value in base.unet_config.items() if not name.startswith("_")}
    return fingerprint(config, _dtypes(engines), Machine.here().model_dump())[:32]


def _dtypes(engines: Sequence[Engine]) -> dict[str, str]:
    return {engine.name: str(engine.dtype).removeprefix("torch.") for engine in engines}


def _read(path: Path, engines: Sequence[Engine] = ()) -> Measured | None:
    """Return what is kept; None if missing, or damaged, with a note."""
    try:
        measured = Measured.build(read_json(path))
        if not {"torch", *_dtypes(engines)} <= measured.seconds.keys():
            raise UserError(f"{path} lacks an engine")
    except MissingFileError:
        return None
    except (UserError, OSError) as error:
        say(f"the kept choice of an engine is damaged and is measured again ({error})")
        return None
    return measured


def _keep(measured: Measured, path: Path) -> None:
    where = f"kept in {path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured.model_dump())
    except OSError as error:
        where = f"which cannot be kept in {path.parent}: {error.strerror}"
    say(f"engine: {measured} at {measured.side} px (measured once, {where})")


def _measure(engines: Sequence[Engine], base: FrozenBase) -> Measured:
    assert base.origin is not None
    steps = {engine.name: _guided_step(engine, base) for engine in engines}
    seconds = fastest_turns(steps)
    side = base.unet_config["sample_size"] * 8
    return Measured(
        base=without_folders(base.origin.name),
        side=side,
        dtypes=_dtypes(engines),
        seconds=seconds,
        machine=Machine.here(),
    )


def _guided_step(engine: Engine, base: FrozenBase) -> Step:
    """Load a U-Net; return its step at the base's own size."""
    assert base.tokenizer is not None
    num_tokens = base.tokenizer.model_max_length
    load = unet_loader(base.origin, engine.dtype)
    unet = engine_unet(load(), engine, load, num_tokens, has_feature_cache=False)
    config, random = unet.config, torch.Generator().manual_seed(0)
    sample = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=random)
    states = torch.randn(2, num_tokens, config.cross_attention_dim, generator=random)
    return lambda: unet(sample, 500, states)


def fastest_turns(steps: Mapping[str, Step]) -> dict[str, float]:
    """Return the least seconds of each step, the first one left out."""
    least = dict.fromkeys(steps, float("inf"))
    with track("measuring the engines, once for this kind of base", len(steps) * (1 + MIN_TURNS)) as update:
        for done, (name, step) in enumerate(steps.items(), 1):
            step()
            update(done, name)
        begun, turn = time.perf_counter(), 0
        while turn < MIN_TURNS or time.perf_counter() - begun < ENOUGH_SECONDS:
            turn += 1
            for done, (name, step) in enumerate(steps.items(), 1):
                least[name] = min(least[name], _least_seconds(step))
                update(min(turn, MIN_TURNS) * len(steps) + done, f"{name} {_short(least[name])}")
    return least


def _least_seconds(step: Step) -> float:
    """Return the least seconds of a step in one turn."""
    seconds: list[float] = []
    while sum(seconds) < TURN_SECONDS:
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
