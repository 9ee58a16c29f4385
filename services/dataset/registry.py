"""What is registered: public facts of datasets, and which request made each. A SQLite file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from murmura.api.dataset.v1 import dataset_pb2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS datasets (
    name TEXT PRIMARY KEY,
    storage_id TEXT NOT NULL,
    resource BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY,
    body_hash TEXT NOT NULL,
    name TEXT NOT NULL
) STRICT;
"""


class Registry:
    """The datasets and the requests that changed them.

    Args:
        path: made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)

    def request(self, request_id: str) -> tuple[str, str] | None:
        """Return the body hash and dataset of a request that was served, or None."""
        row = self._connection.execute(
            "SELECT body_hash, name FROM requests WHERE request_id = ?", (request_id,)
        ).fetchone()
        return (row[0], row[1]) if row else None

    def get(self, name: str) -> tuple[dataset_pb2.Dataset, str] | None:
        """Return a dataset and where its rows are stored, or None."""
        row = self._connection.execute("SELECT resource, storage_id FROM datasets WHERE name = ?", (name,)).fetchone()
        return (dataset_pb2.Dataset.FromString(row[0]), row[1]) if row else None

    def all(self) -> list[dataset_pb2.Dataset]:
        """Return all datasets by name."""
        rows = self._connection.execute("SELECT resource FROM datasets ORDER BY name")
        return [dataset_pb2.Dataset.FromString(row[0]) for row in rows]

    def put(self, resource: dataset_pb2.Dataset, storage_id: str, request_id: str, body_hash: str) -> None:
        """Write a dataset and the request that made or changed it, together."""
        self._write(
            request_id,
            body_hash,
            resource.name,
            "INSERT OR REPLACE INTO datasets VALUES (?, ?, ?)",
            (resource.name, storage_id, resource.SerializeToString()),
        )

    def delete(self, name: str, request_id: str, body_hash: str) -> None:
        """Forget a dataset; remembers the request."""
        self._write(request_id, body_hash, name, "DELETE FROM datasets WHERE name = ?", (name,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _write(self, request_id: str, body_hash: str, name: str, statement: str, values: tuple[object, ...]) -> None:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            cursor.execute(statement, values)
            cursor.execute("INSERT INTO requests VALUES (?, ?, ?)", (request_id, body_hash, name))
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
