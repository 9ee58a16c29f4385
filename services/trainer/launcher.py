"""What a launcher does: bring a worker into being for a job, see how it is, take it away.

The worker is the same program everywhere; only where it runs differs. A launcher remembers nothing that it cannot find
again after the trainer has died. Every method may be called again and again, and from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# Exit codes of a worker. EX_TEMPFAIL: it has left a checkpoint, or begun nothing; another one is to go on from there.
EVICTED = 75
FAILED = 1
# Says which job and attempt the bearer of a pod's token works on; None where it proves nothing.
Pods = Callable[[str], tuple[str, int] | None]


@dataclass(frozen=True)
class WorkOrder:
    """What a worker is started with.

    Attributes:
        job: `trainingJobs/<id>`.
        job_id: its last part.
        attempt: from 1.
        token: the job token; lives for minutes and is renewed by heartbeats. A worker that can prove by other means
            which job it is (a pod) is not given one: it exchanges its proof for it.
        nodes: machines that share the work.
    """

    job: str
    job_id: str
    attempt: int
    token: str
    nodes: int = 1


@dataclass(frozen=True)
class Observation:
    """How the worker of an attempt is.

    Attributes:
        exists: whether one was ever started for this attempt.
        alive: whether it runs, or may still come to run; a worker that waits for its machine is alive.
        exit_code: how it ended, where that is known.
        cause: why it ended or can never run, as a name in `messages.CAUSES`, where the launcher knows better than the
            exit code: OUT_OF_MEMORY, IMAGE_UNAVAILABLE, REFUSED_BY_CLUSTER, NODE_LOST, …; else empty.
        evicted: whether it ended because its machine was wanted for something else, or was lost.
        waiting: why it does not run yet, as words that follow "waiting for" ("a GPU node: 0/3 nodes …"); empty while it
            runs. Holds nothing private: it is shown to the analyst.
        replaced: workers of this attempt that were replaced by another before.
        died: those among them that left without exit code 75, so that nobody can say which steps they ran.
        node_seconds: seconds for which machines were held for this attempt, the present one's included.
    """

    exists: bool
    alive: bool
    exit_code: int | None = None
    cause: str = ""
    evicted: bool = False
    waiting: str = ""
    replaced: int = 0
    died: int = 0
    node_seconds: float = 0.0


ABSENT = Observation(exists=False, alive=False)


class Unavailable(Exception):
    """Where workers run does not answer now, so nobody can say how they are. Asked again, it may.

    Args:
        why: for operators.
    """


class Refused(Exception):
    """A worker as ordered can never be started there.

    Args:
        why: for the analyst; holds nothing private.
    """


class Launcher(Protocol):
    """Starts workers somewhere."""

    def start(self, changed: Callable[[str], None]) -> None:
        """Begin to look after workers.

        Args:
            changed: is called with the id of a job whose worker's observation may have changed; from any thread.
        """

    def ensure(self, order: WorkOrder) -> None:
        """Start a worker unless one was started for this attempt already.

        Raises:
            Refused: if it can never be.
            Unavailable: if it cannot be now.
        """

    def observe(self, job_id: str, attempt: int) -> Observation:
        """Say how the worker of an attempt is, also one that another life of the trainer started. Quick: asks nobody.

        Raises:
            Unavailable: if that is not known yet.
        """

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the worker to stop; it leaves a checkpoint and exits with code 75."""

    def kill(self, job_id: str, attempt: int) -> None:
        """End a worker that does not answer."""

    def renew(self, job_id: str, token: str) -> None:
        """Leave a fresh token for a worker that has not been heard of, where it cannot get one by itself."""

    def logs(self, job_id: str, attempt: int) -> str:
        """Return the end of what the worker has printed, for operators; empty where nothing is left of it."""

    def found(self) -> frozenset[str]:
        """Return the ids of the jobs of which something is left."""

    def collect(self, job_id: str) -> None:
        """Remove what a job that is over has left, except its log. What stays nevertheless, `found` tells of again."""

    def close(self) -> None:
        """Stop looking after workers; they go on."""
