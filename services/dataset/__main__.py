"""`python -m services.dataset`: run the dataset service."""

from __future__ import annotations

import asyncio
import sys

import grpc
from pydantic import Field

from murmura.api.dataset.v1 import dataset_service_pb2_grpc
from services.common.config import ServiceSettings
from services.common.ledger import Ledger, Witness
from services.common.server import Lifecycle, serve
from services.common.upstream import Upstream
from services.dataset.catalogue import Catalogue
from services.dataset.registry import Outdated, Registry
from services.dataset.service import DatasetService
from services.dataset.vault import Sealed, Vault


class DatasetSettings(ServiceSettings):
    """What the dataset service is told."""

    ledger_endpoint: str = Field(description="host:port of the ledger")


async def main() -> int:
    """Run until told to stop."""
    settings = DatasetSettings.load()

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        try:
            registry = Registry(settings.state_dir / "registry.sqlite3")
            vault = Vault(settings.state_dir)
        except (Outdated, Sealed) as problem:
            print(f"{settings.state_dir}: {problem}", file=sys.stderr)
            raise SystemExit(2) from None
        lifecycle.resources.callback(registry.close)
        vault.sweep(registry.storage_ids())
        upstream = Upstream("ledger", settings.ledger_endpoint, settings.service_token_file)
        lifecycle.resources.push_async_callback(upstream.close)
        ledger = Ledger(upstream, Witness(settings.state_dir / "witness.json"))
        service = DatasetService(Catalogue(registry, vault), ledger)
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(service, server)
        return ["murmura.api.dataset.v1.DatasetService"]

    return await serve("dataset", settings, register)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
