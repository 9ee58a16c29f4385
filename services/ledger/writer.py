"""One writer between many callers and the journal.

Commands queue up; the writer decides all that are waiting, appends their entries in one go, and answers each only
after the append is durable. One disk flush so serves many callers, and no two decisions see the same budget.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from services.ledger.journal import Entry, Head, Store, link, replay
from services.ledger.ledger import Event, Refusal, State, decide, fold

MOST_IN_ONE_APPEND = 256


@dataclass
class _Waiting:
    command: Event
    answer: asyncio.Future[Head]


class Writer:
    """The only way to change the ledger.

    Args:
        store: where the journal lies.

    Attributes:
        state: the fold of everything that is durable.
        head: the newest entry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.state, self.head = State(), Head()

    async def start(self) -> None:
        """Replay the journal and begin to serve.

        Raises:
            services.ledger.journal.JournalBroken: if the chain does not hold.
        """
        self.state, self.head = await asyncio.to_thread(lambda: replay(self._store.read()))
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Serve what is waiting, then stop."""
        await self._queue.join()
        if self._task:
            self._task.cancel()

    async def submit(self, command: Event) -> Head:
        """Make a command happen; returns the head once it is durable.

        Raises:
            Refusal: if it may not happen.
        """
        waiting = _Waiting(command, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.answer

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MOST_IN_ONE_APPEND and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._serve(batch)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _serve(self, batch: list[_Waiting]) -> None:
        # Decide on the live state, which only this task changes; a failed append replays it from the store.
        entries: list[Entry] = []
        accepted: list[_Waiting] = []
        before = self.head
        for waiting in batch:
            try:
                event = decide(self.state, waiting.command)
            except Refusal as refusal:
                waiting.answer.set_exception(refusal) if not waiting.answer.done() else None
                continue
            if event is not None:
                now = time.time()
                entry = link(self.head, event, now)
                fold(self.state, event, now)
                self.head = Head(entry.sequence, entry.hash)
                entries.append(entry)
            accepted.append(waiting)
        try:
            if entries:
                await asyncio.to_thread(self._store.append, before, entries)
        except Exception as error:
            self.state, self.head = await asyncio.to_thread(lambda: replay(self._store.read()))
            for waiting in accepted:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting in accepted:
            if not waiting.answer.done():
                waiting.answer.set_result(self.head)
