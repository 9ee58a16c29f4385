"""What a launcher does: bring a worker into being for a job, see how it is, take it away.

The worker is the same program everywhere; only where it runs differs. A launcher remembers nothing that it cannot find
again after the trainer has died.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class WorkOrder:
    """What a worker is started with.

    Attributes:
        job: `trainingJobs/<id>`.
        job_id: its last part.
        attempt: from 1.
        token: the job token; lives for minutes and is renewed by heartbeats.
    """

    job: str
    job_id: str
    attempt: int
    token: str


@dataclass(frozen=True)
class Observation:
    """How a worker is.

    Attributes:
        exists: whether one was ever started for this attempt.
        alive: whether it runs.
        exit_code: how it ended, where that is known.
    """

    exists: bool
    alive: bool
    exit_code: int | None = None


class Launcher(Protocol):
    """Starts workers somewhere."""

    def ensure(self, order: WorkOrder) -> None:
        """Start a worker unless one was started for this attempt already."""

    def observe(self, job_id: str, attempt: int) -> Observation:
        """Say how the worker of an attempt is, also one that another life of the trainer started."""

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the worker to stop; it attests its steps."""

    def kill(self, job_id: str, attempt: int) -> None:
        """End a worker that does not answer."""

    def renew(self, job_id: str, token: str) -> None:
        """Leave a fresh token for a worker that has not been heard of."""

    def collect(self, job_id: str) -> None:
        """Remove what a job that is over has left, except its log."""
