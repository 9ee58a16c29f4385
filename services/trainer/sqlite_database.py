"""Jobs in a SQLite file: the embedded default."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from services.trainer.jobs import TERMINAL, Job
from services.trainer.store import JobExists, Record, facts_of, record_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    terminal INTEGER NOT NULL,
    facts TEXT NOT NULL,
    spec BLOB NOT NULL,
    plan BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    subject TEXT NOT NULL,
    request_id TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    PRIMARY KEY (subject, request_id)
) STRICT;
"""


class SqliteDatabase:
    """A file of jobs; see `store.Database`.

    Args:
        path: made if it does not exist, readable by its owner only.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)

    def add(self, record: Record) -> None:
        """Write a new job."""
        values = (
            record.job.job_id,
            record.job.owner,
            record.body_hash,
            record.job.state in TERMINAL,
            facts_of(record.job),
            record.spec.SerializeToString(),
            record.plan.SerializeToString(),
        )
        try:
            self._execute(
                "INSERT INTO jobs (job_id, owner, body_hash, terminal, facts, spec, plan) VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        except sqlite3.IntegrityError:
            raise JobExists from None

    def update(self, job: Job) -> None:
        """Write where a job stands."""
        self._execute(
            "UPDATE jobs SET facts = ?, terminal = ? WHERE job_id = ?",
            (facts_of(job), job.state in TERMINAL, job.job_id),
        )

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        self._execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))

    def first_body(self, subject: str, request_id: str, body_hash: str) -> str:
        """Note someone's request and return the digest of the body that its id first came with."""
        key = (subject, request_id)
        self._execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (*key, body_hash))
        found = self._execute("SELECT body_hash FROM requests WHERE subject = ? AND request_id = ?", key)
        return str(found[0][0])

    def read(self, job_id: str) -> Record | None:
        """Return a job, or None."""
        found = self._select("WHERE job_id = ?", (job_id,))
        return found[0] if found else None

    def unfinished(self) -> list[Record]:
        """Return the jobs that are not over, oldest first."""
        return self._select("WHERE terminal = 0 ORDER BY number", ())

    def newest_first(self) -> list[Record]:
        """Return all jobs."""
        return self._select("ORDER BY number DESC", ())

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    def _select(self, where: str, values: tuple[object, ...]) -> list[Record]:
        # `where` is one of this class's own clauses, never a caller's text.
        query = f"SELECT facts, body_hash, spec, plan FROM jobs {where}"  # noqa: S608
        return [record_of(*row) for row in self._execute(query, values)]
