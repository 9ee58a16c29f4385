"""Real Redis servers, a proxy that loses answers, and the ledger as a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ledger_process import Ledger
from tests.support.redis_server import BINARIES, Proxy, RedisServer


@pytest.fixture(params=BINARIES)
def redis_binary(request: pytest.FixtureRequest) -> str:
    return BINARIES[request.param]


@pytest.fixture
def redis_server(redis_binary: str, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers, with settings of choice."""
    servers: list[RedisServer] = []

    def start(**settings: str) -> RedisServer:
        servers.append(RedisServer(redis_binary, tmp_path / f"redis-{len(servers)}", **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """Put proxies before servers."""
    proxies: list[Proxy] = []

    def start(*arguments: Any) -> Proxy:
        proxies.append(Proxy(*arguments))
        return proxies[-1]

    yield start
    for each in proxies:
        each.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Prepare ledger processes."""
    ledgers: list[Ledger] = []

    def prepare(**settings: str) -> Ledger:
        ledgers.append(Ledger(tmp_path / f"ledger-{len(ledgers)}", **settings))
        return ledgers[-1]

    yield prepare
    for each in ledgers:
        each.kill()
