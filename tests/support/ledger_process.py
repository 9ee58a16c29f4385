"""The ledger as a process of its own."""

from __future__ import annotations

from pathlib import Path

from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from murmura.local.identity import Identity
from services.common.tokens import load_signing_key, mint
from tests.support import warm
from tests.support.ports import free_port


class Ledger:
    """`python -m services.ledger`, on a port that it keeps.

    Attributes:
        endpoint: where it listens.
    """

    Stub = ledger_service_pb2_grpc.LedgerServiceStub

    def __init__(self, directory: Path, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._identity = Identity(directory)
        self._identity.mint("service:ledger", "service")
        given = {
            "LISTEN": self.endpoint,
            "STATE_DIR": str(directory / "state"),
            "TRUSTED_KEYS": str(self._identity.trusted_keys),
            "SERVICE_TOKEN_FILE": str(self._identity.token_file("service:ledger")),
            **settings,
        }
        self._environment = warm.environment(given)
        self._process: warm.Process | None = None

    def launch(self) -> warm.Process:
        """Start the process, and do not wait for it to serve."""
        self._process = warm.start("services.ledger", self._environment, self.directory / "ledger.log")
        return self._process

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return (self.directory / "ledger.log").read_text()

    def who(self, role: str) -> tuple[tuple[str, str], ...]:
        """Return call metadata with a fresh token; of the services, that one which opens accounts and spends."""
        key = load_signing_key(self.directory / "keys" / "deployment.pem")
        subject = "service:dataset" if role == "service" else f"{role}@local"
        token = mint(key, "deployment", subject, [role], 3600)
        return (("authorization", f"Bearer {token}"),)
