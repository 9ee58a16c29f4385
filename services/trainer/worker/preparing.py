"""Before the first step, while a model is loaded and rows are read: nothing has begun that would have to be saved.

A large model takes minutes to load. A worker that is asked to leave meanwhile, or whose job is cancelled, goes at once:
else it would be killed before it has said that no step ran, and the job would pay for all of them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from services.trainer.worker.heartbeat import Heartbeat
from services.trainer.worker.saving import Evicted, Stopped


class _Leave(BaseException):
    """No `Exception`: nothing that loads a model may take it for a failure of its own."""


@contextmanager
def preparing(heartbeat: Heartbeat, evicted: threading.Event, alone: bool) -> Iterator[Callable[[], None]]:
    """Heed at once that the job is to stop, or this worker to leave; in the main thread of its first process.

    Args:
        heartbeat: hears that the job is to stop.
        evicted: set when this process is asked to leave.
        alone: whether it is the worker's only one. Several agree on when to leave, and can do so after a step only;
            where their job is over, it does not matter how they end.

    Yields:
        What to call when the first step begins: from then on both are only noted.

    Raises:
        Stopped: if the job is to stop.
        Evicted: if this worker alone is to leave.
    """
    leaving = False

    def leave(number: int, _: object) -> None:
        nonlocal leaving
        if number == signal.SIGTERM:
            evicted.set()
        if not leaving:
            leaving = True
            raise _Leave

    def begin() -> None:
        heartbeat.on_stop = None
        for number, handler in before.items():
            signal.signal(number, handler)

    def interrupt() -> None:
        # The main thread may stand in a call that a signal alone breaks off.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    # One that is on its way when the first step begins must end nothing.
    before: dict[int, Any] = {signal.SIGUSR1: signal.SIG_IGN}
    signal.signal(signal.SIGUSR1, leave)
    if alone:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, leave)
    try:
        heartbeat.on_stop = interrupt
        if heartbeat.told or (alone and evicted.is_set()):
            raise _Leave  # it came before anybody listened
        yield begin
    except _Leave:
        # Only now: in the handler, the main thread may hold what a call needs.
        raise (Stopped if heartbeat.should_stop() else Evicted) from None
    finally:
        begin()
