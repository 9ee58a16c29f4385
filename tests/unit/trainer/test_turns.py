"""Turns to create jobs, as people share them."""

from __future__ import annotations

import asyncio
import sys

from services.common.turns import TurnLimits, Turns


def turns_of(at_once: int) -> Turns:
    return Turns(TurnLimits(running=at_once, tenant_running=at_once, tenant_waiting=sys.maxsize))


class Work:
    """Holds turns until it is told to go on, and notes who got one."""

    def __init__(self, at_once: int) -> None:
        self.turns = turns_of(at_once)
        self.got: list[str] = []
        self._ends: list[asyncio.Event] = []

    async def hold(self, person: str) -> None:
        async with self.turns.turn(person):
            self.got.append(person)
            self._ends.append(asyncio.Event())
            await self._ends[-1].wait()

    def start(self, *people: str) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.hold(person)) for person in people]

    async def end(self, *numbers: int) -> None:
        """End the turns with these numbers, in the order in which they were given."""
        for number in numbers:
            self._ends[number].set()
        await settled()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_comes_after_many_of_anothers_is_next() -> None:
    work = Work(4)
    running = work.start(*["greedy"] * 50, "other", "third")
    await settled()
    assert work.got == ["greedy"] * 4
    await work.end(0, 1)
    assert work.got[4:] == ["other", "third"]
    await work.end(2, 3)
    assert work.got[6:] == ["greedy"] * 2
    for number in range(4, 52):
        await work.end(number)
    await asyncio.gather(*running)
    assert len(work.got) == 52


async def test_turns_of_those_who_leave_are_anothers() -> None:
    work = Work(1)
    first, leaving, last = work.start("a", "b", "c")
    await settled()
    leaving.cancel()
    await settled()
    await work.end(0)
    assert work.got == ["a", "c"]
    # As its turn comes, it goes.
    (late,) = work.start("d")
    next_one = work.start("e")[0]
    await settled()
    work._ends[1].set()
    last.cancel()
    late.cancel()
    await settled()
    assert work.got[-1] == "e"
    next_one.cancel()
    await asyncio.gather(first, leaving, last, late, next_one, return_exceptions=True)
    assert work.turns._tenants.total() == 0
    assert not work.turns._queues


async def test_who_fails_gives_the_turn_back() -> None:
    turns = turns_of(1)
    for _ in range(3):
        try:
            async with turns.turn("a"):
                raise ValueError
        except ValueError:
            pass
    async with asyncio.timeout(1), turns.turn("b"):
        pass
