"""Imports of large libraries without garbage collection."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Pause garbage collection while libraries are imported.

    torch, transformers and diffusers make a million objects that stay. The collector walks over them again
    and again, in a fifth of the time that their import takes; afterwards it leaves them out.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_enabled:
            gc.enable()
