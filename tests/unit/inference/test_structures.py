"""Structures are tried out in a real process, with the real compiler."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.inference.engine import EngineRefused, Sampling
from services.inference.structures import Structures
from tests.support.random_models import make_base

pytestmark = [
    pytest.mark.skipif(
        not importlib.util.find_spec("xgrammar"), reason="xgrammar comes with vLLM, which is not installed here"
    ),
    pytest.mark.asyncio(loop_scope="module"),
]
CATASTROPHE = Sampling(regex="(.?){30000}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("wide"), words=32_000)  # work grows with the vocabulary


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def structures(base: Path) -> AsyncIterator[Structures]:
    made = Structures(base)
    yield made
    await made.close()


async def refused(structures: Structures, sampling: Sampling, tenant: str = "ana") -> str:
    with pytest.raises(EngineRefused) as error:
        await structures.check(sampling, tenant)
    return error.value.field


async def test_what_can_be_kept_passes_and_what_cannot_is_refused_by_name(structures: Structures) -> None:
    schema = {"type": "object", "properties": {"drug": {"type": "string"}}, "required": ["drug"]}
    await structures.check(Sampling(), "ana")
    await structures.check(Sampling(regex="(yes|no), [0-9]{3}"), "ana")
    await structures.check(Sampling(json_schema=json.dumps(schema)), "ana")
    assert await refused(structures, Sampling(regex="(((")) == "regex"
    assert await refused(structures, Sampling(json_schema="{")) == "json_schema"


@pytest.mark.parametrize(
    "bad",
    [
        CATASTROPHE,
        Sampling(regex="(.*.*)*" * 250),
        Sampling(json_schema=json.dumps({"anyOf": [{"type": "string", "pattern": ".{0,900}" * 20}] * 80})),
    ],
    ids=["repeats", "stars", "patterns"],
)
async def test_too_much_work_is_refused_in_time_and_the_next_is_tried(structures: Structures, bad: Sampling) -> None:
    await structures.check(Sampling(regex="a"), "ana")
    child = structures._child
    started = time.monotonic()
    await refused(structures, bad)
    assert time.monotonic() - started < 5
    await structures.check(Sampling(regex="b"), "ana")
    assert structures._child is child, "else whoever comes next would wait for its imports"
    started = time.monotonic()
    await refused(structures, bad)
    assert time.monotonic() - started < 0.1, "what was refused once is known"


async def test_nobody_learns_by_the_clock_what_another_asked_for(
    structures: Structures, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    real = structures._try

    async def spy(field: str, text: str) -> bool:
        tried.append(text)
        return await real(field, text)

    monkeypatch.setattr(structures, "_try", spy)
    for tenant in ("ana", "ana", "bob", "bob"):
        await structures.check(Sampling(regex="Dupont|Durand"), tenant)
    assert len(tried) == 2


async def test_too_much_memory_is_refused(base: Path) -> None:
    structures = Structures(base, seconds=60, memory_mib=64)
    try:
        await structures.check(Sampling(regex="b"), "ana")
        many = [{"type": "string", "enum": [f"{10_000 * n + m:090}" for m in range(100)]} for n in range(90)]
        started = time.monotonic()
        assert await refused(structures, Sampling(json_schema=json.dumps({"anyOf": many}))) == "json_schema"
        assert time.monotonic() - started < 5, "with room enough it would pass after three times as long"
    finally:
        await structures.close()


async def test_whoever_leaves_gives_nobody_the_wrong_answer(structures: Structures) -> None:
    await structures.check(Sampling(regex="a"), "ana")
    leaving = asyncio.create_task(structures.check(CATASTROPHE, "ana"))
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await structures.check(Sampling(regex="b"), "bob")
    await refused(structures, Sampling(regex="((("), "bob")


async def test_a_tenant_waits_for_one_of_anothers_at_most(structures: Structures) -> None:
    await structures.check(Sampling(regex="a"), "ana")  # it has started
    done: list[str] = []

    async def check(name: str, sampling: Sampling, tenant: str) -> None:
        await asyncio.gather(structures.check(sampling, tenant), return_exceptions=True)
        done.append(name)

    flood = [check(f"ana {n}", Sampling(regex=f"(.?){{{31000 + n}}}"), "ana") for n in range(3)]
    await asyncio.gather(*flood, check("bob", Sampling(regex="bob"), "bob"))
    assert done.index("bob") == 1
