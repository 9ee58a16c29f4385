"""Locks by name."""

from __future__ import annotations

import asyncio
import gc

from services.common.locks import Locks


async def test_one_at_a_time_of_each_name_in_order_of_arrival() -> None:
    locks, seen = Locks(), []

    async def hold(name: str, number: int) -> None:
        async with locks.of(name):
            seen.append((name, number, "in"))
            await asyncio.sleep(0)
            seen.append((name, number, "out"))

    await asyncio.gather(*(hold(name, number) for number in range(5) for name in ("a", "b")))
    for name in ("a", "b"):
        expected = [(name, number, way) for number in range(5) for way in ("in", "out")]
        assert [entry for entry in seen if entry[0] == name] == expected
    # The other's were in between.
    assert seen[:2] == [("a", 0, "in"), ("b", 0, "in")]


async def test_a_lock_that_nobody_holds_takes_no_memory() -> None:
    locks = Locks()
    for number in range(100):
        async with locks.of(f"request {number}"):
            pass
    gc.collect()
    assert not locks._locks
