"""The thread that owns the model lives on, however long a piece of work takes and whoever stops waiting for it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from services.inference.transformers_engine import TransformersEngine


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    """An engine without a model: its thread and inbox alone."""
    made = TransformersEngine.__new__(TransformersEngine)
    made._inbox, made._active, made._stopping = queue.Queue(), [], False
    made._thread = threading.Thread(target=made._run, daemon=True)
    made._thread.start()
    yield made
    made._stopping = True
    made._inbox.put(lambda: None)
    made._thread.join(5)


def slowly() -> str:
    time.sleep(1.4)
    return "done"


async def test_work_may_take_longer_than_a_look_at_the_thread(engine: TransformersEngine) -> None:
    assert await engine._do(slowly) == "done"
    assert await engine._do(lambda: "next") == "next"


async def test_a_caller_who_leaves_ends_nothing(engine: TransformersEngine) -> None:
    leaving = asyncio.create_task(engine._do(slowly))
    await asyncio.sleep(0.1)
    leaving.cancel()
    assert await engine._do(lambda: "next") == "next"
