"""Lives of a trainer's control on what outlives them: a database, and a ledger and workers that are as a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2
from services.common.errors import MurmuraError
from services.trainer import jobs
from services.trainer.artifacts import FILES, ArtifactStore
from services.trainer.checkpoints import Checkpoints
from services.trainer.control import Control
from services.trainer.launcher import Observation, WorkOrder
from services.trainer.sqlite_database import SqliteDatabase
from services.trainer.store import Database, JobStore, Record

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

    def __init__(self, directory: Path, open_database: Callable[[], Database] | None = None) -> None:
        self.directory = directory
        self.open_database = open_database or (lambda: SqliteDatabase(directory / "jobs.sqlite3"))
        self.key = Ed25519PrivateKey.generate()
        self.ledger = Ledger()
        self.workers = Workers(Observation(exists=True, alive=True))

    def life(self) -> Control:
        """A new life of the trainer on the old disk."""
        return Control(
            JobStore(self.open_database()),
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
