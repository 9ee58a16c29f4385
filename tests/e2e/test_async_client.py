"""The client for asyncio tells the story too: plan, fit, watch, sample, stream, budget; and its refusals are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from murmura import AsyncClient, Client
from murmura.api.inference.v1 import inference_pb2
from murmura.api.trainer.v1 import trainer_pb2
from murmura.errors import BudgetExhausted, NotFound
from murmura.local.layout import Layout
from murmura.sampler import Served

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


async def test_the_story_on_asyncio(murmura_up: Callable[[str], Layout], tmp_path: Path) -> None:
    layout = murmura_up("tiny")
    source = tmp_path / "notes.jsonl"
    rows = [{"patient": f"p{number // 2}", "context": f"note {number} of a patient"} for number in range(40)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Client(profile=layout.profile, role="steward").register(
        "notes", source, privacy_unit="patient", epsilon=10.0, delta=1e-3
    )
    blocking = Client(profile=layout.profile)
    assert blocking.base_models() == ["tiny"]
    async with AsyncClient(profile=layout.profile) as client:
        assert [found.name for found in await client.datasets()] == ["datasets/notes"]
        wish: dict[str, Any] = {"text_field": "context", "batch_size": 4, "lora_rank": 2, "max_length": 48}
        spec = client.spec("tiny", "notes", 8.0, epochs=2.0, **wish)
        assert (await client.plan(spec)).affordable
        job = await client.fit(spec)
        states = [changed.state async for changed in client.watch(job.name)]
        assert states[-1] == trainer_pb2.JOB_STATE_SUCCEEDED and len(states) > 1
        done = await client.wait(job.name)
        assert (await client.fit(spec)).name == done.name
        await client.load(done.adapter)
        texts = await client.sample(done.adapter, ["a", "b", "c"], max_new_tokens=6, seed=3)
        pieces = [piece async for piece in client.stream(done.adapter, "a", max_new_tokens=6, seed=3)]
        assert len(texts) == 3 and texts[0] == "".join(pieces)
        budget = await client.budget("notes")
        assert 0 < budget.left_epsilon < 10
        with pytest.raises(BudgetExhausted, match="nothing was spent"):
            await client.fit(client.spec("tiny", "notes", 9.5, epochs=2.0, **wish))
        with pytest.raises(NotFound):
            await client.dataset("nothing")
        assert (await client.budget("notes")).message == budget.message

    # What one client made, the other has.
    assert [found.name for found in blocking.adapters()] == [done.adapter]
    model = Served(done.adapter, blocking)
    answer = model.complete("a", max_tokens=6, seed=3)
    assert answer.text == texts[0] and answer.statement.epsilon == done.plan.statement.epsilon
    assert model.count_tokens("abc") >= 3
    blocking.unload(done.adapter)
    assert blocking.adapter(done.adapter).state != inference_pb2.ADAPTER_STATE_READY
