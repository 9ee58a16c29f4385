"""How memory is given back: by the C library, and by Python's garbage collector."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
_PIECES_BYTES = 16 << 20


def keep_freed() -> None:
    """Let freed memory be used again instead of returned; does nothing where the C library is not glibc.

    Rows pass through in pieces of the same size. By default each mebibyte that is freed goes back to the system and is
    cleared when it comes again, which takes several times as long as decrypting what is put in it.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_MMAP_THRESHOLD, _PIECES_BYTES)
        tune(_TRIM_THRESHOLD, _KEPT_BYTES)


@contextmanager
def importing() -> Iterator[None]:
    """Do not look for garbage meanwhile: imports leave hardly any, and looking takes up to a third of a large one."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def calm_collector() -> None:
    """Let the garbage collector leave alone what a process lives with, and look at the rest less often.

    Else it walks every library's objects, and all of a service's state, while calls and steps wait.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
