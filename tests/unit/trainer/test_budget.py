"""A job and its measurement: both budgets or neither, each resolved once, through a crash between any two steps."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2
from services.common.errors import MurmuraError
from services.trainer import jobs
from services.trainer.budget import Budget
from services.trainer.store import Record

PENDING = ledger_pb2.RESERVATION_STATE_PENDING
COMMITTED = ledger_pb2.RESERVATION_STATE_COMMITTED
RELEASED = ledger_pb2.RESERVATION_STATE_RELEASED


class Crash(BaseException):
    """The process is gone."""


class Ledger:
    """Reservations as the real ledger keeps them: the same request is answered again, each is resolved once."""

    def __init__(self) -> None:
        self.stub = ledger_service_pb2_grpc.LedgerServiceStub(grpc.aio.insecure_channel("127.0.0.1:1"))
        self.states: dict[str, int] = {}
        self.requests: dict[str, bytes] = {}
        self.refused: list[int] = []
        self.crash_after = 1 << 30

    async def call(self, method: Any, request: Any, timeout_s: float = 0.0) -> Any:
        kind = type(request).__name__
        body = request.SerializeToString(deterministic=True)
        known = request.request_id in self.requests
        assert self.requests.setdefault(request.request_id, body) == body
        if kind == "CreateReservationRequest":
            if request.mechanism.steps in self.refused:
                del self.requests[request.request_id]
                raise MurmuraError(grpc.StatusCode.FAILED_PRECONDITION, "BUDGET_EXHAUSTED", "Too much.")
            name = f"accounts/a/reservations/{request.request_id}"
            self.states.setdefault(name, PENDING)
        else:
            name, released = request.name, kind == "ReleaseReservationRequest"
            assert known or self.states[name] == PENDING, "it is resolved once"
            self.states[name] = RELEASED if released else COMMITTED
        self.crash_after -= 1
        if self.crash_after < 0:
            raise Crash
        answer = ledger_pb2.Reservation(name=name, state=self.states[name])  # type: ignore[arg-type]
        return type("Answer", (), {"reservation": answer})


def record(created: float = 1.25) -> Record:
    plan = trainer_pb2.Plan(steps=20, account="accounts/a")
    plan.statement.mechanism.steps = 20
    plan.evaluation.statement.mechanism.steps = 1
    return Record(jobs.Job("job", "analyst@local", 20, created=created), "body", trainer_pb2.JobSpec(), plan)


@pytest.mark.parametrize("crash_after", range(3))
async def test_both_are_set_aside_once(crash_after: int) -> None:
    ledger = Ledger()
    ledger.crash_after = crash_after
    budget = Budget(ledger)  # type: ignore[arg-type]
    if crash_after < 2:
        with pytest.raises(Crash):
            await budget.reserve(record())
    ledger.crash_after = 1 << 30
    job = await budget.reserve(record())
    assert ledger.states == {job.reservation: PENDING, job.evaluation_reservation: PENDING}
    assert job.reservation != job.evaluation_reservation


@pytest.mark.parametrize("crash_after", range(3))
async def test_where_the_jobs_own_is_refused_nothing_is_kept(crash_after: int) -> None:
    """And the job can be asked for again, once there is more to spend."""
    ledger = Ledger()
    ledger.refused, ledger.crash_after = [20], crash_after
    budget = Budget(ledger)  # type: ignore[arg-type]
    if crash_after < 2:
        with pytest.raises(Crash):
            await budget.reserve(record())
    ledger.crash_after = 1 << 30
    with pytest.raises(MurmuraError):
        await budget.reserve(record())
    assert list(ledger.states.values()) == [RELEASED]
    ledger.refused = []
    job = await budget.reserve(record(created=2.5))
    assert [ledger.states[name] for name in (job.reservation, job.evaluation_reservation)] == [PENDING, PENDING]


async def test_a_refused_measurement_keeps_the_job_from_being_reserved() -> None:
    ledger = Ledger()
    ledger.refused = [1]
    with pytest.raises(MurmuraError):
        await Budget(ledger).reserve(record())  # type: ignore[arg-type]
    assert ledger.states == {}


@pytest.mark.parametrize("crash_after", range(3))
@pytest.mark.parametrize(("attested", "evaluation"), [(4, RELEASED), (20, COMMITTED), (None, COMMITTED)])
async def test_both_are_settled_once(crash_after: int, attested: int | None, evaluation: int) -> None:
    ledger = Ledger()
    budget = Budget(ledger)  # type: ignore[arg-type]
    job = jobs.ending(jobs.begun(await budget.reserve(record()), 1, 5.0), "STOPPED", attested)
    ledger.crash_after = crash_after
    if crash_after < 2:
        with pytest.raises(Crash):
            await budget.settle(job)
    ledger.crash_after = 1 << 30
    await budget.settle(job)
    assert ledger.states == {job.reservation: COMMITTED, job.evaluation_reservation: evaluation}
