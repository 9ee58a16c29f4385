"""`make bench-inference`: what access control, isolation and provenance cost beside the engine they stand before.

One random Llama with adapters, the same prompts, three ways to it: vLLM's AsyncLLM called in process, Murmura's
inference service, and vLLM's own HTTP server. All three lead to one engine and take turns, so that neither an engine's
luck nor what the machine does meanwhile tells them apart. Prints a table for people on standard error and one JSON line
on standard output.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import string
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from tests.bench.load import Seen, later, over, pooled
from tests.bench.results import accelerator
from tests.bench.ways import TOKENS, Bare, Http, Murmura, start
from tests.support.inference_process import Service
from tests.support.random_models import make_adapter, make_base

ADAPTERS = 8
# A first token alone differs by milliseconds from way to way, and by far more from prompt to prompt: many prompts, each
# sent every way in turn and left after its first token.
FIRSTS = 100


@dataclass(frozen=True)
class Case:
    """What is served where.

    Attributes:
        device: that makes the weights.
        dtype: of the weights.
        shape: of the Llama.
        rounds: of each number of streams.
        requests: of a round, by streams.
    """

    device: str
    dtype: torch.dtype
    shape: dict[str, int]
    rounds: dict[int, int]
    requests: dict[int, int]


_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# Large enough that the model and not the scheduler is measured; what a GPU serves is larger.
CPU = Case(
    "cpu",
    torch.float32,
    dict(zip(_SHAPE, (1024, 2816, 12, 16, 4), strict=True)),
    rounds={1: 12, 16: 4, 64: 4},
    requests={1: 1, 16: 32, 64: 64},
)
# 7.2 billion parameters: the layers of Llama 3.1 8B.
GPU = Case(
    "cuda",
    torch.bfloat16,
    dict(zip(_SHAPE, (4096, 14336, 32, 32, 8), strict=True)),
    rounds={1: 8, 16: 4, 64: 4},
    requests={1: 1, 16: 48, 64: 192},
)
WORDS = 32_000
SETTINGS = {"max_context": 256, "max_adapters": 8, "max_resident_adapters": 8, "max_rank": 16}
_prompts = random.Random(5)
T = TypeVar("T")
_console = Console(stderr=True)


def requests(count: int, adapters: int = 1) -> list[tuple[str, int]]:
    """Return requests that were never sent before; the token that starts a text is one of a prompt's."""
    return [("".join(_prompts.choices(string.ascii_letters, k=TOKENS - 1)), n % adapters) for n in range(count)]


async def by_turns(
    ways: dict[str, Any], streams: int, count: int, rounds: int, *, leave: bool
) -> dict[str, list[Seen]]:
    """Send each round's requests every way, a different way first each time."""
    seen: dict[str, list[Seen]] = {name: [] for name in ways}
    for turn in range(rounds):
        names, work = list(ways), requests(count)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seen[name].append(await ways[name].measure(streams, work, leave=leave))
        if turn % max(1, rounds // 10) == 0:
            what = "first token, ms" if leave else "tokens/s"
            found = ((name, 1e3 * max(s[-1].first) if leave else s[-1].rate) for name, s in seen.items())
            told = ", ".join(f"{name} {value:.1f}" for name, value in found)
            _console.print(f"{streams} streams, round {turn + 1} of {rounds}, {what}: {told}", style="dim")
    return seen


async def by_streams(ways: dict[str, Any], case: Case, table: Table) -> dict[str, Any]:
    """Measure the three ways with more and more streams; returns figures by streams."""
    for way in ways.values():
        await way.measure(16, requests(16, ADAPTERS))
    found: dict[str, Any] = {}
    for streams, count in case.requests.items():
        seen = await by_turns(ways, streams, count, case.rounds[streams], leave=False)
        # Among many streams a first token waits for its turn, whatever the way; there the same rounds tell.
        firsts = await by_turns(ways, 1, 1, FIRSTS, leave=True) if streams == 1 else seen
        figures = {name: (pooled(seen[name])[0], *pooled(firsts[name])[1:]) for name in ways}
        bare, ours, http = (seen[name] for name in ("bare", "Murmura", "HTTP"))
        for name, (rate, p50, p99) in figures.items():
            ratio = f"{over(seen[name], bare):.3f}"
            table.add_row(f"{streams}: {name}", f"{rate:.0f}", ratio, f"{p50:.1f}", f"{p99:.1f}")
        found[str(streams)] = {
            "tokens_over_bare": round(over(ours, bare), 3),
            "tokens_over_http": round(over(ours, http), 3),
            "ttft_p50_ms_over_bare": round(later(firsts["Murmura"], firsts["bare"]), 2),
            "ttft_p99_over_http": round(figures["Murmura"][2] / figures["HTTP"][2], 3),
        }
        _console.print(f"{streams} streams: {found[str(streams)]}", style="dim")
    return found


async def by_adapters(ways: dict[str, Any], case: Case, table: Table) -> float:
    """Measure eight adapters beside one; returns the ratio of their tokens."""
    one, eight = [], []
    for turn in range(case.rounds[16]):
        _console.print(f"eight adapters and one: round {turn + 1} of {case.rounds[16]}", style="dim")
        one.append(await ways["Murmura"].measure(16, requests(case.requests[16])))
        eight.append(await ways["Murmura"].measure(16, requests(case.requests[16], ADAPTERS)))
    for name, rounds in (("one adapter", one), ("eight adapters", eight)):
        rate, p50, p99 = pooled(rounds)
        table.add_row(f"16: Murmura, {name}", f"{rate:.0f}", "", f"{p50:.1f}", f"{p99:.1f}")
    return round(over(eight, one), 3)


@contextmanager
def serving(case: Case) -> Iterator[Service]:
    """Make a model and adapters, and start what serves them."""
    directory = Path(tempfile.mkdtemp(prefix="bench-inference-"))
    service = None
    try:
        _console.print("making a model and starting an engine", style="dim")
        base = make_base(
            directory / "base",
            words=WORDS,
            device=case.device,
            dtype=case.dtype,
            initializer_range=0.02,
            **case.shape,
        )
        torch.cuda.empty_cache()  # the engine wants that memory
        adapters = [make_adapter(base, directory / f"a{n}", n, rank=16) for n in range(ADAPTERS)]
        service = start(directory / "murmura", base, adapters, SETTINGS)
        yield service
    finally:
        if service is not None:
            service.process.kill()
        shutil.rmtree(directory)


async def closed(ways: dict[str, Any], measuring: Coroutine[Any, Any, T]) -> T:
    """Measure, and close all connections; returns what was found."""
    try:
        return await measuring
    finally:
        for way in ways.values():
            await way.close()


async def everything(ways: dict[str, Any], case: Case, table: Table) -> dict[str, Any]:
    """Measure streams and adapters."""
    streams = await by_streams(ways, case, table)
    return {"streams": streams, "eight_adapters_over_one": await by_adapters(ways, case, table)}


def main() -> int:
    """Run the benchmark; returns the exit code."""
    case = GPU if torch.cuda.is_available() else CPU
    table = Table(title=f"{TOKENS} prompt and {TOKENS} output tokens a request, {accelerator()}")
    table.add_column("streams: way", no_wrap=True)
    for heading in ("tokens/s", "/ bare", "first p50, ms", "first p99, ms"):
        table.add_column(heading, justify="right")
    with serving(case) as service:
        # The service first: the others ask for the adapters that it has loaded.
        ways = {"Murmura": Murmura(service), "bare": Bare(service), "HTTP": Http(service)}
        found = asyncio.run(closed(ways, everything(ways, case, table)))
    _console.print(table)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
