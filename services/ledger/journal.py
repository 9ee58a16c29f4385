"""The journal: an append-only chain of entries that is the ledger's only truth.

Each entry holds its place, the hash of the entry before, and a canonical payload; its own hash covers all three, so
that no entry can be changed, removed or slipped in without every later hash giving it away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

from services.ledger.ledger import fold
from services.ledger.state import Event, State

GENESIS = "0" * 64
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class JournalBroken(Exception):
    """The chain does not hold.

    Args:
        sequence: the first entry that is wrong.
    """

    def __init__(self, sequence: int) -> None:
        super().__init__(f"journal entry {sequence} does not follow from the one before")
        self.sequence = sequence


class HeadMoved(Exception):
    """Someone else appended first; read again."""


class StoreUnusable(Exception):
    """The store does not answer, or may not be trusted; says what is wrong and what mends it."""


@dataclass(frozen=True)
class Entry:
    """One link.

    Attributes:
        sequence: place, from 1.
        previous_hash: hexadecimal SHA-256 of the link before.
        payload: canonical JSON.
        hash: hexadecimal SHA-256 over the three above.
    """

    sequence: int
    previous_hash: str
    payload: str
    hash: str

    def event(self) -> tuple[Event, float]:
        """Return the event and when it happened."""
        facts = json.loads(self.payload)
        time = facts.pop("time")
        return Event(**facts), time


@dataclass(frozen=True)
class Head:
    """The newest link."""

    sequence: int = 0
    hash: str = GENESIS

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Return the head that an entry makes."""
        return cls(entry.sequence, entry.hash)


class Store(Protocol):
    """Keeps the journal. Does one thing: appends durably and atomically, if nobody else has."""

    def append(self, expected: Head, entries: list[Entry]) -> None:
        """Append entries after `expected`; durable when it returns.

        Raises:
            HeadMoved: if the head is not `expected`; this call wrote nothing, an earlier try of it may have.
            Exception: any other leaves open whether the entries are in; reading tells.
        """

    def read(self, after: int = 0, most: int | None = None) -> Iterable[Entry]:
        """Return the entries after a sequence number, in order, at most so many."""

    def save_snapshot(self, text: str) -> None:
        """Keep a snapshot in place of the one before."""

    def snapshot(self) -> str | None:
        """Return the snapshot, if there is one."""

    def close(self) -> None:
        """Let go of the file or connection."""


def link(head: Head, event: Event, time: float) -> Entry:
    """Make the entry that follows `head`."""
    payload = _canonical({**vars(event), "data": dict(event.data), "time": time})
    sequence = head.sequence + 1
    return Entry(sequence, head.hash, payload, digest(sequence, head.hash, payload))


def digest(sequence: int, previous_hash: str, payload: str) -> str:
    """Return the hash of a link."""
    return hashlib.sha256(f"{sequence}\n{previous_hash}\n{payload}".encode()).hexdigest()


def replay(entries: Iterable[Entry], state: State | None = None, head: Head | None = None) -> tuple[State, Head]:
    """Fold a journal, checking each link.

    Args:
        entries: those after `head`, in order.
        state: where things stood at `head`; changed in place. Unset: nothing has happened.
        head: unset: the beginning.

    Raises:
        JournalBroken: at the first link that does not hold.
    """
    state, head = state or State(), head or Head()
    for entry in entries:
        sound = (
            entry.sequence == head.sequence + 1
            and entry.previous_hash == head.hash
            and entry.hash == digest(entry.sequence, entry.previous_hash, entry.payload)
        )
        if not sound:
            raise JournalBroken(head.sequence + 1)
        event, time = entry.event()
        fold(state, event, time)
        head = Head.of(entry)
    return state, head
