"""What the ledger is told, beside what every service with a store is told."""

from __future__ import annotations

from pydantic import Field

from services.common.redis_settings import PREFIX_PATTERN, StoreSettings


class LedgerSettings(StoreSettings):
    """The ledger's configuration, from `MURMURA_*` variables."""

    redis_key_prefix: str = Field("murmura:ledger", pattern=PREFIX_PATTERN, description="of the journal's keys")
