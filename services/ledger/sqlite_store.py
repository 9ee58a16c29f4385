"""The journal in a SQLite file: the embedded default. One file, durable at each append, readable with any SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from services.ledger.journal import GENESIS, Entry, Head, HeadMoved

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    sequence INTEGER PRIMARY KEY CHECK (sequence > 0),
    previous_hash TEXT NOT NULL,
    payload TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


class SqliteStore:
    """A journal file.

    Args:
        path: made if it does not exist, readable by its owner only.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        # An acknowledged entry must survive a power failure, so each commit waits for the disk.
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)

    def append(self, expected: Head, entries: list[Entry]) -> None:
        """Append entries after `expected`; see `journal.Store`."""
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            row = cursor.execute("SELECT sequence, hash FROM journal ORDER BY sequence DESC LIMIT 1").fetchone()
            if (row or (0, GENESIS)) != (expected.sequence, expected.hash):
                raise HeadMoved
            rows = [(e.sequence, e.previous_hash, e.payload, e.hash) for e in entries]
            cursor.executemany("INSERT INTO journal VALUES (?, ?, ?, ?)", rows)
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise

    def read(self, after: int = 0) -> Iterable[Entry]:
        """Yield the entries after a sequence number, in order."""
        rows = self._connection.execute(
            "SELECT sequence, previous_hash, payload, hash FROM journal WHERE sequence > ? ORDER BY sequence",
            (after,),
        )
        return [Entry(*row) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
