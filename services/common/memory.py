"""How the C library gives memory back: less eagerly, since rows pass through in pieces of the same size."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
_PIECES_BYTES = 16 << 20


def keep_freed() -> None:
    """Let freed memory be used again instead of returned; does nothing where the C library is not glibc.

    By default each mebibyte that is freed goes back to the system and is cleared when it comes again, which takes
    several times as long as decrypting what is put in it.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_MMAP_THRESHOLD, _PIECES_BYTES)
        tune(_TRIM_THRESHOLD, _KEPT_BYTES)
