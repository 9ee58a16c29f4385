"""A few turns at once, shared by people: whoever creates a thousand jobs does not keep the others from creating one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Gives turns: next is who has fewest, and of those who came first.

    Args:
        at_once: how many turns there are.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._held: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def of(self, person: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((person, mine))
        self._give()
        try:
            await mine
            yield
        finally:
            # Who leaves while waiting holds none, unless it came at that moment.
            if mine.done() and not mine.cancelled():
                self._held -= Counter([person])
                self._give()

    def _give(self) -> None:
        self._waiting = [one for one in self._waiting if not one[1].cancelled()]
        while self._waiting and self._held.total() < self._at_once:
            person, theirs = following = min(self._waiting, key=lambda one: self._held[one[0]])
            self._waiting.remove(following)
            self._held[person] += 1
            theirs.set_result(None)
