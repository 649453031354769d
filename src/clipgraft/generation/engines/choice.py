"""The faster of the available engines, measured once and kept.

Which one that is depends on the CPU: OpenVINO took 0.59 of torch's time on an AMD with AVX512-BF16, 0.75
on one with AVX2 alone, and 1.06 on an Intel with AMX.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from clipgraft.console import say, track
from clipgraft.device import num_processes, without_folders
from clipgraft.generation.engines.attach import engine_unet, unet_loader
from clipgraft.generation.engines.engine import Engine
from clipgraft.measured import kept, measured_once, short_time
from clipgraft.memory import release_memory
from clipgraft.models.base import FrozenBase

TIE = 1.03
"""Times the fastest step that torch's may take to be chosen: it converts nothing, and starts sooner."""
CLEAR = 1.15
"""Times the fastest step that every other takes where no more rounds are needed: less may be noise."""
MIN_ROUNDS, MAX_ROUNDS = 2, 3
"""Two at least, as the machine may be busy for a while."""
MAX_STEPS, ENOUGH_SECONDS = 50, 0.25
"""Steps of an engine in a round: as many as take so long of computing, one at least."""

Step = Callable[[], object]


def choose_engine(engines: Sequence[Engine], base: FrozenBase, *, can_measure: bool = True) -> Engine:
    """Return the faster engine; measure at an architecture's first use.

    Args:
        engines: From `engines_at_hand`. Several processes take the first, which is the same on all machines.
        base: Without its U-Net, which is loaded for one engine after the other.
        can_measure: If not, the first is returned where nothing is kept.
    """
    if len(engines) == 1 or num_processes() > 1:
        return engines[0]
    config = {name: value for name, value in base.unet_config.items() if not name.startswith("_")}
    key = ["engine", config, [[engine.name, str(engine.dtype)] for engine in engines]]
    what = f"a guided step of {without_folders(base.origin.name)} at {8 * config['sample_size']} px"
    measured = measured_once(what, key, lambda: _measure(what, engines, base)) if can_measure else kept(key)
    return next((engine for engine in engines if measured and engine.name == measured.chosen), engines[0])


def _measure(what: str, engines: Sequence[Engine], base: FrozenBase) -> tuple[str, dict[str, float]]:
    seconds = fastest_steps({engine.name: partial(_guided_step, engine, base) for engine in engines})
    chosen = prefer(seconds)
    figures = ", ".join(f"{name} {short_time(value)}" for name, value in seconds.items())
    say(f"engine {chosen}: {what} takes {figures} (measured once on this machine)")
    return chosen, seconds


def prefer(seconds: Mapping[str, float]) -> str:
    """Return the fastest engine, or torch where that is hardly slower."""
    fastest = min(seconds, key=seconds.__getitem__)
    return "torch" if seconds["torch"] <= TIE * seconds[fastest] else fastest


def _guided_step(engine: Engine, base: FrozenBase) -> Step:
    """Load a U-Net; return its step at the base's own size."""
    num_tokens = base.tokenizer.model_max_length
    load = unet_loader(base.origin, engine.dtype)
    unet = engine_unet(load(), engine, load, num_tokens, has_feature_cache=False)
    config, random = unet.config, torch.Generator().manual_seed(0)
    sample = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=random)
    states = torch.randn(2, num_tokens, config.cross_attention_dim, generator=random)
    return lambda: unet(sample, 500, states)


def fastest_steps(loads: Mapping[str, Callable[[], Step]]) -> dict[str, float]:
    """Return the least seconds of each step, one loaded at a time.

    All are measured again where they differ too little to be distinguished.

    Args:
        loads: By name, what loads a network and returns its step. It is dropped before the next is loaded.
    """
    least = dict.fromkeys(loads, float("inf"))
    for number in range(1, MAX_ROUNDS + 1):
        for name, load in loads.items():
            least[name] = min(least[name], _least_seconds(name, load()))
            release_memory()
        fastest, *others = sorted(least.values())
        if number >= MIN_ROUNDS and all(seconds > CLEAR * fastest for seconds in others):
            break
    return least


def _least_seconds(name: str, step: Step) -> float:
    """Return the least seconds of a step, without its first, which compiles."""
    release_memory()  # of loading
    seconds: list[float] = []
    with track(f"measuring the engine {name}, once for this kind of base", 2) as update:
        step()
        update(1, "")
        begun = _computed()
        while not seconds or (len(seconds) < MAX_STEPS and _computed() - begun < ENOUGH_SECONDS):
            step_begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - step_begun)
        update(2, short_time(min(seconds)))
    return min(seconds)


def _computed() -> float:
    """Return seconds for which this process computed, on a busy machine too."""
    return time.process_time() / torch.get_num_threads()
