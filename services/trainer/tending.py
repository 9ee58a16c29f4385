"""Looks after the worker of a job: has one started, reads how it is, and says what follows for the job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

from services.trainer import jobs
from services.trainer.jobs import Job
from services.trainer.launcher import Launcher, Observation, Refused, Unavailable, WorkOrder
from services.trainer.store import Record

# A cluster is asked for many workers at once: each call waits for an answer, and costs next to nothing else.
_CALLS_AT_ONCE = 8
_log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How long the trainer waits, in seconds.

    Attributes:
        waiting: for a worker to begin, or for one that was evicted to be replaced.
        running: for a job that has begun.
        silence: for the next heartbeat; longer than a worker's own patience with a trainer that is away.
        stopping: for a worker that was told to stop.
    """

    waiting: float = 900.0
    running: float = 86_400.0
    silence: float = 900.0
    stopping: float = 120.0


class Tending:
    """Looks after workers.

    Args:
        launcher: starts them.
        token: makes the job token of a job.
        limits: how long to wait.
        nodes: machines that share a private run; an ordinary one has no shares.
    """

    def __init__(self, launcher: Launcher, token: Callable[[Record], str], limits: Limits, nodes: int = 1) -> None:
        self.launcher, self.token, self.limits, self._nodes = launcher, token, limits, nodes
        self._calls = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="launcher")
        # Clocks of this life: a worker gets its whole time again after the trainer was away.
        self.born = time.monotonic()
        self._heard: dict[str, float] = {}
        self._stopping: dict[str, float] = {}
        self._collecting: set[asyncio.Task[None]] = set()

    def heard(self, job_id: str) -> None:
        """Note a sign of life of a job's worker."""
        self._heard[job_id] = time.monotonic()

    async def tend(self, record: Record) -> Job:
        """Bring a job whose budget is set aside one step further.

        Returns:
            The job as it is from here on; the same where nothing has changed.

        Raises:
            Unavailable: if nobody can say how the worker is.
        """
        job = record.job
        seen = self.launcher.observe(job.job_id, job.attempt)
        job = jobs.observed(job, seen.waiting, seen.replaced, seen.died, seen.node_seconds, time.time())
        if seen.waiting:
            self.heard(job.job_id)  # a worker that is not there cannot be silent
        if job.cancel_requested and not job.started:
            await self._call(self.launcher.stop, job.job_id, job.attempt)
            return jobs.ending(job, "STOPPED", 0)
        if not seen.exists:
            return await self._without(job, record, seen)
        if not seen.alive:
            return self._after(job, seen)
        if cause := self._overdue(job, seen):
            await self._call(self.launcher.kill, job.job_id, job.attempt)
            if cause == "SILENT":
                return self._retried(job, evicted=False)
            # Nothing runs while a worker is waited for: what the last one has saved is all there is.
            return jobs.ending(job, cause, job.checkpoint_steps if seen.waiting else None)
        if time.monotonic() - self._last_heard(job) > self.limits.silence / 4:
            # It may be waiting for us with a token that has expired.
            await self._call(self.launcher.renew, job.job_id, self.token(record))
        return job

    def counted(self, job: Job) -> Job:
        """Return a job that ends, with the time for which machines were held for it."""
        try:
            seen = self.launcher.observe(job.job_id, job.attempt)
        except Unavailable:
            return job  # what was seen last counts
        return replace(job, attempt_seconds=max(seen.node_seconds, job.attempt_seconds))

    async def clear_away(self, unfinished: Callable[[], frozenset[str]]) -> None:
        """Remove what is left of jobs that are over, also where an earlier life of the trainer died between two steps.

        Args:
            unfinished: returns the ids of the jobs that are not over. Asked after the launcher: what that has found of
                a job that is new by then is not taken for a leftover.
        """
        left = await self._call(self.launcher.found)
        for job_id in left - unfinished():
            await self._call(self.launcher.collect, job_id)

    def forget(self, job: Job) -> None:
        """Clear away what a job that is over has left; nobody waits for that."""
        for clock in (self._heard, self._stopping):
            clock.pop(job.job_id, None)
        task = asyncio.ensure_future(self._call(self.launcher.collect, job.job_id))
        self._collecting.add(task)
        task.add_done_callback(self._collected)

    def close(self) -> None:
        """Make no further calls."""
        self._calls.shutdown(wait=False, cancel_futures=True)

    async def _without(self, job: Job, record: Record, seen: Observation) -> Job:
        """Start the worker of an attempt that has none, unless it had one."""
        if job.begun == job.attempt:
            return self._retried(job, evicted=False)
        if job.cancel_requested:
            return jobs.ending(job, "STOPPED", None)
        if seen.waiting and self._waited_too_long(job):
            return jobs.ending(job, "WAITED_TOO_LONG", None)
        nodes = 1 if record.plan.statement.unlimited else self._nodes
        order = WorkOrder(job.name, job.job_id, job.attempt, self.token(record), nodes)
        try:
            await self._call(self.launcher.ensure, order)
        except Refused as refusal:
            return jobs.ending(job, "REFUSED_BY_CLUSTER", None, str(refusal))
        return job

    def _after(self, job: Job, seen: Observation) -> Job:
        """Say what becomes of a job whose worker is gone."""
        if seen.cause:
            return jobs.ending(job, seen.cause, None, seen.waiting)
        return self._retried(job, seen.evicted)

    def _retried(self, job: Job, evicted: bool) -> Job:
        """Give a job whose worker is gone another one, or end it where it has had enough of them.

        What a worker ran that went without a word, nobody can say.
        """
        if (job.started or evicted) and jobs.may_retry(job, evicted):
            self.heard(job.job_id)
            return jobs.retried(job, evicted, time.time())
        return jobs.ending(job, "INTERNAL", None)

    def _overdue(self, job: Job, seen: Observation) -> str:
        """Return why a living worker has to end, or nothing."""
        if job.deaths >= jobs.MOST_DEATHS:
            return "INTERNAL"
        if job.evictions > jobs.MOST_EVICTIONS:
            return "EVICTED_TOO_OFTEN"
        if job.begun != job.attempt:
            return "WAITED_TOO_LONG" if self._waited_too_long(job) else ""
        if seen.waiting:
            if job.cancel_requested:
                return "STOPPED"
            return "WAITED_TOO_LONG" if time.time() - job.waiting_since > self.limits.waiting else ""
        if job.cancel_requested:
            asked = self._stopping.setdefault(job.job_id, time.monotonic())
            return "STOPPED" if time.monotonic() - asked > self.limits.stopping else ""
        if time.time() - job.started > self.limits.running:
            return "RAN_TOO_LONG"
        return "SILENT" if time.monotonic() - self._last_heard(job) > self.limits.silence else ""

    def _waited_too_long(self, job: Job) -> bool:
        return time.time() - (job.since or job.created) > self.limits.waiting

    def _last_heard(self, job: Job) -> float:
        return self._heard.get(job.job_id, self.born)

    def _collected(self, task: asyncio.Task[None]) -> None:
        self._collecting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # It is found again.
            _log.warning("could not clear away what a job has left", why=type(error).__name__)

    async def _call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, partial(function, *arguments, **named))
