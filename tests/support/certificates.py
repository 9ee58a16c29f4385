"""Certificates of an authority of the tests' own, as files, the way an operator lays them out."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme

DOMAIN = "murmura.internal"


@dataclass
class Files:
    """A certificate, its key, and the authority that its holder believes."""

    certificate: Path
    key: Path
    authority: Path

    def environment(self) -> dict[str, str]:
        """Return the settings that name them, without their prefix."""
        return {
            "TLS_CERTIFICATE": str(self.certificate),
            "TLS_KEY": str(self.key),
            "TLS_AUTHORITY": str(self.authority),
        }


class Authority:
    """Signs certificates into a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA()
        self.file = directory / "authority.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, file: str = "", expired: bool = False, authority: Path | None = None) -> Files:
        """Write a certificate of some names; over the files of one that was issued before, if they are the same."""
        ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1) if expired else None
        made = self._ca.issue_cert(*names, not_after=ends)
        stem = self._directory / (file or names[0])
        files = Files(stem.with_suffix(".pem"), stem.with_suffix(".key"), authority or self.file)
        files.certificate.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        made.private_key_pem.write_to_path(files.key)
        return files

    def service(self, name: str, **how: object) -> Files:
        """Write the certificate of a service, which people find at 127.0.0.1 and localhost."""
        names = (f"{name}.{DOMAIN}", "localhost", "127.0.0.1")
        return self.issue(*names, file=str(how.pop("file", name)), **how)  # type: ignore[arg-type]
