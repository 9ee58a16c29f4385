"""How often a stream speaks.

A message costs the service and its reader about a tenth of a millisecond each, and many streams of a small model make
tokens faster than that. So a tenant's streams share a number of pieces a second: alone, a stream passes on each token
as it comes; many put some together. The first piece of each, and its last, go at once. What waits goes with the token
that comes next: no clock wakes for it, so a stream that stands still may be a token short. An observer of the network
sees fewer messages of one token, whose sizes tell how long each token is (arXiv 2403.09751).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from services.inference.engine import Delta, joined


class Pace:
    """Puts pieces of one stream together.

    Args:
        interval: tells how many seconds are to lie between two pieces, as things stand.
        clock: seconds.
    """

    def __init__(self, interval: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._next = 0.0
        self._waiting: list[Delta] = []

    def after(self, piece: Delta) -> Delta | None:
        """Take the next piece; returns what is to be sent now, if anything is."""
        self._waiting.append(piece)
        if piece.finish is None:
            now = self._clock()
            # A piece that says nothing, such as half a character, begins no interval.
            if now < self._next or not any(one.text or one.logprobs for one in self._waiting):
                return None
            self._next = now + self._interval()
        due, self._waiting = joined(self._waiting), []
        return due
