"""Memory of dropped models, given back to the system."""

import ctypes
import gc
from contextlib import suppress


def release_memory() -> None:
    """Give what nothing refers to any more back to the system.

    Models refer to themselves, and garbage is collected by the number of objects, not by their bytes. Their
    weights are smaller than the 32 MiB above which glibc returns a block by itself.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # without glibc
        ctypes.CDLL(None).malloc_trim(0)
