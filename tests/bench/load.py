"""Streams of requests, and what a client sees of them: the same for an engine, a gRPC service and an HTTP server."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

# A request, a prompt and the number of an adapter, is answered piece by piece: how many tokens each holds, where the
# server says so; else the last says it for all. Closing an answer ends the request.
Send = Callable[[str, int], AsyncGenerator[int, None]]


@dataclass
class Seen:
    """What clients saw.

    Attributes:
        seconds: from the first request to the last answer's end.
        tokens: that were made.
        first: seconds to the first piece, for each request.
    """

    seconds: float = 0.0
    tokens: int = 0
    first: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


async def drive(streams: int, requests: Sequence[tuple[str, int]], send: Send, *, leave: bool = False) -> Seen:
    """Send requests on so many streams, each the next one as soon as its last is answered.

    Args:
        streams: how many at once.
        requests: prompts, and numbers of adapters.
        send: sends one.
        leave: go away after the first piece of each.
    """
    seen, left = Seen(), iter(requests)

    async def stream() -> None:
        for prompt, adapter in left:
            sent, first = time.perf_counter(), None
            async with aclosing(send(prompt, adapter)) as pieces:
                async for tokens in pieces:
                    first = first or time.perf_counter() - sent
                    seen.tokens += tokens
                    if leave:
                        break
            assert first is not None, "an answer without a piece"
            seen.first.append(first)

    started = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    seen.seconds = time.perf_counter() - started
    return seen


def pooled(rounds: list[Seen]) -> tuple[float, float, float]:
    """Return median tokens per second, and milliseconds to the first token: median and 99th percentile."""
    first = [1e3 * seconds for seen in rounds for seconds in seen.first]
    return statistics.median(s.rate for s in rounds), statistics.median(first), statistics.quantiles(first, n=100)[98]


def over(ours: list[Seen], theirs: list[Seen]) -> float:
    """Return the median over rounds of the ratio of rates, so that a slow minute counts against nobody."""
    return statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))


def later(ours: list[Seen], theirs: list[Seen]) -> float:
    """Return the median over rounds of the milliseconds by which the median first token comes later."""
    medians = zip(*([statistics.median(seen.first) for seen in rounds] for rounds in (ours, theirs)), strict=True)
    return 1e3 * statistics.median(a - b for a, b in medians)
