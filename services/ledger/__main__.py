"""`python -m services.ledger`: run the budget ledger."""

from __future__ import annotations

import asyncio
import sys

import grpc

from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from services.common.config import ServiceSettings
from services.common.server import Lifecycle, serve
from services.ledger.service import LedgerService
from services.ledger.sqlite_store import SqliteStore
from services.ledger.writer import Writer


async def main() -> int:
    """Run until told to stop."""
    settings = ServiceSettings.load()

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        store = SqliteStore(settings.state_dir / "journal.sqlite3")
        lifecycle.resources.callback(store.close)
        writer = Writer(store)
        await writer.start()
        lifecycle.resources.push_async_callback(writer.stop)
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerService(writer, store), server)
        return ["murmura.api.ledger.v1.LedgerService"]

    return await serve("ledger", settings, register)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
