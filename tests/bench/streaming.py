"""`make bench-streaming`: what a streamed token costs the service and its client, beside vLLM's HTTP server.

In front of a quick engine, a small model on a GPU, what stands before it is what takes the time. Two cores have no
such engine, so what is counted is the processor's time that the server's process, without its engine's, and this
client spend on each token. The model is as small as can be, and both ways take turns. Prints a table for people on
standard error and one JSON line on standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tests.bench.inference import ADAPTERS, Case, by_turns, closed, requests, serving
from tests.bench.load import Seen, over, pooled
from tests.bench.ways import Http, Murmura

SMALL = Case(
    "cpu",
    torch.float32,
    {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    rounds={16: 15, 64: 9},
    requests={16: 64, 64: 128},
)


class Counted:
    """A way, and what its rounds have spent.

    Args:
        way: that is sent the rounds.
        process: of the server.

    Attributes:
        server, client: seconds that the server's process, without its children, and this one have computed.
    """

    def __init__(self, way: Any, process: int) -> None:
        self._way = way
        self._process = psutil.Process(process)
        self.server = self.client = 0.0

    async def measure(self, streams: int, work: list[tuple[str, int]], *, leave: bool = False) -> Seen:
        """Send a round."""
        server, client = self._used()
        seen: Seen = await self._way.measure(streams, work, leave=leave)
        now = self._used()
        self.server += now[0] - server
        self.client += now[1] - client
        return seen

    def _used(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        return times.user + times.system, time.process_time()


async def compare(ways: dict[str, Any], process: int, table: Table) -> dict[str, Any]:
    """Count what each way spends on a token, in the server's process and here; returns figures by streams."""
    for way in ways.values():
        await way.measure(16, requests(16, ADAPTERS))
    found: dict[str, Any] = {}
    for streams, count in SMALL.requests.items():
        counted = {name: Counted(way, process) for name, way in ways.items()}
        seen = await by_turns(counted, streams, count, SMALL.rounds[streams], leave=False)
        costs, firsts = {}, {name: pooled(rounds)[2] for name, rounds in seen.items()}
        for name, spent in counted.items():
            tokens = sum(one.tokens for one in seen[name])
            table.add_row(
                f"{streams}: {name}", *(f"{1e6 * part / tokens:.0f}" for part in (spent.server, spent.client))
            )
            costs[name] = 1e6 * (spent.server + spent.client) / tokens
        found[str(streams)] = {
            "us_a_token": round(costs["Murmura"], 1),
            "cpu_over_http": round(costs["Murmura"] / costs["HTTP"], 3),
            "tokens_over_http": round(over(seen["Murmura"], seen["HTTP"]), 3),
            "ttft_p99_over_http": round(firsts["Murmura"] / firsts["HTTP"], 3),
        }
    return found


def main() -> int:
    """Run the benchmark; returns the exit code."""
    table = Table(title="microseconds of a processor for each streamed token")
    table.add_column("streams: way", no_wrap=True)
    for heading in ("server", "client"):
        table.add_column(heading, justify="right")
    with serving(SMALL) as service:
        ways = {"Murmura": Murmura(service), "HTTP": Http(service)}
        found = asyncio.run(closed(ways, compare(ways, service.process.pid, table)))
    Console(stderr=True).print(table)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
