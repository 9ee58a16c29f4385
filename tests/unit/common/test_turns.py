"""Turns: nobody fills an engine alone, nobody waits for ever, and what goes away leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from services.common.turns import TenantFull, TurnLimits, Turns


class Requests:
    """Requests that hold their turns until a test ends them."""

    def __init__(self, **limits: int) -> None:
        self.limits = TurnLimits(**limits)
        self.turns = Turns(self.limits)
        self.running: list[str] = []
        self.most = Counter[str]()
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, adapter: int | None = None) -> None:
        """A request `<tenant><number>` comes."""

        async def run() -> None:
            async with self.turns.turn(name[0], adapter):
                self.running.append(name)
                try:
                    await self._ends[name].wait()
                finally:
                    self.running.remove(name)

        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(run())
        await _settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await _settle()

    async def go_away(self, name: str) -> None:
        self._tasks[name].cancel()
        await _settle()

    def problem(self, name: str) -> BaseException | None:
        return self._tasks[name].exception() if self._tasks[name].done() else None


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_flood_leaves_room_for_others() -> None:
    all_of = Requests(running=4, tenant_running=3)
    for number in range(9):
        await all_of.come(f"a{number}")
    assert all_of.running == ["a0", "a1", "a2"]
    await all_of.come("b0")
    assert "b0" in all_of.running, "at once"


async def test_whoever_has_fewest_is_next_and_a_tenants_own_keep_their_order() -> None:
    all_of = Requests(running=4, tenant_running=4)
    for name in ("a0", "a1", "a2", "b0", "a3", "a4", "b1", "c0"):
        await all_of.come(name)
    assert all_of.running == ["a0", "a1", "a2", "b0"]
    for ended, expected in (("a0", "c0"), ("a1", "a3"), ("b0", "b1"), ("c0", "a4")):
        await all_of.end(ended)
        assert all_of.running[-1] == expected


async def test_too_many_waiting_are_refused_at_once_and_only_their_tenants() -> None:
    all_of = Requests(running=2, tenant_running=1, tenant_waiting=2)
    for number in range(4):
        await all_of.come(f"a{number}")
    assert isinstance(all_of.problem("a3"), TenantFull)
    assert all_of.problem("a2") is None
    await all_of.come("b0")
    assert all_of.running == ["a0", "b0"]
    await all_of.end("a0")
    await all_of.come("a4")
    assert all_of.problem("a4") is None


async def test_no_waiting_at_all_can_be_allowed() -> None:
    all_of = Requests(running=2, tenant_running=2, tenant_waiting=0)
    for number in range(3):
        await all_of.come(f"a{number}")
    assert all_of.running == ["a0", "a1"]
    assert isinstance(all_of.problem("a2"), TenantFull)


async def test_an_adapter_without_a_slot_gets_one_although_the_others_never_cease() -> None:
    all_of = Requests(running=8, tenant_running=8, adapters=2)
    for number in range(6):
        await all_of.come(f"a{number}", adapter=number % 2)
    await all_of.come("b0", adapter=7)
    await all_of.come("c0")
    assert "b0" not in all_of.running
    assert "c0" in all_of.running, "a base model takes no slot"
    for number in range(6):
        # As one is done the next one comes.
        await all_of.end(f"a{number}")
        await all_of.come(f"a{number + 10}", adapter=number % 2)
    assert "b0" in all_of.running


async def test_whoever_waited_for_a_slot_and_went_away_holds_nobody_back() -> None:
    all_of = Requests(running=4, tenant_running=4, adapters=1)
    await all_of.come("a0", adapter=1)
    await all_of.come("b0", adapter=2)
    await all_of.come("a1", adapter=1)
    assert all_of.running == ["a0"]
    await all_of.go_away("b0")
    assert all_of.running == ["a0", "a1"]


async def test_what_goes_away_leaves_nothing_behind() -> None:
    all_of = Requests(running=1, tenant_running=1, adapters=1)
    await all_of.come("a0", adapter=1)
    for name in ("b0", "b1", "c0"):
        await all_of.come(name, adapter=2)
    await all_of.go_away("b0")
    await all_of.go_away("a0")
    assert all_of.running == ["b1"]
    # Its turn comes in the moment in which it goes away.
    all_of._ends["b1"].set()
    await asyncio.sleep(0)
    all_of._tasks["c0"].cancel()
    await _settle()
    assert all_of.running == []
    await all_of.come("d0", adapter=3)
    assert all_of.running == ["d0"]
    await all_of.end("d0")
    turns = all_of.turns
    assert (turns._queues, turns._tenants, turns._adapters) == ({}, Counter(), Counter())


@pytest.mark.parametrize("seed", range(20))
async def test_limits_hold_and_everyone_is_served(seed: int) -> None:
    generator = random.Random(seed)
    limits = TurnLimits(running=5, tenant_running=3, tenant_waiting=1000, adapters=2)
    turns, running, served = Turns(limits), list[tuple[str, int | None]](), 0

    async def request(tenant: str, adapter: int | None) -> None:
        nonlocal served
        async with turns.turn(tenant, adapter):
            running.append((tenant, adapter))
            assert len(running) <= limits.running
            assert Counter(who for who, _ in running)[tenant] <= limits.tenant_running
            assert len({one for _, one in running if one is not None}) <= limits.adapters
            try:
                for _ in range(generator.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                running.remove((tenant, adapter))
            served += 1

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(request(generator.choice("aaaabc"), generator.choice([None, 1, 2, 3, 4]))))
        if generator.random() < 0.2:
            await asyncio.sleep(0)
        if generator.random() < 0.1:
            generator.choice(tasks).cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert served == sum(result is None for result in results)
    assert (turns._queues, turns._tenants, turns._adapters) == ({}, Counter(), Counter())
