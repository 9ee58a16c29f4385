"""What drives jobs from one state to the next: budget, worker, publication. Idempotent at every step.

A handler that a caller waits for and the loop that runs every second use the same functions, so whatever a crash
interrupts is finished by the next life of the trainer. The order is what keeps promises: budget before a worker, charge
before an adapter can be seen, settlement before a job is over.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from services.common.errors import MurmuraError, unknown
from services.common.ledger import Ledger
from services.trainer import jobs
from services.trainer.artifacts import ArtifactStore, Provenance
from services.trainer.budget import Budget, is_refusal
from services.trainer.checkpoints import Checkpoints
from services.trainer.jobs import TERMINAL, Job
from services.trainer.launcher import Launcher, WorkOrder
from services.trainer.store import JobStore, Record

PERIOD_S = 0.5
RETRY_S = 2.0
# EX_TEMPFAIL: a worker that leaves a checkpoint and would go on elsewhere.
EVICTED = 75
_log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """How long the trainer waits, in seconds.

    Attributes:
        waiting: for a worker to begin.
        running: for a job that has begun.
        silence: for the next heartbeat; longer than a worker's own patience with a trainer that is away.
        stopping: for a worker that was told to stop.
    """

    waiting: float = 900.0
    running: float = 86_400.0
    silence: float = 900.0
    stopping: float = 120.0


class Control:
    """Drives jobs.

    Args:
        store: the jobs.
        ledger: where budgets are kept.
        launcher: starts workers.
        artifacts: takes finished adapters.
        staging: directory for adapters that have arrived and are not published.
        checkpoints: of unfinished jobs.
        token: makes the job token of a job.
        limits: how long to wait.
    """

    def __init__(
        self,
        store: JobStore,
        ledger: Ledger,
        launcher: Launcher,
        artifacts: ArtifactStore,
        staging: Path,
        checkpoints: Checkpoints,
        token: Callable[[Record], str],
        limits: Limits = Limits(),
    ) -> None:
        self.store = store
        self.staging = staging
        self.checkpoints = checkpoints
        self.token = token
        self.budget = Budget(ledger)
        self._launcher = launcher
        self._artifacts = artifacts
        self._limits = limits
        self._locks: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Condition()
        self.version = 0
        self._busy: dict[str, asyncio.Task[None]] = {}
        # Clocks of this life: a worker gets its whole time again after the trainer was away.
        self._born = time.monotonic()
        self._heard: dict[str, float] = {}
        self._stopping: dict[str, float] = {}

    def lock(self, job_id: str) -> asyncio.Lock:
        """Return the lock under which a job is changed."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    async def save(self, job: Job) -> None:
        """Write where a job stands, and wake whoever watches."""
        self.store.update(job)
        self.version += 1
        async with self._changed:
            self._changed.notify_all()

    async def changed(self, seen: int, timeout_s: float) -> None:
        """Wait until some job has changed since version `seen`, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.version != seen)
        except TimeoutError:
            return

    def heard(self, job_id: str) -> None:
        """Note a sign of life of a job's worker."""
        self._heard[job_id] = time.monotonic()

    async def publish(self, record: Record) -> Job:
        """Charge a job whose adapter has arrived, publish the adapter, and end the job.

        Raises:
            MurmuraError: if the ledger does not answer; the loop tries again.
        """
        job = record.job
        await self.budget.settle(job)
        provenance = Provenance(
            job.adapter,
            record.spec.base_model,
            job.owner,
            job.name,
            datetime.fromtimestamp(job.created, UTC).isoformat(timespec="seconds"),
            record.plan.statement,
        )
        staged = self.staging / job.job_id
        await asyncio.to_thread(self._artifacts.publish, staged, provenance)
        job = jobs.published(job, time.time())
        await self.save(job)
        self._forget(job)
        return job

    async def reconcile_forever(self) -> None:
        """Bring every unfinished job one step further, for ever; no job waits for another."""
        for left in self.staging.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            while True:
                for record in self.store.unfinished():
                    job_id = record.job.job_id
                    if job_id not in self._busy:
                        self._busy[job_id] = asyncio.create_task(self._attempt(job_id))
                await asyncio.sleep(PERIOD_S)
        finally:
            for task in self._busy.values():
                task.cancel()

    async def _attempt(self, job_id: str) -> None:
        """Bring a job one step further; what fails is tried again, and fails for this job alone."""
        try:
            await self.reconcile(job_id)
        except MurmuraError as error:
            _log.warning("will try again", job=job_id, reason=error.reason)
            await asyncio.sleep(RETRY_S)
        except Exception as error:
            unknown(error)
            await asyncio.sleep(RETRY_S)
        finally:
            del self._busy[job_id]

    async def reconcile(self, job_id: str) -> None:
        """Bring a job one step further."""
        async with self.lock(job_id):
            record = self.store.get(job_id)
            if record is None or record.job.state in TERMINAL:
                return
            job = record.job
            if job.state == jobs.PUBLISHING:
                await self.publish(record)
            elif job.ending is not None:
                await self._end(job)
            elif not job.reservation:
                await self._finish_reserving(record)
            else:
                await self._tend(record)

    async def _finish_reserving(self, record: Record) -> None:
        """Reserve for a job whose creation was interrupted; its caller may come back for it."""
        try:
            await self.save(await self.budget.reserve(record))
        except MurmuraError as error:
            if not is_refusal(error):
                raise
            self.store.remove(record.job.job_id)

    async def _tend(self, record: Record) -> None:
        """Look after the worker of a job whose budget is set aside."""
        job = record.job
        seen = self._launcher.observe(job.job_id, job.attempt)
        if job.cancel_requested and not job.started:
            self._launcher.stop(job.job_id, job.attempt)
            await self.save(jobs.ending(job, "STOPPED", 0))
        elif not seen.exists:
            if job.begun == job.attempt:
                await self._retry(job, evicted=False)
                return
            if job.cancel_requested:
                await self.save(jobs.ending(job, "STOPPED", None))
                return
            order = WorkOrder(job.name, job.job_id, job.attempt, self.token(record))
            await asyncio.to_thread(self._launcher.ensure, order)
        elif not seen.alive:
            await self._retry(job, evicted=seen.exit_code == EVICTED)
        elif cause := self._overdue(job):
            self._launcher.kill(job.job_id, job.attempt)
            if cause == "SILENT":
                await self._retry(job, evicted=False)
            else:
                await self.save(jobs.ending(job, cause, None))
        elif time.monotonic() - self._last_heard(job) > self._limits.silence / 4:
            # It may be waiting for us with a token that has expired.
            self._launcher.renew(job.job_id, self.token(record))

    async def _retry(self, job: Job, evicted: bool) -> None:
        """Give a job whose worker is gone another one, or end it where it has had enough of them.

        What a worker ran that went without a word, nobody can say.
        """
        if job.started and jobs.may_retry(job, evicted):
            self.heard(job.job_id)
            await self.save(jobs.retried(job, evicted, time.time()))
        else:
            await self.save(jobs.ending(job, "INTERNAL", None))

    def _overdue(self, job: Job) -> str:
        """Return why a living worker has to end, or nothing."""
        now, limits = time.time(), self._limits
        if job.begun != job.attempt:
            return "WAITED_TOO_LONG" if now - (job.since or job.created) > limits.waiting else ""
        if job.cancel_requested:
            asked = self._stopping.setdefault(job.job_id, time.monotonic())
            return "STOPPED" if time.monotonic() - asked > limits.stopping else ""
        if now - job.started > limits.running:
            return "RAN_TOO_LONG"
        return "SILENT" if time.monotonic() - self._last_heard(job) > limits.silence else ""

    def _last_heard(self, job: Job) -> float:
        return self._heard.get(job.job_id, self._born)

    async def _end(self, job: Job) -> None:
        """Settle and end a job without an adapter."""
        await self.budget.settle(job)
        await self.save(jobs.ended(job, time.time()))
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """Clear away what a job that is over has left."""
        shutil.rmtree(self.staging / job.job_id, ignore_errors=True)
        self.checkpoints.remove(job.job_id)
        self._launcher.collect(job.job_id)
        for clock in (self._heard, self._stopping):
            clock.pop(job.job_id, None)
