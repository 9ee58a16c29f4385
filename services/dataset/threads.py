"""Work in threads that is never left half done: a caller who goes away waits until the thread is through."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; returns, or is cancelled, only once it has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    finally:
        await _end(running)


async def ahead(items: Generator[T], most: int = 4) -> AsyncIterator[T]:
    """Yield what a generator makes in a thread, some items ahead of what is taken; closes it at the end.

    Args:
        items: what is made.
        most: how many are made at once; twice as many are held. Going to a thread and back for each would cost more
            than making it.
    """
    step = asyncio.ensure_future(asyncio.to_thread(_some, items, most))
    try:
        while made := await asyncio.shield(step):
            step = asyncio.ensure_future(asyncio.to_thread(_some, items, most))
            for item in made:
                yield item
    finally:
        await _end(step)
        items.close()


def _some(items: Generator[T], most: int) -> list[T]:
    return list(itertools.islice(items, most))


async def _end(running: asyncio.Future[Any]) -> None:
    await asyncio.wait({running})
    # Looked at, or asyncio would log what nobody waits for any more, and an error may quote a row.
    if not running.cancelled():
        running.exception()
