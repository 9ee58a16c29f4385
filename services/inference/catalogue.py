"""Which adapters this service knows, kept over restarts.

One SQLite file. It also hands out the integer ids by which an engine tells adapters apart: each
content gets its own, ids only grow and are never used again, because an engine that sees an old id
with new weights serves another tenant's cached work.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from murmura.api.inference.v1 import inference_pb2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS engine_ids (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sha256 TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE IF NOT EXISTS adapters (
  name TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  engine_id INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  base_model TEXT NOT NULL,
  owner TEXT NOT NULL,
  training_job TEXT NOT NULL,
  create_time TEXT NOT NULL,
  statement BLOB NOT NULL,
  error BLOB NOT NULL,
  policy BLOB NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Record:
    """What is known of an adapter.

    Attributes:
        name: `adapters/<id>`.
        state: VERIFYING, LOADING, READY, DRAINING or FAILED. DRAINING stays after an adapter was
            unloaded.
        engine_id: by which the engine knows this content.
        sha256: digest of the manifest.
        base_model: `baseModels/<id>`.
        owner: who may use it, besides stewards.
        training_job: `trainingJobs/<id>`.
        create_time: RFC 3339.
        statement: a serialized PrivacyStatement.
        error: a serialized ItemError; empty unless FAILED.
        policy: a serialized AdapterPolicy.
    """

    name: str
    state: str
    engine_id: int
    sha256: str
    base_model: str
    owner: str
    training_job: str
    create_time: str
    statement: bytes
    error: bytes = b""
    policy: bytes = b""

    @property
    def allowed(self) -> inference_pb2.AdapterPolicy:
        """What a steward allows."""
        return inference_pb2.AdapterPolicy.FromString(self.policy)

    def now(self, state: str, error: bytes = b"") -> Record:
        """Return the same adapter in another state."""
        return replace(self, state=state, error=error)


class Catalogue:
    """The records, in a file.

    Args:
        path: the SQLite file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def records(self) -> list[Record]:
        """Return all records."""
        columns = ", ".join(Record.__dataclass_fields__)
        with self._lock:
            rows = self._db.execute(f"SELECT {columns} FROM adapters ORDER BY name").fetchall()  # noqa: S608
        return [Record(*row) for row in rows]

    def put(self, record: Record) -> None:
        """Write a record."""
        values = [getattr(record, name) for name in Record.__dataclass_fields__]
        marks = ", ".join("?" * len(values))
        with self._lock:
            self._db.execute(
                f"INSERT OR REPLACE INTO adapters ({', '.join(Record.__dataclass_fields__)}) "  # noqa: S608
                f"VALUES ({marks})",
                values,
            )

    def engine_id(self, sha256: str) -> int:
        """Return the integer id of a content; a new content gets one that was never used."""
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO engine_ids (sha256) VALUES (?)", (sha256,))
            row = self._db.execute("SELECT id FROM engine_ids WHERE sha256 = ?", (sha256,)).fetchone()
        return int(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
