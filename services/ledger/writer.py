"""One writer between many callers and the journal.

Commands queue up; the writer decides all that are waiting, appends their entries in one go, and answers each only
after the append is durable. One disk flush so serves many callers, and no two decisions see the same budget.

An append that fails may still have happened: a reply can be lost. The writer then asks the store what is in it, and
decides nothing until it has been told.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import grpc
import structlog
from prometheus_client import Counter

from services.common.errors import MurmuraError, dependency_unavailable
from services.ledger import snapshots
from services.ledger.drafts import Draft, copied
from services.ledger.journal import Entry, Head, JournalBroken, Store, link, replay
from services.ledger.ledger import decide, fold
from services.ledger.state import Event, State

MOST_IN_ONE_APPEND = 256
QUIET_TURNS = 12
ENTRIES_PER_SNAPSHOT = 10_000
HASHES_KEPT = 4096
_APPENDS = Counter("murmura_ledger_appends_total", "Appends to the journal; each waits for one flush to disk.")
_log = structlog.get_logger()
_T = TypeVar("_T")


@dataclass
class _Waiting:
    command: Event
    answer: asyncio.Future[Head]
    verdict: Exception | None = None


class Writer:
    """The only way to change the ledger.

    Args:
        store: where the journal lies.

    Attributes:
        state: the fold of everything that is known to be durable, and of nothing else.
        head: the newest entry of it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Its own thread, so that no number of slow prices keeps an append waiting.
        self._thread = ThreadPoolExecutor(1, "journal")
        self._queue: deque[_Waiting] = deque()
        self._called = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._settled = True
        self._snapshot_at = 0
        self._saving: asyncio.Task[None] | None = None
        self._hashes: deque[str] = deque(maxlen=HASHES_KEPT)
        self.state, self.head = State(), Head()

    async def start(self) -> None:
        """Replay the journal and begin to serve.

        Raises:
            services.ledger.journal.JournalBroken: if the chain does not hold.
            services.ledger.journal.StoreUnusable: if the store does not answer.
        """
        self.state, self.head = await self._on_thread(lambda: snapshots.load(self._store))
        self._snapshot_at = self.head.sequence
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Serve what is waiting, then stop."""
        await self._idle.wait()
        if self._saving:
            await self._saving
        if self._task:
            self._task.cancel()
        self._thread.shutdown()

    def copy(self) -> tuple[State, Head]:
        """Return what is durable at this moment, for a reader who takes long."""
        return copied(self.state), self.head

    async def hash_at(self, sequence: int) -> str:
        """Return the hash of an entry; empty past the head.

        Raises:
            services.ledger.journal.StoreUnusable: if the store does not answer.
        """
        if sequence == self.head.sequence:
            return self.head.hash
        back = self.head.sequence - sequence
        if back < 0:
            return ""
        if back < len(self._hashes):
            return self._hashes[-1 - back]
        found = list(await asyncio.to_thread(self._store.read, sequence - 1, 1))
        return found[0].hash if found else ""

    async def submit(self, command: Event) -> Head:
        """Make a command happen; returns the head once it is durable.

        Raises:
            Refusal: if it may not happen.
            MurmuraError: UNAVAILABLE if the store did not confirm it; the same command may be sent again. DATA_LOSS if
                the store has lost entries.
        """
        waiting = _Waiting(command, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._called.set()
        self._idle.clear()
        return await waiting.answer

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._called.clear()
                self._idle.set()
                await self._called.wait()
            # While turns of the loop bring more, waiting makes one append of many: a turn takes microseconds, handing
            # an append to its thread and flushing it about a millisecond.
            seen = 0
            while seen < len(self._queue) < MOST_IN_ONE_APPEND:
                seen = len(self._queue)
                for _ in range(QUIET_TURNS):
                    await asyncio.sleep(0)
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MOST_IN_ONE_APPEND))]
            try:
                await self._serve(batch)
            except Exception as error:
                # Whatever it was: these callers are told, the next ones are served, from what the store holds.
                self._settled = False
                self._answer(batch, error)

    async def _serve(self, batch: list[_Waiting]) -> None:
        if not self._settled:
            await self._settle()
        draft, entries = self._decide(batch)
        if entries:
            before = self.head
            try:
                await self._on_thread(lambda: self._store.append(before, entries))
            except Exception as error:
                _log.warning("append_unconfirmed", exception=type(error).__name__, problem=str(error))
                self._settled = False
                # Only what the store holds was recorded, whatever the failure said.
                if (await self._settle())[: len(entries)] != entries:
                    raise _unconfirmed() from error
            else:
                _APPENDS.inc()
                draft.adopt()
                self._take(entries)
        self._answer(batch)
        # The longer the journal, the rarer: all snapshots together cost less than the last few.
        grown = self.head.sequence - self._snapshot_at
        if grown >= max(ENTRIES_PER_SNAPSHOT, self.head.sequence // 2) and self._saving is None:
            self._saving = asyncio.create_task(self._save_snapshot(*self.copy()))

    def _decide(self, batch: list[_Waiting]) -> tuple[Draft, list[Entry]]:
        """Decide a batch on a draft, since others read the state while the append is under way."""
        draft, head = Draft(self.state), self.head
        entries: list[Entry] = []
        for waiting in batch:
            now = time.time()
            try:
                event = decide(draft.state, waiting.command)
                entry = link(head, event, now) if event is not None else None
            except Exception as refusal:
                # It may rest on what is not durable yet: it is told with the rest.
                waiting.verdict = refusal
                continue
            if event is not None and entry is not None:
                fold(draft.state, event, now)
                head = Head.of(entry)
                entries.append(entry)
        return draft, entries

    async def _settle(self) -> list[Entry]:
        """Take over what the store holds after the head, and return it.

        Raises:
            MurmuraError: if it cannot be read, or lacks what it once confirmed; nothing is decided until this succeeds.
        """
        known = self.head
        try:
            entries = list(await self._on_thread(lambda: self._store.read(max(0, known.sequence - 1))))
            if known.sequence and (not entries or Head.of(entries.pop(0)) != known):
                raise JournalBroken(known.sequence)
            draft = Draft(self.state)
            replay(entries, draft.state, known)
        except JournalBroken as broken:
            _log.error("journal_broken", sequence=broken.sequence)
            raise _lost(broken) from broken
        except Exception as error:
            _log.warning("store_unreadable", exception=type(error).__name__, problem=str(error))
            raise _unconfirmed() from error
        draft.adopt()
        self._take(entries)
        self._settled = True
        return entries

    def _take(self, entries: list[Entry]) -> None:
        """Move the head to the last of some entries that the state holds."""
        for entry in entries:
            self._hashes.append(entry.hash)
            self.head = Head.of(entry)

    async def _save_snapshot(self, state: State, head: Head) -> None:
        try:
            text = await asyncio.to_thread(snapshots.dump, state, head)
            await self._on_thread(lambda: self._store.save_snapshot(text))
        except Exception as error:
            # The next start takes longer; that is all.
            _log.warning("snapshot_not_saved", exception=type(error).__name__, problem=str(error))
        finally:
            self._snapshot_at, self._saving = head.sequence, None

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _answer(self, batch: list[_Waiting], error: Exception | None = None) -> None:
        for waiting in batch:
            problem = error or waiting.verdict
            if waiting.answer.done():
                continue
            if problem is None:
                waiting.answer.set_result(self.head)
            else:
                waiting.answer.set_exception(problem)


def _unconfirmed() -> MurmuraError:
    return dependency_unavailable(
        "ledger store",
        "The ledger's store did not confirm this, so it may have been recorded or not. Send the same request again, "
        "with the same request_id: it is recorded once at most.",
        retry_after_s=1,
    )


def _lost(broken: JournalBroken) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.DATA_LOSS,
        "JOURNAL_BROKEN",
        f"The ledger's store no longer holds journal entry {broken.sequence} as it was confirmed. Nothing is spent "
        "until the newest journal is restored.",
        {"sequence": str(broken.sequence)},
    )
