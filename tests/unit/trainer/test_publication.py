"""What a job's end makes of its reservation, its files and the next worker."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.trainer import jobs, workers
from services.trainer.control import Control
from services.trainer.launcher import Observation
from services.trainer.messages import job_message
from services.trainer.store import Record
from tests.support.lives import RESERVATION, World, record


async def test_a_resolved_reservation_pays_for_nothing_again(tmp_path: Path) -> None:
    """A trainer that lost its state would otherwise train twice on one charge."""
    world = World(tmp_path)
    world.ledger.state = ledger_pb2.RESERVATION_STATE_COMMITTED
    control = world.life()
    lost = record(jobs.Job("job", "analyst@local", 20))
    control.store.add(lost)
    with pytest.raises(MurmuraError) as caught:
        await control.budget.reserve(lost)
    assert caught.value.reason == "RESERVATION_RESOLVED"
    await control.reconcile("job")
    assert control.store.get("job") is None


async def test_an_unknown_outcome_at_the_ledger_keeps_the_intent(tmp_path: Path) -> None:
    """Forgetting the job would leave its reservation pending for ever."""
    world = World(tmp_path)
    control = world.life()
    control.store.add(record(jobs.Job("job", "analyst@local", 20)))

    def trouble() -> None:
        raise MurmuraError(grpc.StatusCode.INTERNAL, "INTERNAL", "Something.")

    world.ledger.after = trouble
    with pytest.raises(MurmuraError):
        await control.reconcile("job")
    assert control.store.get("job") is not None


SUMS = trainer_service_pb2.NoisySums(loss=0.5, units=3.0)
BROKEN = trainer_service_pb2.NoisySums(loss=float("nan"), units=3.0)


@pytest.mark.parametrize(("asked", "sent"), [(False, SUMS), (True, None), (True, BROKEN)])
async def test_an_upload_measures_what_was_paid_for_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, sent: trainer_service_pb2.NoisySums | None
) -> None:
    """A number about rows that came along unpaid would be the one thing that nobody may see."""
    control = World(tmp_path).life()
    wanted = record(_now(World(tmp_path).running()))
    if asked:
        wanted.plan.evaluation.unit_count = 3
    control.store.add(wanted)
    token = Principal("worker:job", frozenset({"worker"}), {"job": "trainingJobs/job", "attempt": "1"})
    first = trainer_service_pb2.UploadAdapterRequest(job="trainingJobs/job", attempt=1, completed_steps=20)
    if sent is not None:
        first.evaluation.CopyFrom(sent)

    async def upload() -> AsyncIterator[trainer_service_pb2.UploadAdapterRequest]:
        yield first

    service = workers.WorkerService(control, None)  # type: ignore[arg-type]
    monkeypatch.setattr(workers, "current_principal", lambda: token)
    with pytest.raises(MurmuraError) as caught:
        await service.UploadAdapter(upload(), None)
    assert list(caught.value.violations) == ["evaluation"]
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.RUNNING


def audit(epsilon: float = 1.0, points: int = 2) -> trainer_pb2.Audit:
    found = trainer_pb2.Audit(canaries=500, planted=260, certain_epsilon=epsilon, estimated_epsilon=epsilon + 1)
    for _ in range(points):
        found.roc.add(false_positive_rate=0.5, true_positive_rate=0.5)
    return found


async def uploaded(
    monkeypatch: pytest.MonkeyPatch, control: Control, sent: trainer_pb2.Audit | None
) -> tuple[MurmuraError, Record]:
    """Upload an adapter that is none, with an audit; returns the refusal, and the job."""
    token = Principal("worker:job", frozenset({"worker"}), {"job": "trainingJobs/job", "attempt": "1"})
    first = trainer_service_pb2.UploadAdapterRequest(job="trainingJobs/job", attempt=1, completed_steps=20, audit=sent)

    async def upload() -> AsyncIterator[trainer_service_pb2.UploadAdapterRequest]:
        yield first

    service = workers.WorkerService(control, None)  # type: ignore[arg-type]
    monkeypatch.setattr(workers, "current_principal", lambda: token)
    with pytest.raises(MurmuraError) as caught:
        await service.UploadAdapter(upload(), None)
    found = control.store.get("job")
    assert found is not None
    return caught.value, found


@pytest.mark.parametrize(
    ("asked", "sent"), [(False, audit()), (True, None), (True, audit(float("nan"))), (True, audit(points=201))]
)
async def test_an_upload_tells_of_canaries_if_and_only_if_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, sent: trainer_pb2.Audit | None
) -> None:
    world = World(tmp_path)
    control, wanted = world.life(), record(_now(world.running()))
    if asked:
        wanted.plan.canaries.template = "{name}"
    control.store.add(wanted)
    refusal, found = await uploaded(monkeypatch, control, sent)
    assert list(refusal.violations) == ["audit"]
    assert found.job.state == jobs.RUNNING


async def test_an_adapter_whose_audit_refutes_its_promise_is_published_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    control, wanted = world.life(), record(_now(world.running()))
    wanted.plan.canaries.template = "{name}"
    control.store.add(wanted)
    promised = wanted.plan.statement.epsilon
    refusal, found = await uploaded(monkeypatch, control, audit(promised + 0.1))
    assert refusal.reason == "JOB_STATE"
    assert found.job.ending is not None and found.job.ending.cause == jobs.PROMISE_BROKEN
    await control.reconcile("job")
    over = control.store.get("job")
    assert over is not None and over.job.state == jobs.FAILED
    message = job_message(over)
    assert message.error.message.startswith("The audit proves that this adapter gives away more than was promised")
    assert message.audit == audit(promised + 0.1)
    assert world.ledger.kinds() == ["Commit"]
    request = ledger_service_pb2.CommitReservationRequest.FromString(world.ledger.events[0][1])
    assert not request.HasField("attested_steps"), "it is charged in full"
    assert not (tmp_path / "artifacts" / "job").exists()


@pytest.mark.parametrize("unlimited", [False, True])
async def test_a_promise_that_is_kept_or_was_never_given_is_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlimited: bool
) -> None:
    world = World(tmp_path)
    control, wanted = world.life(), record(_now(world.running()))
    wanted.plan.canaries.template, wanted.plan.statement.unlimited = "{name}", unlimited
    control.store.add(wanted)
    sent = audit(30.0 if unlimited else wanted.plan.statement.epsilon)
    refusal, found = await uploaded(monkeypatch, control, sent)
    assert refusal.reason == "ADAPTER_REJECTED", "it came as far as its files, of which there are none"
    assert found.job.ending is None


def _now(job: jobs.Job) -> jobs.Job:
    """A job that began just now: its running limit is far away."""
    return dataclasses.replace(job, started=time.time())


async def test_a_worker_that_falls_silent_is_killed_and_followed_by_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    control = world.life()
    control.store.add(record(_now(world.running())))
    control.tending.born -= control.tending.limits.silence + 1
    await control.reconcile("job")
    found = control.store.get("job")
    assert found is not None and (found.job.state, found.job.attempt) == (jobs.RUNNING, 2)
    assert world.workers.calls == ["kill"]
    assert world.ledger.kinds() == []
    # It was seen alive a moment ago: the new attempt has its whole time.
    world.workers.seen = Observation(exists=False, alive=False)
    await control.reconcile("job")
    assert world.workers.calls == ["kill", "ensure"]
    with pytest.raises(jobs.Fenced):
        jobs.saved(found.job, 1, 5)


@pytest.mark.parametrize(
    ("exit_code", "before"),
    [(75, {"evictions": jobs.MOST_EVICTIONS}), (-9, {"deaths": jobs.MOST_DEATHS - 1}), (None, {"deaths": 2})],
)
async def test_the_last_worker_that_goes_without_a_word_costs_the_plan(
    tmp_path: Path, exit_code: int | None, before: dict[str, int]
) -> None:
    world = World(tmp_path)
    control = world.life()
    control.store.add(record(dataclasses.replace(_now(world.running()), checkpoint_steps=4, **before)))
    world.workers.seen = Observation(exists=True, alive=False, exit_code=exit_code, evicted=exit_code == 75)
    (tmp_path / "checkpoints" / "job.sealed").write_bytes(b"sealed")
    for _ in range(2):
        await control.reconcile("job")
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.FAILED
    assert list((tmp_path / "checkpoints").iterdir()) == []
    request = ledger_service_pb2.CommitReservationRequest.FromString(world.ledger.events[0][1])
    assert not request.HasField("attested_steps")


async def test_a_job_that_fails_unforeseen_does_not_stop_the_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.workers.seen = Observation(exists=False, alive=False)
    control = world.life()
    control.store.add(record(jobs.reserved(jobs.Job("bad", "a", 20), "accounts/a/reservations/b")))
    control.store.add(record(world.running()))
    control.store.update(jobs.ending(world.running(), "STOPPED", 4))

    def token(_: Record) -> str:
        raise ValueError("something that nobody foresaw")

    control.tending.token = token
    loop = asyncio.create_task(control.reconcile_forever())
    try:
        async with asyncio.timeout(10):
            while (found := control.store.get("job")) is not None and not found.job.ended:
                await asyncio.sleep(0.01)
    finally:
        assert not loop.done()
        loop.cancel()


async def test_a_watcher_misses_no_change(tmp_path: Path) -> None:
    """A change that comes between looking and waiting ends the wait at once."""
    control = World(tmp_path).life()
    control.store.add(record(jobs.Job("job", "a", 20)))
    news, other = control.news("job"), control.news("other")
    control.save(jobs.reserved(jobs.Job("job", "a", 20), RESERVATION))
    async with asyncio.timeout(1):
        await news.wait()
    assert not control.news("job").is_set()
    assert not other.is_set()
