"""Work in threads that is never left half done: a caller who goes away waits until the thread is through."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
# An item that takes no longer is made on the event loop.
_QUICK_S = 0.002


async def whole(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; returns, or is cancelled, only once it has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    finally:
        await _end(running)


async def ahead(items: Generator[T], most: int = 4) -> AsyncIterator[T]:
    """Yield what a generator makes, ahead of what is taken where that takes long, and close it at the end.

    What takes long is made in a thread, while what was made before is sent. Where items turn out to be quick, going to
    a thread and back for each takes longer than making it: the next one is made on the event loop, for as long as they
    stay quick. A disk that is slow for once holds up other calls for one item. The first is always made in a thread: it
    opens things.

    Args:
        items: what is made.
        most: how many slow ones are made at once; twice as many are held.
    """
    step = _in_thread(items, 1)
    try:
        made, quick = await asyncio.shield(step)
        while made:
            if not quick:
                step = _in_thread(items, most)
            for item in made:
                yield item
            made, quick = _some(items, 1) if quick else await asyncio.shield(step)
    finally:
        await _end(step)
        items.close()


def _in_thread(items: Generator[T], most: int) -> asyncio.Future[tuple[list[T], bool]]:
    return asyncio.ensure_future(asyncio.to_thread(_some, items, most))


def _some(items: Generator[T], most: int) -> tuple[list[T], bool]:
    """Make some items; returns them, and whether they were made quickly."""
    start = time.perf_counter()
    made = list(itertools.islice(items, most))
    return made, time.perf_counter() - start < _QUICK_S * most


async def _end(running: asyncio.Future[Any]) -> None:
    await asyncio.wait({running})
    # Looked at, or asyncio would log what nobody waits for any more, and an error may quote a row.
    if not running.cancelled():
        running.exception()
