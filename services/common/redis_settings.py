"""What a service is told that keeps its state in SQLite or in Redis, beside what every service is told."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationInfo, field_validator

from services.common.config import ServiceSettings
from services.common.files import read

# The only options that a URL may carry; others could weaken what a store relies on.
_URL_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
PREFIX_PATTERN = r"^[\w:.-]+$"


class StoreSettings(ServiceSettings):
    """Where a service keeps what it must not forget, from `MURMURA_*` variables."""

    store: str = Field("sqlite", pattern="^(sqlite|redis)$", description="where the service's state lies")
    redis_url: str = Field(
        "", validate_default=True, description="redis://[user@]host:port/db, rediss://… (TLS) or unix://path"
    )
    redis_password_file: Path | None = Field(None, description="file with the password; read at start")
    redis_timeout_s: float = Field(5.0, gt=0, description="for connecting, and for an answer")

    @field_validator("redis_url")
    @classmethod
    def _usable(cls, url: str, info: ValidationInfo) -> str:
        if info.data.get("store") != "redis":
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.scheme == "unix"):
            raise ValueError("MURMURA_STORE=redis needs redis://host:port, rediss://host:port or unix:///path")
        if parts.password:
            raise ValueError("may hold no password: put it in a file and name that in MURMURA_REDIS_PASSWORD_FILE")
        if unknown := set(parse_qs(parts.query)) - _URL_OPTIONS:
            allowed = ", ".join(sorted(_URL_OPTIONS))
            raise ValueError(f"has the option {min(unknown)}, which is not allowed; allowed are {allowed}")
        return url

    @field_validator("redis_password_file")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            read(path)
        return path

    def redis_password(self) -> str | None:
        """Return the password, if there is a file with one."""
        return self.redis_password_file.read_text().strip() if self.redis_password_file else None
