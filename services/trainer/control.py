"""What drives jobs from one state to the next: budget, worker, publication. Idempotent at every step.

A handler that a caller waits for and the loop that runs every second use the same functions, so whatever a crash
interrupts is finished by the next life of the trainer. The order is what keeps promises: budget before a worker, charge
before an adapter can be seen, settlement before a job is over.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from services.common.errors import MurmuraError
from services.common.upstream import Upstream
from services.trainer import jobs
from services.trainer.artifacts import ArtifactStore, Provenance
from services.trainer.jobs import TERMINAL, Job
from services.trainer.launcher import Launcher, WorkOrder
from services.trainer.store import JobStore, Record

PERIOD_S = 0.5
WAITING_LIMIT_S = 900.0
_NAMESPACE = uuid.UUID("5a3c2b1e-90d4-5d0a-b6a7-2f8e4c6d1b70")
_log = structlog.get_logger()


class Control:
    """Drives jobs.

    Args:
        store: the jobs.
        ledger: where budgets are kept.
        launcher: starts workers.
        artifacts: takes finished adapters.
        staging: directory for adapters that have arrived and are not published.
        token: makes the job token of a job.
    """

    def __init__(
        self,
        store: JobStore,
        ledger: Upstream,
        launcher: Launcher,
        artifacts: ArtifactStore,
        staging: Path,
        token: Callable[[Record], str],
    ) -> None:
        self.store = store
        self.staging = staging
        self.token = token
        self._ledger = ledger
        self._stub = ledger_service_pb2_grpc.LedgerServiceStub(ledger.channel)
        self._launcher = launcher
        self._artifacts = artifacts
        self._locks: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Condition()

    def lock(self, job_id: str) -> asyncio.Lock:
        """Return the lock under which a job is changed."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    async def save(self, job: Job) -> None:
        """Write where a job stands, and wake whoever watches."""
        self.store.update(job)
        async with self._changed:
            self._changed.notify_all()

    async def changed(self, timeout_s: float) -> None:
        """Wait until some job changes, or the time is up."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), timeout_s)
            except TimeoutError:
                return

    async def reserve(self, record: Record) -> Job:
        """Set the budget of a job aside.

        Raises:
            MurmuraError: if the ledger refuses or does not answer.
        """
        plan, job = record.plan, record.job
        unlimited = plan.statement.unlimited
        kind = ledger_pb2.RESERVATION_KIND_UNLIMITED if unlimited else ledger_pb2.RESERVATION_KIND_PRIVATE
        request = ledger_service_pb2.CreateReservationRequest(
            request_id=_request_id(job, "reserve"),
            account=plan.account,
            principal=job.owner,
            job=job.name,
            kind=kind,
            witness=self.store.witness(),
        )
        if not unlimited:
            request.mechanism.CopyFrom(plan.statement.mechanism)
            request.truncation_delta_e18 = plan.statement.price.truncation_delta_e18
        answer = await self._ledger.call(self._stub.CreateReservation, request, timeout_s=60)
        self.store.saw(answer.receipt)
        return jobs.reserved(job, answer.reservation.name)

    async def publish(self, record: Record) -> Job:
        """Charge a job whose adapter has arrived, publish the adapter, and end the job.

        Raises:
            MurmuraError: if the ledger does not answer; the loop tries again.
        """
        job = record.job
        await self._settle(job)
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
        shutil.rmtree(staged, ignore_errors=True)
        self._launcher.collect(job.job_id)
        return job

    async def reconcile_forever(self) -> None:
        """Bring every unfinished job one step further, for ever."""
        while True:
            for record in self.store.unfinished():
                try:
                    await self.reconcile(record.job.job_id)
                except MurmuraError as error:
                    _log.warning("will try again", job=record.job.name, reason=error.reason)
            await asyncio.sleep(PERIOD_S)

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
            await self.save(await self.reserve(record))
        except MurmuraError as error:
            if error.reason == "DEPENDENCY_UNAVAILABLE":
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
            if job.started:
                await self.save(jobs.ending(job, "INTERNAL", None))
                return
            order = WorkOrder(job.name, job.job_id, job.attempt, self.token(record))
            await asyncio.to_thread(self._launcher.ensure, order)
        elif not seen.alive:
            # It said nothing before it went: what it ran, nobody can say.
            await self.save(jobs.ending(job, "INTERNAL", None))
        elif not job.started and time.time() - job.created > WAITING_LIMIT_S:
            self._launcher.stop(job.job_id, job.attempt)
            await self.save(jobs.ending(job, "INTERNAL", 0))

    async def _end(self, job: Job) -> None:
        """Settle and end a job without an adapter."""
        await self._settle(job)
        await self.save(jobs.ended(job, time.time()))
        shutil.rmtree(self.staging / job.job_id, ignore_errors=True)
        self._launcher.collect(job.job_id)

    async def _settle(self, job: Job) -> None:
        """Resolve the reservation as the job's end demands; doing it twice is the same request."""
        if not job.reservation:
            return
        resolution = jobs.resolution(job)
        witness = self.store.witness()
        if resolution.release:
            release = ledger_service_pb2.ReleaseReservationRequest(
                request_id=_request_id(job, "settle"), name=job.reservation, witness=witness
            )
            answer = await self._ledger.call(self._stub.ReleaseReservation, release)
        else:
            commit = ledger_service_pb2.CommitReservationRequest(
                request_id=_request_id(job, "settle"),
                name=job.reservation,
                attested_steps=resolution.attested_steps,
                witness=witness,
            )
            answer = await self._ledger.call(self._stub.CommitReservation, commit, timeout_s=60)
        self.store.saw(answer.receipt)


def _request_id(job: Job, purpose: str) -> str:
    """Derive a request id from the job, so that a repeated step is the same request."""
    return str(uuid.uuid5(_NAMESPACE, f"{job.name}/{purpose}"))
