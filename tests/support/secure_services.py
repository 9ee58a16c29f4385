"""The ledger and the dataset service as they are deployed: with TLS, and certificates between services."""

from __future__ import annotations

from pathlib import Path

import grpc

from tests.support.certificates import DOMAIN, Authority
from tests.support.dataset_services import Pair


class SecurePair(Pair):
    """A pair with certificates of an authority of its own.

    Attributes:
        authority: signs them.
        files: the certificate of each service, and of the trainer, in whose name the ledger is called.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.authority = Authority(directory / "certificates")
        self.files = {name: self.authority.service(name) for name in ("dataset", "ledger", "trainer")}

    def own_settings(self, service: str) -> dict[str, str]:
        """Certificates, and where services meet."""
        settings = {**self.files[service].environment(), "TLS_DOMAIN": DOMAIN}
        if service == "ledger":
            return settings | {"SERVICES_LISTEN": "127.0.0.1:0"}
        return settings | {"LEDGER_ENDPOINT": self._among_services("ledger")}

    def connected(self, service: str) -> grpc.Channel:
        """A new channel: to the ledger as the trainer, to the dataset service as someone with a token."""
        authority = self.authority.file.read_bytes()
        if service == "dataset":
            return grpc.secure_channel(self.endpoint(service), grpc.ssl_channel_credentials(authority))
        mine = self.files["trainer"]
        shown = grpc.ssl_channel_credentials(authority, mine.key.read_bytes(), mine.certificate.read_bytes())
        return grpc.secure_channel(self._among_services(service), shown)

    def who(self, role: str, subject: str = "", **claims: str) -> tuple[tuple[str, str], ...]:
        """Return call metadata: nothing for a service, whose certificate says who it is."""
        return () if role == "service" else super().who(role, subject, **claims)

    def _among_services(self, service: str) -> str:
        return (self.state(service) / "listening_services").read_text().strip()
