"""What is registered: public facts of datasets, which content has which lineage, and the answer to each request.

One SQLite file, written through (WAL, FULL). No row is ever in it: of rows it knows which slots share a privacy unit,
as bare numbers, which is public under our neighbouring relation and lets a frame be described without opening the
vault.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset.units import unpack

VERSION = 3
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS datasets (
    name TEXT PRIMARY KEY,
    storage_id TEXT NOT NULL,
    resource BLOB NOT NULL,
    units BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY,
    body_hash TEXT NOT NULL,
    answer BLOB NOT NULL
) STRICT;
-- Outlives its datasets: content that comes back finds its old account.
CREATE TABLE IF NOT EXISTS contents (
    fingerprint TEXT PRIMARY KEY,
    lineage TEXT NOT NULL
) STRICT;
-- Outlives its datasets: who allowed what, and when, is asked afterwards. `message` is a PolicyVersion.
CREATE TABLE IF NOT EXISTS policies (
    dataset TEXT NOT NULL,
    version INTEGER NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (dataset, version)
) STRICT;
PRAGMA user_version = {VERSION};
COMMIT;
"""


class Outdated(Exception):
    """The file was written by a version that this one does not read."""


class OtherLineage(Exception):
    """The content got another lineage while this registration was under way."""


class Registry:
    """The datasets and the requests that changed them. May be used from several threads.

    Args:
        path: made if it does not exist.

    Raises:
        Outdated: if another version made it.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        tables = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        found = self._connection.execute("PRAGMA user_version").fetchone()[0] if tables else VERSION
        if found != VERSION:
            raise Outdated(f"{path.name} was written by another version of this service")
        self._connection.executescript(_SCHEMA)

    def answer(self, request_id: str) -> tuple[str, bytes] | None:
        """Return the body hash and the serialized answer of a request that was served, or None."""
        with self._lock:
            row = self._connection.execute(
                "SELECT body_hash, answer FROM requests WHERE request_id = ?", (request_id,)
            ).fetchone()
        return (row[0], row[1]) if row else None

    def get(self, name: str) -> tuple[dataset_pb2.Dataset, str] | None:
        """Return a dataset and where its rows are stored, or None."""
        with self._lock:
            row = self._connection.execute(
                "SELECT resource, storage_id FROM datasets WHERE name = ?", (name,)
            ).fetchone()
        return (dataset_pb2.Dataset.FromString(row[0]), row[1]) if row else None

    def all(self) -> list[dataset_pb2.Dataset]:
        """Return all datasets by name."""
        with self._lock:
            rows = self._connection.execute("SELECT resource FROM datasets ORDER BY name").fetchall()
        return [dataset_pb2.Dataset.FromString(row[0]) for row in rows]

    def storage_ids(self) -> set[str]:
        """Return where the rows of all datasets are stored."""
        with self._lock:
            return {row[0] for row in self._connection.execute("SELECT storage_id FROM datasets")}

    def units(self, storage_id: str) -> NDArray[np.int64]:
        """Return the unit's number of each slot; shape (slots,)."""
        with self._lock:
            row = self._connection.execute("SELECT units FROM datasets WHERE storage_id = ?", (storage_id,)).fetchone()
        return unpack(row[0])

    def policies(self, name: str) -> list[dataset_pb2.PolicyVersion]:
        """Return every version of a dataset's policy, newest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT message FROM policies WHERE dataset = ? ORDER BY version DESC", (name,)
            ).fetchall()
        return [dataset_pb2.PolicyVersion.FromString(row[0]) for row in rows]

    def lineage(self, fingerprint: str) -> str | None:
        """Return the lineage that content has had before, or None."""
        with self._lock:
            row = self._connection.execute(
                "SELECT lineage FROM contents WHERE fingerprint = ?", (fingerprint,)
            ).fetchone()
        return str(row[0]) if row else None

    def add(
        self,
        resource: dataset_pb2.Dataset,
        storage_id: str,
        units: bytes,
        fingerprint: str,
        request: tuple[str, str, bytes],
    ) -> None:
        """Write a new dataset, its lineage and the answer to the request that made it, together.

        Args:
            resource: what is public of it.
            storage_id: where its rows are.
            units: the unit's number of each slot, packed.
            fingerprint: of its content.
            request: id, body hash and serialized answer.

        Raises:
            OtherLineage: if another registration of the same content came first, with another account.
        """
        self._write(
            request,
            (
                "INSERT INTO datasets VALUES (?, ?, ?, ?)",
                (resource.name, storage_id, resource.SerializeToString(), units),
            ),
            ("INSERT OR IGNORE INTO contents VALUES (?, ?)", (fingerprint, resource.lineage)),
            _policy(resource, resource.owner, resource.create_time),
            content=(fingerprint, resource.lineage),
        )

    def update(self, resource: dataset_pb2.Dataset, author: str, request: tuple[str, str, bytes]) -> None:
        """Write a dataset with another version of its policy, and the answer to the request that changed it.

        Args:
            resource: what is public of it; its `policy_version` is the new one.
            author: who changed it.
            request: id, body hash and serialized answer.
        """
        now = Timestamp()
        now.GetCurrentTime()
        self._write(
            request,
            ("UPDATE datasets SET resource = ? WHERE name = ?", (resource.SerializeToString(), resource.name)),
            _policy(resource, author, now),
        )

    def delete(self, name: str, request: tuple[str, str, bytes]) -> None:
        """Forget a dataset; remembers its content's lineage and the request."""
        self._write(request, ("DELETE FROM datasets WHERE name = ?", (name,)))

    def remember(self, request: tuple[str, str, bytes]) -> None:
        """Write down the answer to a request that changes no dataset.

        Raises:
            sqlite3.IntegrityError: if the id has an answer already.
        """
        self._write(request)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _write(
        self,
        request: tuple[str, str, bytes],
        *statements: tuple[str, tuple[object, ...]],
        content: tuple[str, str] | None = None,
    ) -> None:
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in statements:
                    cursor.execute(statement, values)
                if (
                    content
                    and not cursor.execute(
                        "SELECT 1 FROM contents WHERE fingerprint = ? AND lineage = ?", content
                    ).fetchone()
                ):
                    raise OtherLineage
                cursor.execute("INSERT INTO requests VALUES (?, ?, ?)", request)
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise


def _policy(resource: dataset_pb2.Dataset, author: str, time: Timestamp) -> tuple[str, tuple[object, ...]]:
    """Return what writes down the present version of a dataset's policy."""
    version = dataset_pb2.PolicyVersion(
        version=resource.policy_version, policy=resource.policy, author=author, create_time=time
    )
    return "INSERT INTO policies VALUES (?, ?, ?)", (resource.name, version.version, version.SerializeToString())
