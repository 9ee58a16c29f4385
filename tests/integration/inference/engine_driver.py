"""Drives one engine through the contract that both must keep, and prints what it saw as JSON.

A process of its own: vLLM is forked from a process without threads, as in the service, and it sets
environment variables that no other test should see.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.inference.engine import (
    LEAST_TEMPERATURE,
    LEAST_TOP_P,
    Engine,
    EngineRefused,
    EngineSettings,
    Sampling,
    make,
)

SLOTS = 8
GREEDY = Sampling(max_tokens=24, temperature=0)


async def text(engine: Engine, prompt: str, how: Sampling, adapter: int | None = None) -> Any:
    """Return text, number of pieces, tokens and reason of one completion."""
    tokens = await engine.tokenize(prompt)
    pieces = [piece async for piece in engine.generate(tokens, how, adapter, "salt")]
    assert all(piece.finish is None for piece in pieces[:-1])
    return [
        "".join(piece.text for piece in pieces),
        len(pieces),
        sum(piece.tokens for piece in pieces),
        pieces[-1].finish.value,  # type: ignore[union-attr]
    ]


async def leave(engine: Engine, prompt: str) -> list[Any]:
    """Close one request early and cancel another; return how many ran before and after, and seconds to abort."""
    long = Sampling(max_tokens=120, temperature=0)
    early = engine.generate(await engine.tokenize(prompt), long, None, "salt")
    await anext(early)
    begun = asyncio.Event()

    async def wait() -> None:
        async with aclosing(engine.generate(await engine.tokenize(prompt), long, None, "salt")) as pieces:
            async for _ in pieces:
                begun.set()

    task = asyncio.create_task(wait())
    await begun.wait()
    before, started = engine.running(), time.monotonic()
    await early.aclose()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    while engine.running() and time.monotonic() < started + 5:
        await asyncio.sleep(0.001)
    return [before, engine.running(), time.monotonic() - started]


async def drive(engine: Engine, prompts: list[str], adapters: list[Path]) -> dict[str, Any]:
    """Run the scenarios."""
    seen: dict[str, Any] = {"context_length": engine.context_length}
    seen["base"] = [await text(engine, prompt, GREEDY) for prompt in prompts]

    # While one request streams, an adapter arrives and is used.
    await engine.add_adapter(1, "one", adapters[0])
    long = engine.generate(await engine.tokenize(prompts[0]), Sampling(max_tokens=120, temperature=0), 1, "salt")
    streamed = [await anext(long)]
    await engine.add_adapter(2, "two", adapters[1])
    seen["second"] = [await text(engine, prompt, GREEDY, 2) for prompt in prompts]
    seen["still_running"] = engine.running()
    streamed += [piece async for piece in long]
    seen["streamed"] = "".join(piece.text for piece in streamed)

    # Base and both adapters in one batch.
    mixed = await asyncio.gather(
        *(text(engine, prompt, GREEDY, adapter) for adapter in (None, 1, 2) for prompt in prompts)
    )
    seen["mixed"] = [outcome[0] for outcome in mixed]

    # A request that is closed early, and one whose task is cancelled, leave the engine.
    seen["leaving"] = [await leave(engine, prompts[0]) for _ in range(5)]

    stop = seen["base"][0][0][5:8]
    seen["stop"] = [stop, *await text(engine, prompts[0], Sampling(24, 0, stop=(stop,)))]
    seen["whole"] = [await text(engine, prompt, replace(GREEDY, whole=True)) for prompt in prompts]
    seen["whole_stop"] = await text(engine, prompts[0], Sampling(24, 0, stop=(stop,), whole=True))
    seeded = [Sampling(24, 1.0, 0.9, 20, seed=seed) for seed in (5, 5, 6)]
    seen["sharp"] = [
        (await text(engine, prompts[0], how))[0] for how in (Sampling(24, 2, LEAST_TOP_P), Sampling(24, 2, 1, 1))
    ]
    far = [
        Sampling(24, LEAST_TEMPERATURE),
        Sampling(24, 2, 1, 100_000),
        Sampling(24, seed=2**63 - 1),
        Sampling(24, seed=0),
    ]
    seen["far"] = [(await text(engine, prompts[0], how))[2] for how in far]
    seen["too_hot"] = ""
    try:
        await text(engine, prompts[0], Sampling(24, 1e9))
    except EngineRefused as refusal:
        seen["too_hot"] = refusal.field
    seen["seeded"] = [(await text(engine, prompts[0], how))[0] for how in seeded]

    refused = []
    for bad in (99, 1):
        if bad == 1:
            await engine.remove_adapter(1)
        try:
            await text(engine, prompts[0], GREEDY, bad)
        except KeyError:
            refused.append(bad)
    seen["refused"] = refused
    await engine.remove_adapter(2)
    await engine.remove_adapter(2)
    await engine.add_adapter(3, "three", adapters[2])
    seen["third"] = [await text(engine, prompt, GREEDY, 3) for prompt in prompts]
    seen["base_again"] = [await text(engine, prompt, GREEDY) for prompt in prompts]

    # All slots taken at once; then more adapters than memory keeps, each of them used again.
    await engine.remove_adapter(3)
    for n, adapter in enumerate(adapters):
        await engine.add_adapter(10 + n, f"many{n}", adapter)
    first = [None, *range(10, 10 + SLOTS)]
    seen["full"] = [
        said[0] for said in await asyncio.gather(*(text(engine, prompts[0], GREEDY, adapter) for adapter in first))
    ]
    seen["evicted"] = [
        (await text(engine, prompts[1], GREEDY, 10 + n))[0] for _ in range(2) for n in range(len(adapters))
    ]

    how = Sampling(max_tokens=5, temperature=0, logprobs=3)
    tokens = await engine.tokenize(prompts[0])
    for name, asked in (("logprobs", how), ("whole_logprobs", replace(how, whole=True))):
        pieces = [piece async for piece in engine.generate(tokens, asked, 10, "salt")]
        seen[name] = [
            [one.text, one.logprob, [(other.text, other.logprob) for other in one.likeliest]]
            for piece in pieces
            for one in piece.logprobs
        ]

    constrained = Sampling(24, 1.0, seed=1, regex="(yes|no), [0-9]{3}")
    seen["structured"] = engine.structured
    try:
        seen["regex"] = (await text(engine, prompts[0], constrained))[0]
    except EngineRefused as refusal:
        seen["regex"] = [refusal.field]
    try:
        await text(engine, prompts[0], Sampling(24, regex="((("))
    except EngineRefused as refusal:
        seen["bad_regex"] = [refusal.field]
    await engine.check_health()
    return seen


async def main() -> None:
    """Start the engine that the arguments name, drive it, print."""
    job = json.loads(sys.stdin.read())
    started = time.monotonic()
    engine = make(
        job["engine"],
        job["base"],
        EngineSettings("float32", max_adapters=SLOTS, max_resident_adapters=SLOTS, max_logprobs=3),
    )
    await engine.start()
    seconds = time.monotonic() - started
    seen = await drive(engine, job["prompts"], [Path(path) for path in job["adapters"]])
    print(json.dumps(seen | {"start_seconds": seconds}), flush=True)
    await asyncio.sleep(60)  # the test ends this process, to see that the engine ends with it


asyncio.run(main())
