"""Whose turn it is: which requests run now, and which wait.

Taken as they come, whoever sends most gets most. Here the tenant with the fewest running requests is next, and nobody
takes more turns than one may. At an engine, whoever comes with an adapter that has no slot would wait until all others
have none to send: where the adapter of the next request has no slot, one of those that run is given no more until it
has left its own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class TenantFull(Exception):
    """The tenant has too many requests waiting; trying again when some are done helps."""


@dataclass(frozen=True)
class TurnLimits:
    """How many requests run, by default those of one engine.

    Attributes:
        running: at once.
        tenant_running: of one tenant at once; fewer than `running` leaves room for others at any moment.
        tenant_waiting: of one tenant that wait.
        adapters: different ones among those that run.
    """

    running: int = 128
    tenant_running: int = 64
    tenant_waiting: int = 512
    adapters: int = 4


@dataclass
class _Queue:
    """Requests of one tenant for one adapter, in the order in which they came."""

    tenant: str
    adapter: int | None
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)


class Turns:
    """Gives turns, at an engine or at whatever else runs a few requests at once.

    Args:
        limits: how many.
    """

    def __init__(self, limits: TurnLimits = TurnLimits()) -> None:
        self._limits = limits
        self._queues: dict[tuple[str, int | None], _Queue] = {}
        self._tenants: Counter[str] = Counter()
        self._adapters: Counter[int] = Counter()
        self._tickets = itertools.count()

    @asynccontextmanager
    async def turn(self, tenant: str, adapter: int | None = None) -> AsyncIterator[None]:
        """Wait for a turn and hold it.

        Args:
            tenant: whose request it is.
            adapter: the engine's id; None for what takes no slot, such as a base model.

        Raises:
            TenantFull: at once, if too many requests of the tenant wait already.
        """
        if sum(len(queue.waiting) for queue in self._queues.values() if queue.tenant == tenant) >= (
            self._limits.tenant_waiting
        ) and not self._room(tenant, adapter):
            raise TenantFull
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (next(self._tickets), mine)
        self._queues.setdefault((tenant, adapter), _Queue(tenant, adapter)).waiting.append(entry)
        self._give()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._leave(tenant, adapter, entry)
            else:
                self._end(tenant, adapter)  # its turn came just as its owner went away
            raise
        try:
            yield
        finally:
            self._end(tenant, adapter)

    def running(self, tenant: str) -> int:
        """Return how many requests of a tenant run now."""
        return self._tenants[tenant]

    def _room(self, tenant: str, adapter: int | None) -> bool:
        limits = self._limits
        slot = adapter is None or adapter in self._adapters or len(self._adapters) < limits.adapters
        return self._tenants.total() < limits.running and self._tenants[tenant] < limits.tenant_running and slot

    def _give(self) -> None:
        """Give turns for as long as there are any to give."""
        while (chosen := self._next()) is not None:
            _, theirs = chosen.waiting.popleft()
            if not chosen.waiting:
                del self._queues[chosen.tenant, chosen.adapter]
            if theirs.cancelled():
                continue
            self._tenants[chosen.tenant] += 1
            if chosen.adapter is not None:
                self._adapters[chosen.adapter] += 1
            theirs.set_result(None)

    def _next(self) -> _Queue | None:
        """Return whose turn it is: of the tenants with the fewest running requests, the one that has waited longest."""
        limits = self._limits
        if self._tenants.total() >= limits.running:
            return None
        leaving: set[int] = set()
        for queue in sorted(self._queues.values(), key=lambda q: (self._tenants[q.tenant], q.waiting[0][0])):
            adapter = queue.adapter
            if self._tenants[queue.tenant] >= limits.tenant_running or adapter in leaving:
                continue
            if adapter is None or adapter in self._adapters or len(self._adapters) < limits.adapters:
                return queue
            # It would wait for ever if those that have a slot were always given more. The one that is soonest done.
            staying = [other for other in self._adapters if other not in leaving]
            if staying:
                leaving.add(min(staying, key=lambda other: self._adapters[other]))
        return None

    def _end(self, tenant: str, adapter: int | None) -> None:
        # Subtraction forgets those that have come to nothing.
        self._tenants -= Counter([tenant])
        if adapter is not None:
            self._adapters -= Counter([adapter])
        self._give()

    def _leave(self, tenant: str, adapter: int | None, entry: tuple[int, asyncio.Future[None]]) -> None:
        queue = self._queues.get((tenant, adapter))
        if queue is not None and entry in queue.waiting:
            queue.waiting.remove(entry)
            if not queue.waiting:
                del self._queues[tenant, adapter]
        # Whoever it held back, because it waited for an adapter's slot, need not wait for it any longer.
        self._give()
