"""Contenders on a GPU in turns: seconds, memory, share of peak; on a CPU, tiny, as a rehearsal."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Turn = Callable[[], float | None]
"""Does a turn's work; gives its seconds a step, or None to be timed as one step."""


@dataclass(frozen=True)
class Scale:
    """Device and sizes of all measurements."""

    is_rehearsal: bool
    deadline: float = float("inf")
    """Of `time.monotonic()`; no further turn is begun after it."""

    @property
    def device(self) -> str:
        return "cpu" if self.is_rehearsal else "cuda"

    @property
    def num_turns(self) -> int:
        return 2 if self.is_rehearsal else 5

    @property
    def half(self) -> torch.dtype:
        """Dtype in which images are generated."""
        return torch.bfloat16 if self.is_rehearsal else torch.float16

    def synchronize(self) -> None:
        if not self.is_rehearsal:
            torch.cuda.synchronize()

    def allocated_bytes(self, *, is_peak: bool = False) -> int:
        """Bytes of the GPU held by tensors now, or at most since the last `reset_peak`; 0 on a CPU."""
        if self.is_rehearsal:
            return 0
        return torch.cuda.max_memory_allocated() if is_peak else torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        if not self.is_rehearsal:
            torch.cuda.reset_peak_memory_stats()


def take_turns(makers: Mapping[str, Callable[[], Turn]], scale: Scale) -> dict[str, dict[str, Any]]:
    """Make each contender, let it do two turns, then time all of them in turns.

    Returns:
        By name `seconds` (median a step), `turns`, `first_seconds` (making and the first turn, with
        compiling) and `peak_bytes` (own tensors and the most added in a turn), or `failed` with the reason.
    """
    contenders: dict[str, Turn] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        gc.collect()
        before, begun = scale.allocated_bytes(), time.perf_counter()
        try:
            turn = make()
            seconds_of(turn, scale)
            results[name] = {"first_seconds": time.perf_counter() - begun, "turns": [], "peak_bytes": 0}
            seconds_of(turn, scale)
        except Exception as error:  # the others are still measured
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            continue
        contenders[name] = turn
        results[name]["own_bytes"] = scale.allocated_bytes() - before
        print(name, results[name], flush=True)
    for number in range(scale.num_turns):
        if number and time.monotonic() > scale.deadline:
            break
        for name, turn in contenders.items():
            result, before = results[name], scale.allocated_bytes()
            scale.reset_peak()
            result["turns"].append(seconds_of(turn, scale))
            added = scale.allocated_bytes(is_peak=True) - before
            result["peak_bytes"] = max(result["peak_bytes"], result["own_bytes"] + added)
    for name in contenders:
        results[name]["seconds"] = statistics.median(results[name]["turns"])
    return results


def seconds_of(turn: Turn, scale: Scale) -> float:
    """Seconds a step of a turn, all of its work on the GPU done."""
    scale.synchronize()
    begun = time.perf_counter()
    own = turn()
    scale.synchronize()
    return time.perf_counter() - begun if own is None else own


def matmul_peak(dtype: torch.dtype, scale: Scale) -> float:
    """Operations a second of products of two square matrices of random numbers, the best of ten turns."""
    size, times = (256, 1) if scale.is_rehearsal else (8192, 10)
    left, right = (torch.randn(size, size, device=scale.device).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(times):
            left @ right

    return 2 * times * size**3 / min(seconds_of(multiply, scale) for _ in range(10))
