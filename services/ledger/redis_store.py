"""The journal in Redis, for deployments whose ledger has no disk of its own.

One list holds it, an entry each. Comparing the head and appending are one script with one write in it, so that Redis's
lack of rollback has nothing to spoil.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from services.common.redis_checks import RedisUnusable
from services.common.redis_client import TrustedRedis
from services.ledger.journal import GENESIS, Entry, Head, HeadMoved, JournalBroken, StoreUnusable

ENTRIES_IN_ONE_READ = 1000
_T = TypeVar("_T")

# KEYS: the journal. ARGV: the head of an empty journal, the head expected, then the entries. Heads are compared as
# text, since Lua's numbers are floating-point; an entry begins with its own head, up to the second line break.
_APPEND = r"""
local newest = redis.call('LINDEX', KEYS[1], -1) or ARGV[1]
if string.sub(newest, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
redis.call('RPUSH', KEYS[1], unpack(ARGV, 3))
return 1
"""


class RedisStore:
    """A journal in a Redis server.

    Args:
        url: `redis://`, `rediss://` or `unix://`, without a password.
        prefix: of the keys; two ledgers in one server need two. Never expires.
        password: of the URL's user, or of the default user.
        timeout_s: for connecting, and for an answer.

    Raises:
        StoreUnusable: if the server does not answer, or may not be trusted with the journal.
    """

    def __init__(
        self, url: str, prefix: str = "murmura:ledger", password: str | None = None, timeout_s: float = 5.0
    ) -> None:
        self._key, self._snapshot_key = f"{prefix}:journal", f"{prefix}:snapshot"
        try:
            self._redis = TrustedRedis(url, "the journal", password, timeout_s)
        except RedisUnusable as problem:
            raise StoreUnusable(str(problem)) from problem
        self._client = self._redis.client

    def append(self, expected: Head, entries: list[Entry]) -> None:
        """Append entries after `expected`; see `journal.Store`.

        Raises:
            HeadMoved: if the head is not `expected`.
            StoreUnusable: if there was no answer; the entries may be in or not.
        """
        # An append that is sent twice is found out by the comparison of heads.
        heads = [_head_text(0, GENESIS), _head_text(expected.sequence, expected.hash)]
        rows = [_head_text(e.sequence, e.hash) + f"{e.previous_hash}\n{e.payload}" for e in entries]
        if not self._do(lambda: self._client.eval(_APPEND, 1, self._key, *heads, *rows)):
            raise HeadMoved

    def read(self, after: int = 0, most: int | None = None) -> Iterable[Entry]:
        """Return the entries after a sequence number, in order; see `journal.Store`.

        Raises:
            StoreUnusable: if there was no answer.
            JournalBroken: if something else than an entry lies among them.
        """
        entries: list[Entry] = []
        while most is None or len(entries) < most:
            first = after + len(entries)
            size = ENTRIES_IN_ONE_READ if most is None else min(ENTRIES_IN_ONE_READ, most - len(entries))
            rows = self._page(first, size)
            entries += [_entry(row, first + place) for place, row in enumerate(rows, 1)]
            if len(rows) < size:
                break
        return entries

    def save_snapshot(self, text: str) -> None:
        """Keep a snapshot in place of the one before.

        Raises:
            StoreUnusable: if there was no answer.
        """
        self._do(lambda: self._client.set(self._snapshot_key, text))

    def snapshot(self) -> str | None:
        """Return the snapshot, if there is one.

        Raises:
            StoreUnusable: if there was no answer.
        """
        found: Any = self._do(lambda: self._client.get(self._snapshot_key))
        return found.decode(errors="replace") if found else None

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _page(self, first: int, size: int) -> list[bytes]:
        rows: list[bytes] = self._do(lambda: self._client.lrange(self._key, first, first + size - 1))
        return rows

    def _do(self, command: Callable[[], _T]) -> _T:
        try:
            return self._redis.do(command)
        except RedisUnusable as problem:
            raise StoreUnusable(str(problem)) from problem


def _head_text(sequence: int, digest: str) -> str:
    return f"{sequence}\n{digest}\n"


def _entry(row: bytes, place: int) -> Entry:
    try:
        sequence, digest, previous_hash, payload = row.decode().split("\n", 3)
        return Entry(int(sequence), previous_hash, payload, digest)
    except ValueError:
        raise JournalBroken(place) from None
