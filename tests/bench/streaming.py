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

from tests.bench.inference import ADAPTERS, Case, closed, requests, three_ways
from tests.bench.load import Seen, over

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
    rounds={16: 7, 64: 5},
    requests={16: 64, 64: 128},
)
_console = Console(stderr=True)


async def compare(ways: dict[str, Any], table: Table) -> dict[str, Any]:
    """Count what each way spends on a token; returns figures by streams."""
    for way in ways.values():
        await way.measure(16, requests(16, ADAPTERS))
    found: dict[str, Any] = {}
    for streams, count in SMALL.requests.items():
        seen: dict[str, list[Seen]] = {name: [] for name in ways}
        spent = {name: [0.0, 0.0] for name in ways}
        for turn in range(SMALL.rounds[streams]):
            _console.print(f"{streams} streams: round {turn + 1} of {SMALL.rounds[streams]}", style="dim")
            names, work = list(ways), requests(count)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                before = used(ways[name].process)
                seen[name].append(await ways[name].measure(streams, work))
                for side, (since, now) in enumerate(zip(before, used(ways[name].process), strict=True)):
                    spent[name][side] += now - since
        costs = {
            name: [1e6 * seconds / sum(one.tokens for one in seen[name]) for seconds in spent[name]] for name in ways
        }
        for name, (server, client) in costs.items():
            table.add_row(f"{streams}: {name}", f"{server:.0f}", f"{client:.0f}")
        found[str(streams)] = {
            "us_a_token": round(sum(costs["Murmura"]), 1),
            "cpu_over_http": round(sum(costs["Murmura"]) / sum(costs["HTTP"]), 3),
            "tokens_over_http": round(over(seen["Murmura"], seen["HTTP"]), 3),
        }
    return found


def used(server: int) -> tuple[float, float]:
    """Return the seconds that a server's process, without its children, and this one have computed."""
    times = psutil.Process(server).cpu_times()
    return times.user + times.system, time.process_time()


def main() -> int:
    """Run the benchmark; returns the exit code."""
    table = Table(title="microseconds of a processor for each streamed token")
    table.add_column("streams: way", no_wrap=True)
    for heading in ("server", "client"):
        table.add_column(heading, justify="right")
    with three_ways(SMALL, bare=False) as ways:
        found = asyncio.run(closed(ways, compare(ways, table)))
    _console.print(table)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
