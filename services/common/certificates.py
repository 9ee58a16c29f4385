"""The files that say who a service is: its certificate, its key, and the authority that it believes.

A certificate names its service by a DNS name, `<service>.<domain>`: gRPC checks that name when a service is called, and
the same name tells whom a calling service is. The files are looked at again every second, and a new set counts once it
is whole: a key that does not belong to its certificate is a rotation half done, and the set before it stays in use.
Nothing here imports gRPC, since settings are read before an engine forks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

REREAD_S = 1.0
DOMAIN = "murmura.internal"
SERVICES = frozenset({"dataset", "inference", "ledger", "trainer"})
_log = structlog.get_logger()


class Unusable(ValueError):
    """The files cannot be used; says which and why."""


@dataclass(frozen=True)
class Material:
    """One whole set of files, PEM. Kept out of `repr`.

    Attributes:
        certificate: the chain, this service's own first.
        key: its private key.
        authority: certificates of those who may vouch for others.
        version: another one for each set.
    """

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    authority: bytes = field(repr=False)
    version: int


class Certificates:
    """A service's certificate files, as they stand.

    Args:
        certificate: PEM file of the chain.
        key: PEM file of the private key.
        authority: PEM file of the authority that signed this service's certificate and those of the others.
        domain: a certificate of `<service>.<domain>` makes its holder that service.

    Raises:
        Unusable: if the files are no whole set.
    """

    def __init__(self, certificate: Path, key: Path, authority: Path, domain: str) -> None:
        self._paths = (certificate, key, authority)
        self.domain = domain
        self._seen = self._versions()
        self._material = self._read(1)
        self._look_at = time.monotonic() + REREAD_S

    def current(self) -> Material:
        """Return the newest whole set."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + REREAD_S
            try:
                versions = self._versions()
                if versions != self._seen:
                    self._material = self._read(self._material.version + 1)
                    self._seen = versions
                    _log.info("certificates replaced", certificate=str(self._paths[0]))
            except (OSError, Unusable) as problem:
                _log.warning("certificates not replaced", why=str(problem))
        return self._material

    def _versions(self) -> list[tuple[int, int, int]]:
        try:
            return [(facts.st_mtime_ns, facts.st_ino, facts.st_size) for facts in map(os.stat, self._paths)]
        except OSError as error:
            raise Unusable(f"{error.filename}: {error.strerror}") from None

    def _read(self, version: int) -> Material:
        try:
            certificate, key, authority = (path.read_bytes() for path in self._paths)
        except OSError as error:
            raise Unusable(f"{error.filename}: {error.strerror}") from None
        try:
            leaf = x509.load_pem_x509_certificates(certificate)[0]
            private = serialization.load_pem_private_key(key, password=None)
            x509.load_pem_x509_certificates(authority)
        except (ValueError, TypeError) as error:
            raise Unusable(
                f"{', '.join(map(str, self._paths))}: not all are PEM files of their kind: {error}"
            ) from None
        if private.public_key() != leaf.public_key():
            raise Unusable(f"{self._paths[1]} is not the key of {self._paths[0]}")
        if leaf.not_valid_after_utc <= datetime.now(UTC):
            raise Unusable(f"{self._paths[0]} has expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
        return Material(certificate, key, authority, version)


def service_named(names: Iterable[bytes], domain: str) -> str | None:
    """Return the one service that a certificate's names make its holder.

    Args:
        names: the subject alternative names, of a certificate that the authority has signed.
        domain: as in `Certificates`.

    Returns:
        For example `trainer`; None for a certificate that names none, or more than one.
    """
    suffix = f".{domain}"
    found = {
        name.decode().removesuffix(suffix) for name in names if name.isascii() and name.decode().endswith(suffix)
    } & SERVICES
    return found.pop() if len(found) == 1 else None
