"""Processes that end when the one that started them does, even when that one is killed."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent(how: signal.Signals) -> Callable[[], None]:
    """Return what a child process calls so that this signal reaches it when its parent has ended.

    The library is loaded here and not there: a fork may have happened in between. Only Linux can do it.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(_SET_PARENT_DEATH_SIGNAL, how, 0, 0, 0)
