"""A lock for each name: of what is changed by one at a time, or of whoever has a turn at a time."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Locks:
    """Locks by name. One is there while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """Return the lock of a name; whoever waits for it gets it in order of arrival."""
        return self._locks.setdefault(name, asyncio.Lock())
