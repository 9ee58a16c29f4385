"""Which transit engine wraps the data keys, as the environment says."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from services.common.config import Settings
from services.common.told import AuthorityFile, TokenFile
from services.dataset.keys import TransitKeys


class TransitSettings(Settings):
    """A transit engine, or none: a file of the service wraps then."""

    transit_url: str = Field("", description="URL of Vault or OpenBao, whose transit key wraps the data keys")
    transit_key: str = Field("murmura", min_length=1, description="name of that key")
    transit_mount: str = Field("transit", min_length=1, description="where the transit engine is mounted")
    transit_token_file: TokenFile | None = Field(None, description="file with a token that may use the key")
    transit_authority: AuthorityFile | None = Field(None, description="PEM file: the authority of its certificate")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        try:
            _ = self.transit
        except ValueError as problem:
            raise ValueError(f"{self.model_config['env_prefix']}TRANSIT_URL: {problem}") from None
        return self

    @cached_property
    def transit(self) -> TransitKeys | None:
        """The engine; None where there is none."""
        if not self.transit_url:
            return None
        if self.transit_token_file is None:
            raise ValueError(f"{self.model_config['env_prefix']}TRANSIT_TOKEN_FILE must be set")
        return TransitKeys(
            self.transit_url, self.transit_key, self.transit_token_file, self.transit_mount, self.transit_authority
        )
