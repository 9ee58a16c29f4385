"""Jobs on disk: what must not be forgotten when the trainer dies. A SQLite file."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from murmura.api.trainer.v1 import trainer_pb2
from services.trainer.jobs import TERMINAL, Ending, Job

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


@dataclass(frozen=True)
class Record:
    """A job with what was asked and planned.

    Attributes:
        job: where it stands.
        body_hash: digest of the request that made it.
        spec: what was asked.
        plan: what was planned.
    """

    job: Job
    body_hash: str
    spec: trainer_pb2.JobSpec
    plan: trainer_pb2.Plan


class JobStore:
    """The jobs. Those that are not over are kept in memory besides: every call of a worker looks at one.

    Args:
        path: made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        found = self._select("WHERE terminal = 0 ORDER BY number", ())
        self._unfinished = {record.job.job_id: record for record in found}

    def add(self, record: Record) -> None:
        """Write a new job."""
        self._execute(
            "INSERT INTO jobs (job_id, owner, body_hash, terminal, facts, spec, plan) VALUES (?, ?, ?, 0, ?, ?, ?)",
            (
                record.job.job_id,
                record.job.owner,
                record.body_hash,
                _facts(record.job),
                record.spec.SerializeToString(),
                record.plan.SerializeToString(),
            ),
        )
        self._unfinished[record.job.job_id] = record

    def update(self, job: Job) -> None:
        """Write where a job stands."""
        self._execute(
            "UPDATE jobs SET facts = ?, terminal = ? WHERE job_id = ?",
            (_facts(job), job.state in TERMINAL, job.job_id),
        )
        if job.state in TERMINAL:
            self._unfinished.pop(job.job_id, None)
        self.note(job)

    def note(self, job: Job) -> None:
        """Remember where a job stands until it is written for another reason: what is found again after a crash."""
        if (known := self._unfinished.get(job.job_id)) is not None:
            self._unfinished[job.job_id] = dataclasses.replace(known, job=job)

    def remove(self, job_id: str) -> None:
        """Forget a job whose budget was refused: it never was one."""
        self._execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
        self._unfinished.pop(job_id, None)

    def first_body(self, subject: str, request_id: str, body_hash: str) -> str:
        """Note someone's request and return the digest of the body that its id first came with."""
        key = (subject, request_id)
        self._execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (*key, body_hash))
        found = self._execute("SELECT body_hash FROM requests WHERE subject = ? AND request_id = ?", key)
        return str(found[0][0])

    def get(self, job_id: str) -> Record | None:
        """Return a job, or None."""
        if (known := self._unfinished.get(job_id)) is not None:
            return known
        found = self._select("WHERE job_id = ?", (job_id,))
        return found[0] if found else None

    def unfinished_ids(self) -> list[str]:
        """Return the ids of the jobs that are not over, oldest first."""
        return list(self._unfinished)

    def newest_first(self) -> list[Record]:
        """Return all jobs."""
        return self._select("ORDER BY number DESC", ())

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _select(self, where: str, values: tuple[object, ...]) -> list[Record]:
        # `where` is one of this class's own clauses, never a caller's text.
        query = f"SELECT facts, body_hash, spec, plan FROM jobs {where}"  # noqa: S608
        rows = self._execute(query, values)
        return [
            Record(
                _job(facts),
                body,
                trainer_pb2.JobSpec.FromString(spec),
                trainer_pb2.Plan.FromString(plan),
            )
            for facts, body, spec, plan in rows
        ]


def _facts(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job))


def _job(facts: str) -> Job:
    values = json.loads(facts)
    if values["ending"] is not None:
        values["ending"] = Ending(**values["ending"])
    if values["measured"] is not None:
        values["measured"] = tuple(values["measured"])
    return Job(**values)
