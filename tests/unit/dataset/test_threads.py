"""Work in threads: where items are made, and that nothing is left half done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import aclosing
from typing import Any

import pytest

from services.dataset import threads
from services.dataset.threads import ahead

SLOW_S = 0.03


class Items:
    """Makes numbers, some of them slowly; knows in which thread each was made."""

    def __init__(self, count: int, slow: range = range(0), fails_at: int | None = None) -> None:
        self.made_in: list[int] = []
        self.closed = False
        self._count, self._slow, self._fails_at = count, slow, fails_at

    def make(self) -> Generator[int]:
        try:
            for number in range(self._count):
                self.made_in.append(threading.get_ident())
                if number in self._slow:
                    time.sleep(SLOW_S)
                if number == self._fails_at:
                    raise ValueError(number)
                yield number
        finally:
            self.closed = True


async def test_quick_items_are_made_here_and_the_first_is_not() -> None:
    items = Items(50)
    assert [item async for item in ahead(items.make())] == list(range(50))
    assert items.closed
    here = threading.get_ident()
    assert items.made_in[0] != here
    assert items.made_in.count(here) > 40


async def test_slow_items_hold_nobody_up() -> None:
    items = Items(24, slow=range(24))
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0)
            gaps.append(time.perf_counter() - start)

    beating = asyncio.create_task(beat())
    assert [item async for item in ahead(items.make())] == list(range(24))
    beating.cancel()
    assert threading.get_ident() not in items.made_in
    assert sum(gap > SLOW_S for gap in gaps) <= 2


async def test_items_that_become_slow_move_to_a_thread_and_back() -> None:
    items = Items(40, slow=range(10, 20))
    assert [item async for item in ahead(items.make())] == list(range(40))
    here = threading.get_ident()
    # One of them shows that they have become slow.
    assert sum(thread == here for thread in items.made_in[10:20]) <= 1
    assert here in items.made_in[25:]


@pytest.mark.parametrize("slow", [range(0), range(40)])
async def test_an_error_comes_after_what_was_made_before_it(slow: range) -> None:
    items, seen = Items(40, slow, fails_at=9), []
    with pytest.raises(ValueError, match="9"):
        async for item in ahead(items.make(), most=1):
            seen.append(item)
    assert seen == list(range(9))
    assert items.closed


@pytest.mark.parametrize("slow", [range(0), range(1000)])
async def test_whoever_leaves_waits_until_nothing_runs(slow: range) -> None:
    items = Items(1000, slow)
    async with aclosing(ahead(items.make())) as made:
        async for item in made:
            if item == 5:
                break
    assert items.closed
    done = len(items.made_in)
    await asyncio.sleep(3 * SLOW_S)
    assert len(items.made_in) == done < 20


async def test_a_caller_who_is_cancelled_waits_too() -> None:
    items = Items(1000, range(1000))

    async def read() -> None:
        async for _ in ahead(items.make()):
            pass

    reading = asyncio.create_task(read())
    while not items.made_in:
        await asyncio.sleep(0.001)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert items.closed


async def test_work_is_never_cut_in_half() -> None:
    done: list[Any] = []

    def work() -> None:
        time.sleep(SLOW_S)
        done.append(1)

    running = asyncio.create_task(threads.whole(work))
    await asyncio.sleep(SLOW_S / 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert done == [1]
