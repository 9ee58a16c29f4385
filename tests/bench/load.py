"""Streams of requests, and what a client sees of them: the same for an engine, a gRPC service and an HTTP server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

# A request, a prompt and the number of an adapter, is answered piece by piece: how many tokens each holds, where the
# server says so; else the last says it for all.
Send = Callable[[str, int], AsyncIterator[int]]


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


async def drive(streams: int, requests: Sequence[tuple[str, int]], send: Send) -> Seen:
    """Send requests on so many streams, each the next one as soon as its last is answered."""
    seen, left = Seen(), iter(requests)

    async def stream() -> None:
        for prompt, adapter in left:
            sent, first = time.perf_counter(), None
            async for tokens in send(prompt, adapter):
                first = first or time.perf_counter() - sent
                seen.tokens += tokens
            assert first is not None, "an answer without a piece"
            seen.first.append(first)

    started = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    seen.seconds = time.perf_counter() - started
    return seen
