"""The trainer dies between any two steps of a publication or a settlement; its next life finishes them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.trainer import jobs, workers
from services.trainer.artifacts import FILES, ArtifactStore
from services.trainer.checkpoints import Checkpoints
from services.trainer.control import Control
from services.trainer.launcher import Observation, WorkOrder
from services.trainer.store import JobStore, Record

RESERVATION = "accounts/a/reservations/r"
PLANNED = privacy_pb2.Price(units=100, truncation_delta_e18=5)


class Crash(BaseException):
    """The process is gone."""


class Ledger:
    """Keeps one reservation as the real ledger does: resolved once, the same request answered again."""

    def __init__(self) -> None:
        self.stub = ledger_service_pb2_grpc.LedgerServiceStub(grpc.aio.insecure_channel("127.0.0.1:1"))
        self.events: list[tuple[str, Any]] = []
        self._served: dict[str, bytes] = {}
        self.state = ledger_pb2.RESERVATION_STATE_PENDING
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    async def call(self, method: Any, request: Any, timeout_s: float = 0.0) -> Any:
        self.before()
        kind = type(request).__name__
        body = request.SerializeToString(deterministic=True)
        if self._served.setdefault(request.request_id, body) != body:
            raise MurmuraError(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "Another body.")
        if (kind, body) not in self.events:
            if kind != "CreateReservationRequest" and self.state != ledger_pb2.RESERVATION_STATE_PENDING:
                raise MurmuraError(grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_RESOLVED", "Resolved.")
            self.events.append((kind, body))
        if kind == "CommitReservationRequest":
            self.state = ledger_pb2.RESERVATION_STATE_COMMITTED
        if kind == "ReleaseReservationRequest":
            self.state = ledger_pb2.RESERVATION_STATE_RELEASED
        self.after()
        answer = getattr(ledger_service_pb2, kind.replace("Request", "Response"))()
        answer.reservation.name, answer.reservation.state = RESERVATION, self.state
        return answer

    def kinds(self) -> list[str]:
        return [kind.removesuffix("ReservationRequest") for kind, _ in self.events]


class Workers:
    """A launcher whose workers are as a test says."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.calls: list[str] = []

    def ensure(self, order: WorkOrder) -> None:
        self.calls.append("ensure")

    def observe(self, job_id: str, attempt: int) -> Observation:
        return self.seen

    def stop(self, job_id: str, attempt: int) -> None:
        self.calls.append("stop")

    def kill(self, job_id: str, attempt: int) -> None:
        self.calls.append("kill")

    def renew(self, job_id: str, token: str) -> None:
        self.calls.append("renew")

    def collect(self, job_id: str) -> None:
        self.calls.append("collect")

    def start(self, changed: Callable[[str], None]) -> None:
        self.changed = changed

    def logs(self, job_id: str, attempt: int) -> str:
        return ""

    def found(self) -> frozenset[str]:
        return frozenset()

    def close(self) -> None:
        self.calls.append("close")


def record(job: jobs.Job) -> Record:
    plan = trainer_pb2.Plan(steps=20, account="accounts/a", unit_count=40)
    plan.statement.epsilon, plan.statement.mechanism.steps = 2.0, 20
    plan.statement.price.CopyFrom(PLANNED)
    spec = trainer_pb2.JobSpec(base_model="baseModels/tiny", target_epsilon=2.0)
    return Record(job, "body", spec, plan)


class World:
    """Everything that outlives the trainer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = Ed25519PrivateKey.generate()
        self.ledger = Ledger()
        self.workers = Workers(Observation(exists=True, alive=True))

    def life(self) -> Control:
        """A new life of the trainer on the old disk."""
        return Control(
            JobStore(self.directory / "jobs.sqlite3"),
            self.ledger,  # type: ignore[arg-type]
            self.workers,
            ArtifactStore(self.directory / "artifacts", self.key),
            self.directory / "staging",
            Checkpoints(self.directory / "checkpoints"),
            lambda _: "token",
        )

    def running(self) -> jobs.Job:
        job = jobs.Job("job", "analyst@local", 20, created=1e9)
        return jobs.begun(jobs.reserved(job, RESERVATION), 1, 5.0)

    def stage(self) -> None:
        staged = self.directory / "staging" / "job"
        staged.mkdir(parents=True)
        for name in FILES:
            (staged / name).write_bytes(name.encode())


def crash() -> None:
    raise Crash


def _commit_before(world: World, control: Control) -> None:
    world.ledger.before = crash


def _commit_after(world: World, control: Control) -> None:
    world.ledger.after = crash


def _artifact_before(world: World, control: Control) -> None:
    control._artifacts.publish = lambda staged, provenance: crash()  # type: ignore[method-assign]


def _artifact_half(world: World, control: Control) -> None:
    # The manifest is not signed yet, the directory not renamed.
    class Pen:
        def sign(self, data: bytes) -> bytes:
            raise Crash

    control._artifacts._key = Pen()  # type: ignore[assignment]


def _artifact_after(world: World, control: Control) -> None:
    control.store.update = lambda job: crash()  # type: ignore[method-assign]


def _succeeded_after(world: World, control: Control) -> None:
    control.checkpoints.remove = lambda job_id: crash()  # type: ignore[method-assign]


PUBLICATION = [
    _commit_before,
    _commit_after,
    _artifact_before,
    _artifact_half,
    _artifact_after,
    _succeeded_after,
]


@pytest.mark.parametrize("failpoint", PUBLICATION, ids=lambda f: f.__name__)
async def test_a_publication_survives_a_crash_anywhere(
    tmp_path: Path, failpoint: Callable[[World, Control], None]
) -> None:
    world = World(tmp_path)
    world.stage()
    control = world.life()
    control.store.add(record(world.running()))
    control.store.update(jobs.uploaded(world.running(), 1))
    failpoint(world, control)
    with pytest.raises(Crash):
        await control.reconcile("job")
    # Nobody sees an adapter that is not paid for.
    if world.ledger.state != ledger_pb2.RESERVATION_STATE_COMMITTED:
        assert not (tmp_path / "artifacts" / "job").exists()

    world.ledger.before = world.ledger.after = lambda: None
    world.workers = Workers(Observation(exists=True, alive=False))
    control = world.life()
    for _ in range(2):
        await control.reconcile("job")
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.SUCCEEDED
    assert world.ledger.kinds() == ["Commit"]
    request = ledger_service_pb2.CommitReservationRequest.FromString(world.ledger.events[0][1])
    assert not request.HasField("attested_steps"), "what has an adapter is charged in full"
    place = tmp_path / "artifacts" / "job"
    manifest = (place / "manifest.json").read_bytes()
    world.key.public_key().verify((place / "manifest.sig").read_bytes(), manifest)
    assert json.loads(manifest)["adapter"] == "adapters/job"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["job"]
    assert not (tmp_path / "staging" / "job").exists()


@pytest.mark.parametrize("failpoint", [_commit_before, _commit_after, _artifact_after], ids=lambda f: f.__name__)
@pytest.mark.parametrize("started", [False, True])
async def test_a_settlement_survives_a_crash_anywhere(
    tmp_path: Path, started: bool, failpoint: Callable[[World, Control], None]
) -> None:
    world = World(tmp_path)
    control = world.life()
    reserved = jobs.reserved(jobs.Job("job", "analyst@local", 20), RESERVATION)
    job = jobs.begun(reserved, 1, 5.0) if started else reserved
    control.store.add(record(job))
    control.store.update(jobs.ending(jobs.cancelling(job), "STOPPED", 4))
    failpoint(world, control)
    with pytest.raises(Crash):
        await control.reconcile("job")

    world.ledger.before = world.ledger.after = lambda: None
    control = world.life()
    found = control.store.get("job")
    assert found is not None and found.job.state not in jobs.TERMINAL
    with pytest.raises(jobs.IllegalTransition):
        jobs.begun(found.job, 1, 6.0)
    for _ in range(2):
        await control.reconcile("job")
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.CANCELLED
    assert world.ledger.kinds() == ["Commit" if started else "Release"]


async def test_an_interrupted_creation_is_finished_and_reserved_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.workers.seen = Observation(exists=False, alive=False)
    control = world.life()
    control.store.add(record(jobs.Job("job", "analyst@local", 20)))
    world.ledger.after = crash
    with pytest.raises(Crash):
        await control.reconcile("job")
    world.ledger.after = lambda: None
    control = world.life()
    await control.reconcile("job")
    assert world.workers.calls == []
    await control.reconcile("job")
    assert world.workers.calls == ["ensure"]
    assert world.ledger.kinds() == ["Create"]


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
