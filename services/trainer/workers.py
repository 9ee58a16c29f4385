"""The trainer's gRPC face for workers: one job each, by its token, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from murmura.api.trainer.v1 import trainer_service_pb2_grpc
from services.common.auth import current_principal
from services.common.errors import MurmuraError, invalid, not_found
from services.trainer import jobs
from services.trainer.artifacts import MOST_BYTES, UnsoundAdapter, check
from services.trainer.control import Control
from services.trainer.jobs import Fenced, IllegalTransition
from services.trainer.messages import assignment
from services.trainer.planning import Planner
from services.trainer.service import state_error
from services.trainer.store import Record


class WorkerService(trainer_service_pb2_grpc.WorkerServiceServicer):
    """What a worker may call.

    Args:
        control: drives jobs.
        planner: knows where base models lie.
    """

    def __init__(self, control: Control, planner: Planner) -> None:
        self._control = control
        self._planner = planner

    async def GetAssignment(self, request: pb.GetAssignmentRequest, context: Any) -> pb.GetAssignmentResponse:
        """Say what to run. From here on the job counts as started."""
        async with self._control.lock(_job_id(request.job)):
            record = self._own(request.job)
            job = self._allowed(record, lambda: jobs.begun(record.job, record.job.attempt, time.time()))
            await self._control.save(job)
        location = self._planner.location(record.spec.base_model)
        return pb.GetAssignmentResponse(assignment=assignment(record, location))

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        """Note steps, renew the token, pass on a wish to stop."""
        async with self._control.lock(_job_id(request.job)):
            record = self._own(request.job)
            job = self._allowed(
                record,
                lambda: jobs.progressed(record.job, request.attempt, request.completed_steps),
            )
            if job != record.job:
                await self._control.save(job)
        stop = job.cancel_requested or job.ending is not None
        return pb.HeartbeatResponse(stop=stop, job_token=self._control.token(record))

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[pb.UploadAdapterRequest], context: Any
    ) -> pb.UploadAdapterResponse:
        """Take the adapter, charge the job, publish. A repeated upload of a finished job is answered as the first."""
        first = await anext(request_iterator)
        async with self._control.lock(_job_id(first.job)):
            record = self._own(first.job)
            if record.job.state == jobs.RUNNING:
                staged = self._control.staging / record.job.job_id
                await _receive(first, request_iterator, staged)
                job = self._allowed(record, lambda: jobs.uploaded(record.job, first.attempt))
                await self._control.save(job)
                record = self._own(first.job)
            if record.job.state == jobs.PUBLISHING:
                await self._control.publish(record)
            elif record.job.state != jobs.SUCCEEDED:
                raise state_error(record.job, IllegalTransition(record.job.state))
        return pb.UploadAdapterResponse(adapter=record.job.adapter)

    async def ReportFailure(self, request: pb.ReportFailureRequest, context: Any) -> pb.ReportFailureResponse:
        """Note that the worker gives up; the loop settles the budget."""
        async with self._control.lock(_job_id(request.job)):
            record = self._own(request.job)
            if request.attempt != record.job.attempt:
                raise _fenced(record)
            cause = pb.FailureCause.Name(request.cause).removeprefix("FAILURE_CAUSE_")
            job = self._allowed(record, lambda: jobs.ending(record.job, cause, request.attested_steps))
            await self._control.save(job)
        return pb.ReportFailureResponse()

    def _own(self, name: str) -> Record:
        """Return the job that the token is for; any other does not exist for this worker."""
        record = self._control.store.get(_job_id(name))
        if record is None or current_principal().claims.get("job") != name:
            raise not_found(name)
        return record

    def _allowed(self, record: Record, transition: Any) -> jobs.Job:
        try:
            job: jobs.Job = transition()
        except Fenced:
            raise _fenced(record) from None
        except IllegalTransition as problem:
            raise state_error(record.job, problem) from None
        return job


async def _receive(first: Any, rest: AsyncIterator[Any], directory: Path) -> None:
    """Write the files of an upload and check that they are an adapter."""
    _empty(directory)
    total, out = 0, None
    try:
        message: Any = first
        while message is not None:
            if message.file_name:
                if out is not None:
                    out.close()
                # The contract's rules allow two names only, so no path can come in here.
                out = (directory / message.file_name).open("xb")
            if message.data:
                if out is None:
                    raise invalid("file_name", "must be set before data")
                total += len(message.data)
                if total > MOST_BYTES:
                    raise invalid("data", f"an adapter has at most {MOST_BYTES} bytes")
                out.write(message.data)
            message = await anext(rest, None)
    except FileExistsError:
        raise invalid("file_name", "came twice") from None
    finally:
        if out is not None:
            out.close()
    try:
        check(directory)
    except UnsoundAdapter as problem:
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "ADAPTER_REJECTED",
            f"The upload is no sound adapter: the check of its {problem} failed.",
            {"adapter": "", "check": str(problem)},
        ) from None


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)


def _fenced(record: Record) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.ABORTED,
        "WORKER_FENCED",
        "A newer attempt of this job exists; this worker must stop.",
        {"job": record.job.name, "attempt": str(record.job.attempt)},
    )


def _job_id(name: str) -> str:
    return name.removeprefix("trainingJobs/")
