"""Memory that is needed no more, given back to the system."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

DONT_NEED = 4
"""Linux's MADV_DONTNEED: pages of a file are read again when they are touched."""


def release_memory() -> None:
    """Give what nothing refers to any more back to the system.

    Models refer to themselves, and garbage is collected by the number of objects, not by their bytes. Their
    weights are smaller than the 32 MiB above which glibc returns a block by itself.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # without glibc
        ctypes.CDLL(None).malloc_trim(0)


def release_files(folder: Path) -> None:
    """Give back the pages of a folder's mapped, read-only files."""
    with suppress(AttributeError, OSError, TypeError):  # not Linux
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            span, access, *_, path = line.split(maxsplit=5)
            if access.startswith("r--") and path.startswith(f"{folder.resolve()}/"):
                begin, end = (int(place, 16) for place in span.split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), DONT_NEED)
