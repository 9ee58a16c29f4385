"""Jobs, and what must not be forgotten of them when the trainer dies. Where they lie is a database's business."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from murmura.api.trainer.v1 import trainer_pb2
from services.trainer.jobs import TERMINAL, Ending, Job


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


class JobExists(Exception):
    """There is another job of this id."""


class Database(Protocol):
    """Keeps jobs. What a call has written when it returns is there after a power cut; when it raises, nobody knows."""

    def add(self, record: Record) -> None:
        """Write a new job.

        Raises:
            JobExists: if there is one of its id.
        """

    def update(self, job: Job) -> None:
        """Write where a job stands; nothing if there is none of its id."""

    def remove(self, job_id: str) -> None:
        """Forget a job; nothing if there is none."""

    def first_body(self, subject: str, request_id: str, body_hash: str) -> str:
        """Note someone's request and return the digest of the body that its id first came with."""

    def read(self, job_id: str) -> Record | None:
        """Return a job, or None."""

    def unfinished(self) -> list[Record]:
        """Return the jobs that are not over, oldest first."""

    def newest_first(self) -> list[Record]:
        """Return all jobs."""

    def close(self) -> None:
        """Let go of it."""


class JobStore:
    """The jobs. Those that are not over are kept in memory besides: every call of a worker looks at one.

    Args:
        database: where they lie.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unfinished = {record.job.job_id: record for record in database.unfinished()}
        # Those about which a write has failed: perhaps it was done. The next look at one asks the database.
        self._doubtful: set[str] = set()

    def add(self, record: Record) -> None:
        """Write a new job."""
        with self._doubting(record.job.job_id):
            self._database.add(record)
        self._unfinished[record.job.job_id] = record

    def update(self, job: Job) -> None:
        """Write where a job stands."""
        with self._doubting(job.job_id):
            self._database.update(job)
        if job.state in TERMINAL:
            self._unfinished.pop(job.job_id, None)
        self.note(job)

    def note(self, job: Job) -> None:
        """Remember where a job stands until it is written for another reason: what is found again after a crash."""
        if (known := self._unfinished.get(job.job_id)) is not None:
            self._unfinished[job.job_id] = dataclasses.replace(known, job=job)

    def remove(self, job_id: str) -> None:
        """Forget a job whose budget was refused: it never was one."""
        with self._doubting(job_id):
            self._database.remove(job_id)
        self._unfinished.pop(job_id, None)

    def first_body(self, subject: str, request_id: str, body_hash: str) -> str:
        """Note someone's request and return the digest of the body that its id first came with."""
        return self._database.first_body(subject, request_id, body_hash)

    def get(self, job_id: str) -> Record | None:
        """Return a job, or None."""
        if job_id not in self._doubtful:
            return self._unfinished.get(job_id) or self._database.read(job_id)
        found = self._database.read(job_id)
        self._doubtful.discard(job_id)
        if found is None or found.job.state in TERMINAL:
            self._unfinished.pop(job_id, None)
        else:
            self._unfinished[job_id] = found
        return found

    def unfinished_ids(self) -> list[str]:
        """Return the ids of the jobs that are not over, or may be none or over; the oldest first."""
        return list(dict.fromkeys([*self._unfinished, *self._doubtful]))

    def newest_first(self) -> list[Record]:
        """Return all jobs; of those that are not over also what was noted only."""
        known = {job_id: record for job_id, record in self._unfinished.items() if job_id not in self._doubtful}
        return [known.get(record.job.job_id, record) for record in self._database.newest_first()]

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    @contextlib.contextmanager
    def _doubting(self, job_id: str) -> Iterator[None]:
        """Doubt what is known of a job unless what is done here succeeds."""
        self._doubtful.add(job_id)
        yield
        self._doubtful.discard(job_id)


def facts_of(job: Job) -> str:
    """Return a job as text."""
    return json.dumps(dataclasses.asdict(job))


def record_of(facts: str | bytes, body_hash: str, spec: bytes, plan: bytes) -> Record:
    """Return a record from its parts, as a database keeps them."""
    values = json.loads(facts)
    if values["ending"] is not None:
        values["ending"] = Ending(**values["ending"])
    if values["measured"] is not None:
        values["measured"] = tuple(values["measured"])
    return Record(Job(**values), body_hash, trainer_pb2.JobSpec.FromString(spec), trainer_pb2.Plan.FromString(plan))
