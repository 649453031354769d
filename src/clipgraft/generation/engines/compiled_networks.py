"""Compiled networks kept on disk: read in half of compiling's time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from clipgraft.cache import cache_dir
from clipgraft.cached_arrays import ContentCache
from clipgraft.errors import UserError
from clipgraft.files import fingerprint

FOLDER = "compiled"
MAX_WEIGHT_BYTES = 2**27
"""Of a network that is kept: flatland's U-Net takes 24 MB for each shape, SD v1.5's would take 1.7 GB."""


def compiled_once(
    core: Any, key: Sequence[object], settings: Mapping[str, Any], compile_network: Callable[[], Any]
) -> Any:
    """Return a compiled network from the cache, else compile.

    Args:
        core: OpenVINO's core.
        key: Covers the network and its shapes; as JSON.
        settings: How it is compiled.
        compile_network: Returns it as `core` has compiled it.
    """
    made: list[Any] = []

    def make(_numbers: Sequence[int]) -> Iterator[np.ndarray]:
        made.append(compile_network())
        yield np.frombuffer(made[0].export_model().getbuffer(), np.uint8)

    with suppress(OSError, UserError):  # of a cache that cannot be written, or is not there
        cache = ContentCache(cache_dir() / FOLDER, "compiled networks")
        blob = cache.arrays([fingerprint(key, settings, _machine(core))], make)[0]
        if not made:
            with suppress(RuntimeError):  # OpenVINO's, if it takes its own file for another version's
                return core.import_model(blob.tobytes(), "CPU", settings)
    return made[0] if made else compile_network()


def _machine(core: Any) -> list[object]:
    """What compiling depends on beside the network."""
    named = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return [*named, torch.backends.cpu.get_cpu_capability()]
