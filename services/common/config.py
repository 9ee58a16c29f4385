"""Configuration by environment: `MURMURA_*` variables, checked at start; what is wrong is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What every service is told."""

    model_config = SettingsConfigDict(env_prefix="MURMURA_", extra="ignore")

    listen: str = Field("127.0.0.1:0", description="host:port; port 0 takes a free one")
    state_dir: Path = Field(description="directory that is this service's own")
    trusted_keys: Path = Field(description="JWKS file of the keys whose tokens count")
    service_token_file: Path = Field(description="file with the token that this service shows to others")
    log_format: str = Field("json", pattern="json|console")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port on this machine; 0: none")
    stop_grace_s: float = Field(10.0, ge=0)
    max_concurrent_rpcs: int = Field(512, ge=1)

    @classmethod
    def load(cls) -> Self:
        """Read the environment; end the process with a sentence for each variable that is missing or wrong."""
        try:
            return cls()
        except ValidationError as error:
            for item in error.errors():
                name = "MURMURA_" + "_".join(str(part) for part in item["loc"]).upper()
                print(f"{name}: {item['msg']}", file=sys.stderr)
            raise SystemExit(2) from None
