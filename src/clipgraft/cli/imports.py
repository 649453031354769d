"""Imports of large libraries, without garbage collection and what is not used."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("peft", "scipy")
"""Packages that transformers and diffusers import wherever they are installed, in an eighth of the time that
a first image takes: for adapters of peft, losses of object detection and beta sigmas, which nothing here asks
of them."""


@contextmanager
def importing() -> Iterator[None]:
    """Pause garbage collection while libraries are imported, and hide `UNUSED` from them.

    torch, transformers and diffusers make a million objects that stay. The collector walks over them again
    and again, in a fifth of the time that their import takes; afterwards it leaves them out.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        with _hidden():
            yield
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _hidden() -> Iterator[None]:
    """Let `UNUSED` seem not installed, unless imported before."""
    names = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None bars an import
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
