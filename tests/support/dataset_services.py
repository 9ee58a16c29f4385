"""A ledger and a dataset service, each a process of its own on a free port, and tokens of everyone who may call."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from murmura.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc, expressions_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from murmura.local.identity import Identity
from services.common.requests import frame_digest
from services.common.tokens import load_signing_key, mint
from tests.support import warm

START_S = 60.0


class Pair:
    """The two services and those who call them.

    Attributes:
        dataset, ledger: stubs.
    """

    dataset: Any
    ledger: Any

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._identity = Identity(directory)
        self._processes: dict[str, warm.Process] = {}
        self._channels: dict[str, grpc.Channel] = {}
        for service in ("dataset", "ledger"):
            self._identity.mint(f"service:{service}", "service")

    def state(self, service: str) -> Path:
        """The state directory of a service."""
        return self.directory / "services" / service

    def log(self, service: str) -> str:
        """What a service has logged."""
        return (self.directory / f"{service}.log").read_text()

    def start(self, service: str, **settings: str) -> None:
        """Start a service on a free port and connect to it."""
        listening = self.state(service) / "listening"
        listening.unlink(missing_ok=True)
        given = {
            "LISTEN": "127.0.0.1:0",
            "STATE_DIR": str(self.state(service)),
            "TRUSTED_KEYS": str(self._identity.trusted_keys),
            "SERVICE_TOKEN_FILE": str(self._identity.token_file(f"service:{service}")),
            **self.own_settings(service),
            **settings,
        }
        if service == "dataset" and "LEDGER_ENDPOINT" not in given:
            given["LEDGER_ENDPOINT"] = self.endpoint("ledger")
        process = warm.start(f"services.{service}", warm.environment(given), self.directory / f"{service}.log")
        self._processes[service] = process
        deadline = time.monotonic() + START_S
        while not listening.exists() or not listening.read_text().endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{service} does not start\n{self.log(service)[-3000:]}")
            time.sleep(0.05)
        channel = self._channels[service] = self.connected(service)
        stubs: dict[str, Any] = {
            "dataset": dataset_service_pb2_grpc.DatasetServiceStub,
            "ledger": ledger_service_pb2_grpc.LedgerServiceStub,
        }
        setattr(self, service, stubs[service](channel))

    @contextmanager
    def running(self, **settings: str) -> Iterator[Self]:
        """Start both, and end them whatever happens.

        Args:
            settings: more of the dataset service.
        """
        try:
            self.start("ledger")
            self.start("dataset", **settings)
            yield self
        finally:
            self.stop()

    def own_settings(self, service: str) -> dict[str, str]:
        """More settings of a service, of this kind of pair."""
        return {}

    def connected(self, service: str) -> grpc.Channel:
        """A new channel to a service, of who calls in tests."""
        return grpc.insecure_channel(self.endpoint(service))

    def channel(self, service: str) -> grpc.Channel:
        """The channel to a service."""
        return self._channels[service]

    def endpoint(self, service: str) -> str:
        """Where a service listens."""
        return (self.state(service) / "listening").read_text().strip()

    def process(self, service: str) -> warm.Process:
        """The process of a service."""
        return self._processes[service]

    def kill(self, service: str) -> None:
        """End a service as a power cut would."""
        self._channels.pop(service).close()
        process = self._processes.pop(service)
        process.kill()
        process.wait(20)

    def stop(self) -> None:
        """End both."""
        for service in list(self._processes):
            self.kill(service)

    # ------------------------------------------------------------------ who calls

    def who(self, role: str, subject: str = "", **claims: str) -> tuple[tuple[str, str], ...]:
        """Return call metadata with a token of anyone but a worker."""
        return self._metadata("deployment", role, subject or f"{role}@local", claims)

    def worker(self, **claims: str) -> tuple[tuple[str, str], ...]:
        """Return call metadata with a job token."""
        return self._metadata("trainer", "worker", "worker:job", claims)

    def _metadata(self, key: str, role: str, subject: str, claims: dict[str, str]) -> tuple[tuple[str, str], ...]:
        token = mint(load_signing_key(self.directory / "keys" / f"{key}.pem"), key, subject, [role], 600, **claims)
        return (("authorization", f"Bearer {token}"),)

    # ------------------------------------------------------------------ what most tests do

    def request(self, content: str, ending: str = "jsonl", **fields: Any) -> Any:
        """Write a source and return the request that registers it."""
        dataset_id = fields.pop("dataset_id", f"notes-{uuid.uuid4().hex[:8]}")
        path = self.directory / f"{uuid.uuid4().hex}.{ending}"
        path.write_text(content)
        request = dataset_service_pb2.RegisterDatasetRequest(
            request_id=str(uuid.uuid4()), dataset_id=dataset_id, privacy_unit_column="patient", **fields
        )
        request.source.file.url = str(path)
        request.policy.epsilon, request.policy.delta, request.policy.unlimited_allowed = 3.0, 1e-5, True
        return request

    def register(self, request: Any, subject: str = "") -> Any:
        """Register and return the dataset."""
        answers = self.dataset.RegisterDataset(request, metadata=self.who("steward", subject), timeout=60)
        return list(answers)[-1].dataset

    def reserve(self, dataset: Any, job: str = "trainingJobs/one") -> str:
        """Reserve on a dataset's account and return the reservation's name."""
        request = ledger_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()),
            account=dataset.account,
            principal="analyst@local",
            job=job,
            kind=ledger_pb2.RESERVATION_KIND_UNLIMITED,
        )
        metadata = self.who("service", "service:trainer")
        return str(self.ledger.CreateReservation(request, metadata=metadata, timeout=30).reservation.name)

    def claims(self, frame: expressions_pb2.Frame, reservation: str) -> dict[str, str]:
        """Return the claims of the token of a job over a frame."""
        return {
            "job": "trainingJobs/one",
            "dataset": frame.dataset,
            "reservation": reservation,
            "frame_sha256": frame_digest(frame),
        }

    def read(self, frame: expressions_pb2.Frame, metadata: Any, text_column: str = "text") -> list[Any]:
        """Read the rows of a frame: all messages."""
        request = dataset_service_pb2.ReadRowsRequest(frame=frame, text_column=text_column)
        return list(self.dataset.ReadRows(request, metadata=metadata, timeout=60))
