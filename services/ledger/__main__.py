"""`python -m services.ledger`: run the budget ledger."""

from __future__ import annotations

import asyncio
import sqlite3
import sys

import grpc
from prometheus_client import REGISTRY

from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from services.common.loop import run
from services.common.server import Lifecycle, serve
from services.ledger.journal import JournalBroken, Store, StoreUnusable
from services.ledger.metrics import LedgerCollector
from services.ledger.service import LedgerService
from services.ledger.settings import LedgerSettings
from services.ledger.sqlite_store import SqliteStore
from services.ledger.writer import Writer


async def main() -> int:
    """Run until told to stop; 2 says that the store is not fit to start with."""
    settings = LedgerSettings.load()

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        store = await asyncio.to_thread(open_store, settings)
        lifecycle.resources.callback(store.close)
        writer = Writer(store)
        await writer.start()
        lifecycle.resources.push_async_callback(writer.stop)
        REGISTRY.register(LedgerCollector(writer))
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerService(writer, store), server)
        return ["murmura.api.ledger.v1.LedgerService"]

    try:
        return await serve("ledger", settings, register)
    except StoreUnusable as problem:
        print(problem, file=sys.stderr)
    except JournalBroken as broken:
        print(f"MURMURA_STORE: {broken}. Restore the newest sound journal; nothing is served.", file=sys.stderr)
    return 2


def open_store(settings: LedgerSettings) -> Store:
    """Open the journal that the settings name.

    Raises:
        StoreUnusable: naming the setting, if it cannot be used.
    """
    if settings.store == "sqlite":
        path = settings.state_dir / "journal.sqlite3"
        try:
            return SqliteStore(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnusable(
                f"MURMURA_STATE_DIR: {path} cannot be used: {error}. Restore the file, or make it writable."
            ) from error
    try:
        from services.ledger.redis_store import RedisStore
    except ImportError:
        raise StoreUnusable("MURMURA_STORE: redis needs the package redis: install murmura-services[redis].") from None
    try:
        return RedisStore(
            settings.redis_url, settings.redis_key_prefix, settings.redis_password(), settings.redis_timeout_s
        )
    except StoreUnusable as problem:
        raise StoreUnusable(f"MURMURA_REDIS_URL: {problem}") from problem


if __name__ == "__main__":
    run(main())
