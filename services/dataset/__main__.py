"""`python -m services.dataset`: run the dataset service."""

from __future__ import annotations

from functools import cached_property
from typing import Self

import grpc
from pydantic import Field, field_validator, model_validator

from murmura.api.dataset.v1 import dataset_service_pb2_grpc
from services.common.config import ServiceSettings
from services.common.ledger import Ledger, Witness
from services.common.loop import run
from services.common.memory import keep_freed
from services.common.server import Lifecycle, serve, unfit
from services.common.told import Endpoint, EndpointOrNone
from services.common.upstream import Upstream
from services.dataset.catalogue import Catalogue
from services.dataset.columns import Unreadable
from services.dataset.databases import Databases
from services.dataset.holders import TransitSettings
from services.dataset.keys import HolderAway
from services.dataset.registry import Outdated, Registry
from services.dataset.sealing import Sealed
from services.dataset.service import DatasetService
from services.dataset.sources import Sources, Stores, locate
from services.dataset.vault import Vault


class DatasetSettings(TransitSettings, ServiceSettings):
    """What the dataset service is told."""

    ledger_endpoint: Endpoint = Field(description="host:port of the ledger")
    sources: list[str] | None = Field(
        None, description="JSON: prefixes of paths and URLs that stewards may register; by default all of this machine"
    )
    s3_endpoint: str = Field("", description="URL of an S3 service other than Amazon's")
    s3_region: str = Field("", description="its region")
    gcs_endpoint: EndpointOrNone = Field("", description="host:port of a Google Cloud Storage emulator")
    databases: dict[str, str] = Field({}, description="JSON: name to SQLAlchemy URL, credentials included")

    @field_validator("sources")
    @classmethod
    def _located(cls, prefixes: list[str] | None) -> list[str] | None:
        for prefix in prefixes or ():
            try:
                locate(prefix)
            except Unreadable as problem:
                raise ValueError(f"{prefix}: {problem}") from None
        return prefixes

    @model_validator(mode="after")
    def _usable(self) -> Self:
        try:
            _ = self.places
        except ValueError as problem:
            raise ValueError(f"MURMURA_DATABASES: {problem}") from None
        return self

    @cached_property
    def places(self) -> Sources:
        """What stewards may register from: where a network can call, nothing that is not configured."""
        everything = ["/"] if self.local else []
        secrets = [self.trusted_keys, self.service_token_file, self.tls_key, self.transit_token_file]
        return Sources(
            allowed=everything if self.sources is None else self.sources,
            kept_out=[self.state_dir, *(path.parent for path in secrets if path is not None)],
            stores=Stores(self.s3_endpoint, self.s3_region, self.gcs_endpoint),
            databases=Databases(self.databases),
        )


async def main() -> int:
    """Run until told to stop."""
    settings = DatasetSettings.load()
    keep_freed()

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        try:
            registry = Registry(settings.state_dir / "registry.sqlite3")
            vault = Vault(settings.state_dir, settings.transit)
        except (Outdated, Sealed) as problem:
            unfit(f"{settings.state_dir}: {problem}")
        except HolderAway as away:
            unfit(f"MURMURA_TRANSIT_URL: {away} cannot be used: no answer, or refused")
        lifecycle.resources.callback(registry.close)
        vault.sweep(registry.storage_ids())
        upstream = Upstream("ledger", settings.ledger_endpoint, settings)
        lifecycle.resources.push_async_callback(upstream.close)
        ledger = Ledger(upstream, Witness(settings.state_dir / "witness.json"))
        service = DatasetService(Catalogue(registry, vault), settings.places, ledger)
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(service, server)
        return ["murmura.api.dataset.v1.DatasetService"]

    return await serve("dataset", settings, register)


if __name__ == "__main__":
    run(main())
