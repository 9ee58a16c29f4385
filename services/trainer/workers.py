"""The trainer's gRPC face for workers: one job each, by its token, and nothing else."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.common.auth import current_principal
from services.common.errors import MurmuraError, dependency_unavailable, invalid, not_found
from services.trainer import jobs, uploads
from services.trainer.base_models import BaseModels
from services.trainer.checkpoints import MOST_BYTES as MOST_CHECKPOINT_BYTES
from services.trainer.control import Control
from services.trainer.jobs import Fenced, IllegalTransition
from services.trainer.launcher import Pods, Unavailable
from services.trainer.messages import assignment, audit_text
from services.trainer.service import state_error
from services.trainer.store import Record

MOST_QUESTIONS = 8
MOST_ROC_POINTS = 200
MOST_PATIENCE_S = 2.0


class WorkerService(trainer_service_pb2_grpc.WorkerServiceServicer):
    """What a worker may call.

    Args:
        control: drives jobs.
        base_models: where they lie.
        pods: says which job and attempt the bearer of a pod's token works on; None where workers are no pods.
    """

    def __init__(self, control: Control, base_models: BaseModels, pods: Pods | None = None) -> None:
        self._control = control
        self._base_models = base_models
        self._pods = pods
        # Anyone may ask, and each question is one to the cluster.
        self._asking = asyncio.Semaphore(MOST_QUESTIONS)

    async def ExchangeToken(self, request: pb.ExchangeTokenRequest, context: Any) -> pb.ExchangeTokenResponse:
        """Give a pod the token of the job that it was made for, and of no other."""
        if self._pods is None:
            raise _proves_nothing()
        # A worker that starts has time; who creates jobs waits for the answer.
        await self._control.after_persons(MOST_PATIENCE_S)
        try:
            async with self._asking:
                found = await asyncio.to_thread(self._pods, request.pod_token)
        except Unavailable:
            raise dependency_unavailable(
                "kubernetes", "The cluster does not say whose this token is. Try again.", retry_after_s=2
            ) from None
        record = self._control.store.get(_job_id(request.job))
        if found is None or record is None or found[0] != record.job.job_id:
            raise _proves_nothing()
        if found[1] != record.job.attempt:
            raise _fenced(record)
        if record.job.state in jobs.TERMINAL:
            raise state_error(record.job, IllegalTransition(record.job.state))
        return pb.ExchangeTokenResponse(job_token=self._control.tending.token(record))

    async def GetAssignment(self, request: pb.GetAssignmentRequest, context: Any) -> pb.GetAssignmentResponse:
        """Say what to run. From here on the job counts as started."""
        async with self._control.lock(_job_id(request.job)):
            record = self._own(request.job)
            attempt = int(current_principal().claims.get("attempt", 0))
            job = self._allowed(record, lambda: jobs.begun(record.job, attempt, time.time()))
            self._control.save(job)
            self._control.tending.heard(job.job_id)
        location = self._base_models.location(record.spec.base_model)
        return pb.GetAssignmentResponse(assignment=assignment(record, location))

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        """Note steps, renew the token, pass on a wish to stop."""
        async with self._control.lock(_job_id(request.job)):
            record = self._own(request.job)
            job = self._allowed(
                record,
                lambda: jobs.progressed(record.job, request.attempt, request.completed_steps),
            )
            self._control.tending.heard(job.job_id)
            if job != record.job:
                self._control.save(job)
        stop = job.cancel_requested or job.ending is not None
        return pb.HeartbeatResponse(stop=stop, job_token=self._control.tending.token(record))

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[pb.UploadAdapterRequest], context: Any
    ) -> pb.UploadAdapterResponse:
        """Take the adapter, charge the job, publish. A repeated upload of a finished job is answered as the first."""
        first = await anext(request_iterator, None)
        if first is None:
            raise invalid("job", "must be set in the first message")
        record = self._own(first.job)
        if record.job.state == jobs.RUNNING:
            await self._stage(first, request_iterator, record)
        async with self._control.lock(record.job.job_id):
            record = self._own(first.job)
            if record.job.state == jobs.PUBLISHING:
                await self._control.publish(record)
            elif record.job.state != jobs.SUCCEEDED:
                raise state_error(record.job, IllegalTransition(record.job.state))
        return pb.UploadAdapterResponse(adapter=record.job.adapter)

    async def _stage(self, first: Any, rest: AsyncIterator[Any], record: Record) -> None:
        """Take the files of an upload; the job waits for its adapter no longer once they are safe on disk.

        The job is not locked while bytes arrive: a worker that falls silent must not hold up its own end.
        """
        if first.completed_steps != record.job.total_steps:
            raise invalid("completed_steps", "must be the planned number of steps")
        measured, audit = uploads.measured(first, record), uploads.audit(first, record)
        job_id = record.job.job_id
        if audit is not None and not record.plan.statement.unlimited:
            await self._require_promise_kept(first, audit, record)
        found = "" if audit is None else audit_text(audit)
        incoming = self._control.staging / f".{job_id}.{secrets.token_hex(4)}"
        try:
            await uploads.receive(first, rest, incoming)
            async with self._control.lock(job_id):
                record = self._own(first.job)
                if record.job.state != jobs.RUNNING:
                    return
                job = self._allowed(record, lambda: jobs.uploaded(record.job, first.attempt, measured, found))
                staged = self._control.staging / job_id
                shutil.rmtree(staged, ignore_errors=True)
                await asyncio.to_thread(uploads.keep, incoming, staged)
                self._control.save(job)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    async def _require_promise_kept(self, first: Any, audit: trainer_pb2.Audit, record: Record) -> None:
        """End a job whose audit proves its promise broken: its adapter is taken by nobody."""
        if audit.certain_epsilon <= record.plan.statement.epsilon:
            return
        async with self._control.lock(record.job.job_id):
            record = self._own(first.job)
            job = self._allowed(record, lambda: jobs.broken(record.job, first.attempt, audit_text(audit)))
            self._control.save(job)
        raise state_error(job, IllegalTransition(job.state))

    async def SaveCheckpoint(
        self, request_iterator: AsyncIterator[pb.SaveCheckpointRequest], context: Any
    ) -> pb.SaveCheckpointResponse:
        """Keep a checkpoint of the attempt that has the job; one that another has taken over changes nothing."""
        first = await anext(request_iterator, None)
        if first is None:
            raise invalid("job", "must be set in the first message")
        record = self._own(first.job)
        job_id, checkpoints = record.job.job_id, self._control.checkpoints
        self._allowed(record, lambda: jobs.saved(record.job, first.attempt, first.completed_steps))
        incoming = checkpoints.incoming(job_id)
        try:
            total = 0
            with incoming.open("xb") as out:
                message: Any = first
                while message is not None:
                    total += len(message.data)
                    if total > MOST_CHECKPOINT_BYTES:
                        raise invalid("data", f"a checkpoint has at most {MOST_CHECKPOINT_BYTES} bytes")
                    out.write(message.data)
                    message = await anext(request_iterator, None)
            async with self._control.lock(job_id):
                record = self._own(first.job)  # it may have been taken over while the bytes arrived
                job = self._allowed(record, lambda: jobs.saved(record.job, first.attempt, first.completed_steps))
                await asyncio.to_thread(checkpoints.keep, job_id, incoming)
                self._control.save(job)
        finally:
            incoming.unlink(missing_ok=True)
        return pb.SaveCheckpointResponse()

    async def LoadCheckpoint(
        self, request: pb.LoadCheckpointRequest, context: Any
    ) -> AsyncIterator[pb.LoadCheckpointResponse]:
        """Return the last checkpoint, as it was sent."""
        record = self._own(request.job)
        if record.job.state != jobs.RUNNING or record.job.ending is not None:
            # What was learned of private rows is for who trains on; once the job ends, for nobody.
            raise state_error(record.job, IllegalTransition(record.job.state))
        pieces = self._control.checkpoints.pieces(record.job.job_id)
        while (data := await asyncio.to_thread(next, pieces, None)) is not None:
            yield pb.LoadCheckpointResponse(data=data)

    async def ReportFailure(self, request: pb.ReportFailureRequest, context: Any) -> pb.ReportFailureResponse:
        """Note that the worker gives up; the loop settles the budget."""
        async with self._control.lock(_job_id(request.job)):
            record = self._own(request.job)
            if request.attempt != record.job.attempt:
                raise _fenced(record)
            known = request.cause in pb.FailureCause.values()
            cause = pb.FailureCause.Name(request.cause).removeprefix("FAILURE_CAUSE_") if known else "INTERNAL"
            job = self._allowed(record, lambda: jobs.ending(record.job, cause, request.attested_steps))
            self._control.save(job)
        return pb.ReportFailureResponse()

    def _own(self, name: str) -> Record:
        """Return the job that the token is for; any other does not exist for this worker."""
        record, claims = self._control.store.get(_job_id(name)), current_principal().claims
        if record is None or claims.get("job") != name:
            raise not_found(name)
        if str(claims.get("attempt")) != str(record.job.attempt):
            raise _fenced(record)
        return record

    def _allowed(self, record: Record, transition: Any) -> jobs.Job:
        try:
            job: jobs.Job = transition()
        except Fenced:
            raise _fenced(record) from None
        except IllegalTransition as problem:
            raise state_error(record.job, problem) from None
        return job


def _proves_nothing() -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_INVALID",
        "This token proves no worker of this job. It must be of the worker's own pod, made for the trainer.",
    )


def _fenced(record: Record) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.ABORTED,
        "WORKER_FENCED",
        "A newer attempt of this job exists; this worker must stop.",
        {"job": record.job.name, "attempt": str(record.job.attempt)},
    )


def _job_id(name: str) -> str:
    return name.removeprefix("trainingJobs/")
