"""The journal in a SQLite file: the embedded default. One file, durable at each append, readable with any SQLite."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from services.ledger.journal import GENESIS, Entry, Head, HeadMoved

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    sequence INTEGER PRIMARY KEY CHECK (sequence > 0),
    previous_hash TEXT NOT NULL,
    payload TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS snapshot (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    text TEXT NOT NULL
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
        self._connection = _connect(path)
        self._connection.execute("PRAGMA journal_mode=WAL")
        # An acknowledged entry must survive a power failure, so each commit waits for the disk.
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        # What another thread reads must not show an append that is still under way.
        self._reading = _connect(path)
        self._reading_alone = threading.Lock()

    def append(self, expected: Head, entries: list[Entry]) -> None:
        """Append entries after `expected`; see `journal.Store`."""
        rows = [(e.sequence, e.previous_hash, e.payload, e.hash) for e in entries]
        # One statement, which waits for the disk in one go: a thread of Python's that waits several times waits for
        # its turn each time.
        found = self._connection.execute(
            "INSERT INTO journal SELECT * FROM (VALUES "  # noqa: S608 - holds no text but its own
            + ", ".join(["(?, ?, ?, ?)"] * len(rows))
            + ") WHERE (?, ?) = (SELECT sequence, hash FROM journal UNION ALL SELECT 0, ? ORDER BY 1 DESC LIMIT 1)",
            [value for row in rows for value in row] + [expected.sequence, expected.hash, GENESIS],
        )
        if found.rowcount != len(rows):
            raise HeadMoved

    def read(self, after: int = 0, most: int | None = None) -> Iterable[Entry]:
        """Return the entries after a sequence number, in order; see `journal.Store`."""
        with self._reading_alone:
            rows = self._reading.execute(
                "SELECT sequence, previous_hash, payload, hash FROM journal "
                "WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after, -1 if most is None else most),
            ).fetchall()
        return [Entry(*row) for row in rows]

    def save_snapshot(self, text: str) -> None:
        """Keep a snapshot in place of the one before."""
        self._connection.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?)", (text,))

    def snapshot(self) -> str | None:
        """Return the snapshot, if there is one."""
        with self._reading_alone:
            row = self._reading.execute("SELECT text FROM snapshot").fetchone()
        return str(row[0]) if row else None

    def close(self) -> None:
        """Close the file."""
        self._reading.close()
        self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)
