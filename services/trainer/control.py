"""What drives jobs from one state to the next: budget, worker, publication. Idempotent at every step.

A handler that a caller waits for and the loop that runs every second use the same functions, so whatever a crash
interrupts is finished by the next life of the trainer. The order is what keeps promises: budget before a worker, charge
before an adapter can be seen, settlement before a job is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog

from services.common.errors import MurmuraError, unknown
from services.common.ledger import Ledger
from services.common.locks import Locks
from services.trainer import jobs
from services.trainer.artifacts import ArtifactStore, Provenance
from services.trainer.budget import Budget, is_refusal
from services.trainer.checkpoints import Checkpoints
from services.trainer.jobs import TERMINAL, Job
from services.trainer.launcher import Launcher, Unavailable
from services.trainer.store import JobStore, Record
from services.trainer.tending import Limits, Tending

PERIOD_S = 1.0
RETRY_S = 2.0
CLEARING_PERIOD_S = 10.0
_LIMITS = Limits()
_log = structlog.get_logger()


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
        nodes: machines that share a private run.
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
        limits: Limits = _LIMITS,
        nodes: int = 1,
    ) -> None:
        self.store = store
        self.staging = staging
        self.checkpoints = checkpoints
        self.budget = Budget(ledger)
        self.tending = Tending(launcher, token, limits, nodes)
        self._artifacts = artifacts
        self._locks = Locks()
        self._news: dict[str, asyncio.Event] = {}
        self._persons = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        # Whether this life is at its end.
        self.leaving = False
        # Jobs about which a write has failed; perhaps it was done.
        self._unsure: set[str] = set()

    def lock(self, job_id: str) -> asyncio.Lock:
        """Return the lock under which a job is changed."""
        return self._locks.of(job_id)

    def save(self, job: Job) -> None:
        """Write where a job stands, and wake whoever watches it."""
        self._unsure.add(job.job_id)
        self.store.update(job)
        self._unsure.discard(job.job_id)
        self._tell(job)

    def _tell(self, job: Job) -> None:
        if (news := self._news.pop(job.job_id, None)) is not None:
            news.set()

    @contextlib.contextmanager
    def for_a_person(self) -> Iterator[None]:
        """Do something that a person waits for."""
        self._persons += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._persons -= 1
            if not self._persons:
                self._calm.set()

    async def after_persons(self, most_s: float) -> None:
        """Wait until no person waits, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._calm.wait()

    def news(self, job_id: str) -> asyncio.Event:
        """Return what is set when a job changes next. Whoever asks before reading the job misses no change."""
        return self._news.setdefault(job_id, asyncio.Event())

    def leave(self) -> None:
        """Let whoever watches a job go: a watch lasts as long as its job, and this life would wait for its end."""
        self.leaving = True
        for news in self._news.values():
            news.set()

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
        job = jobs.published(self.tending.counted(job), time.time())
        self.save(job)
        self._forget(job)
        return job

    async def reconcile_forever(self) -> None:
        """Bring every unfinished job further, for ever: when its worker changes, and once in a while; none waits."""
        for left in self.staging.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        loop = asyncio.get_running_loop()

        def changed(job_id: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and this life with it
                loop.call_soon_threadsafe(self.attend, job_id)

        await asyncio.to_thread(self.tending.launcher.start, changed)
        clearing = asyncio.create_task(self._clear_away_forever())
        try:
            while True:
                for job_id in {*self.store.unfinished_ids(), *self._unsure}:
                    if job_id not in self._busy:
                        self.attend(job_id)
                await asyncio.sleep(PERIOD_S)
        finally:
            for task in (clearing, *self._busy.values()):
                task.cancel()
            self.tending.close()
            self.tending.launcher.close()

    def attend(self, job_id: str) -> None:
        """Bring a job one step further soon; if that is being done, once more after it."""
        if job_id in self._busy:
            self._again.add(job_id)
        else:
            self._busy[job_id] = asyncio.create_task(self._attempt(job_id))

    async def _attempt(self, job_id: str) -> None:
        """Bring a job one step further; what fails is tried again, and fails for this job alone."""
        try:
            await self.reconcile(job_id)
        except (MurmuraError, Unavailable) as error:
            _log.warning("will try again", job=job_id, reason=getattr(error, "reason", str(error)))
            await asyncio.sleep(RETRY_S)
        except Exception as error:
            unknown(error)
            await asyncio.sleep(RETRY_S)
        finally:
            del self._busy[job_id]
        # Not after a cancellation: then this life is at its end.
        if job_id in self._again:
            self._again.discard(job_id)
            self.attend(job_id)

    async def _clear_away_forever(self) -> None:
        while True:
            try:
                await self.tending.clear_away(lambda: frozenset(self.store.unfinished_ids()))
            except Exception as error:
                unknown(error)
            await asyncio.sleep(CLEARING_PERIOD_S)

    async def reconcile(self, job_id: str) -> None:
        """Bring a job one step further."""
        async with self.lock(job_id):
            record = self.store.get(job_id)
            unsure = job_id in self._unsure
            self._unsure.discard(job_id)
            if record is None:
                return
            job = record.job
            if job.state in TERMINAL:
                if unsure:  # its end was written down after all, and nothing that follows was done
                    self._tell(job)
                    self._forget(job)
                return
            if job.state == jobs.PUBLISHING:
                await self.publish(record)
            elif job.ending is not None:
                await self._end(job)
            elif not job.reservation:
                await self._finish_reserving(record)
            elif jobs.differs_in_waiting_alone(tended := await self.tending.tend(record), job):
                self.store.note(tended)
                self._tell(tended)
            elif tended != job:
                self.save(tended)
                if tended.ending is not None:
                    self.attend(job_id)

    async def _finish_reserving(self, record: Record) -> None:
        """Reserve for a job whose creation was interrupted; its caller may come back for it."""
        try:
            self.save(await self.budget.reserve(record))
        except MurmuraError as error:
            if not is_refusal(error):
                raise
            self.store.remove(record.job.job_id)

    async def _end(self, job: Job) -> None:
        """Settle and end a job without an adapter."""
        await self.budget.settle(job)
        self.save(jobs.ended(self.tending.counted(job), time.time()))
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """Clear away what a job that is over has left."""
        shutil.rmtree(self.staging / job.job_id, ignore_errors=True)
        self.checkpoints.remove(job.job_id)
        self.tending.forget(job)
        self._news.pop(job.job_id, None)
