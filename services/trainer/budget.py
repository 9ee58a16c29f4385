"""What a job sets aside in the ledger before it begins, and what becomes of it at its end.

Each request id follows from what it is about, so that a step that a crash has interrupted is the same request when it
is taken again.
"""

from __future__ import annotations

import uuid

import grpc

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common.errors import MurmuraError
from services.common.ledger import Ledger
from services.trainer import jobs, settlement
from services.trainer.jobs import Job
from services.trainer.settlement import Resolution
from services.trainer.store import Record

# What says nothing about whether the other side did it.
_UNDECIDED = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)
_NAMESPACE = uuid.UUID("5a3c2b1e-90d4-5d0a-b6a7-2f8e4c6d1b70")


def is_refusal(error: MurmuraError) -> bool:
    """Say whether an error means that nothing was done; otherwise nobody knows."""
    return error.code not in _UNDECIDED


class Budget:
    """Reserves for jobs and settles.

    Args:
        ledger: where budgets are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def reserve(self, record: Record) -> Job:
        """Set the budget of a job aside, and that of its measurement: both or neither.

        Raises:
            MurmuraError: if the ledger refuses or does not answer.
        """
        job, evaluation = record.job, ""
        if record.plan.HasField("evaluation"):
            # First, and under an id of this record alone: where the job's own budget is refused this one is given
            # back, and a later request for the same job needs another.
            evaluation = await self._set_aside(
                record, record.plan.evaluation.statement, f"{job.name}/{job.created!r}/evaluation"
            )
        try:
            return jobs.reserved(
                job, await self._set_aside(record, record.plan.statement, f"{job.name}/reserve"), evaluation
            )
        except MurmuraError as error:
            if evaluation and is_refusal(error):
                await self._resolve(evaluation, Resolution(release=True))
            raise

    async def settle(self, job: Job) -> None:
        """Resolve what a job has set aside as its end demands."""
        if job.evaluation_reservation:
            await self._resolve(job.evaluation_reservation, settlement.evaluation_resolution(job))
        if job.reservation:
            await self._resolve(job.reservation, settlement.resolution(job))

    async def _set_aside(self, record: Record, statement: privacy_pb2.PrivacyStatement, purpose: str) -> str:
        unlimited = statement.unlimited
        kind = ledger_pb2.RESERVATION_KIND_UNLIMITED if unlimited else ledger_pb2.RESERVATION_KIND_PRIVATE
        request = ledger_service_pb2.CreateReservationRequest(
            request_id=_request_id(purpose),
            account=record.plan.account,
            principal=record.job.owner,
            job=record.job.name,
            kind=kind,
        )
        if not unlimited:
            request.mechanism.CopyFrom(statement.mechanism)
            request.truncation_delta_e18 = statement.price.truncation_delta_e18
        reservation = (await self._ledger.call(self._ledger.stub.CreateReservation, request, timeout_s=60)).reservation
        if reservation.state != ledger_pb2.RESERVATION_STATE_PENDING:
            # Only after the trainer's own state was lost: what was resolved before pays for nothing again.
            raise MurmuraError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "RESERVATION_RESOLVED",
                "This request was served before and its budget is resolved. Send it under a new request id.",
                {"reservation": reservation.name, "state": ledger_pb2.ReservationState.Name(reservation.state)},
            )
        return str(reservation.name)

    async def _resolve(self, reservation: str, resolution: Resolution) -> None:
        request_id = _request_id(f"{reservation}/resolve")
        if resolution.release:
            release = ledger_service_pb2.ReleaseReservationRequest(request_id=request_id, name=reservation)
            await self._ledger.call(self._ledger.stub.ReleaseReservation, release)
        else:
            commit = ledger_service_pb2.CommitReservationRequest(
                request_id=request_id, name=reservation, attested_steps=resolution.attested_steps
            )
            await self._ledger.call(self._ledger.stub.CommitReservation, commit, timeout_s=60)


def _request_id(purpose: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, purpose))
