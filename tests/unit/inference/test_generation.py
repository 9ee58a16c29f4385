"""What every request passes: the tenant's salt, the limits of this release, the context."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from prometheus_client import REGISTRY, generate_latest

from murmura.api.common.v1 import privacy_pb2
from murmura.api.inference.v1 import inference_pb2
from services.common.errors import MurmuraError, invalid
from services.common.tokens import Principal
from services.common.turns import TurnLimits, Turns
from services.inference.adapters import Adapters
from services.inference.bases import Base
from services.inference.catalogue import Record
from services.inference.engine import (
    Delta,
    EngineDead,
    EngineFull,
    EngineRefused,
    Finish,
    Sampling,
    encode,
)
from services.inference.generation import Generation, Salts
from services.inference.rights import Rules

ANA = Principal("ana@local", frozenset({"analyst"}))
NO_LIMITS = Rules()
BOB = Principal("bob@local", frozenset({"analyst"}))


class SaltEngine:
    """Remembers the salts; a text has as many tokens as characters."""

    name = "salt"
    context_length = 10
    structured = False

    def __init__(self) -> None:
        self.salts: list[str] = []
        self.closed = 0
        self.error: Exception | None = None

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter_id: int | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        self.salts.append(cache_salt)
        try:
            if self.error:
                raise self.error
            yield Delta("x", 1)
            yield Delta("y", 1, Finish.STOP)
        finally:
            self.closed += 1

    async def tokenize(self, text: str) -> list[int]:
        return list(range(len(text)))


def site(tmp_path: Path, adapters: Any = None, rules: Rules = NO_LIMITS) -> tuple[Generation, SaltEngine]:
    engine = SaltEngine()
    bases = {"baseModels/tiny": Base(cast(Any, engine), {})}
    return Generation(bases, cast(Adapters, adapters), Salts(tmp_path / "salt"), rules), engine


async def run(generation: Generation, who: Principal) -> str:
    async with generation.served("baseModels/tiny", who) as served:
        tokens, sampling = await generation.prompt(served, "abc", Sampling())
        return "".join([d.text async for d in generation.stream(served, tokens, sampling)])


async def test_each_tenant_has_its_own_lasting_salt(tmp_path: Path) -> None:
    generation, engine = site(tmp_path)
    for who in (ANA, BOB, ANA):
        assert await run(generation, who) == "xy"
    ana, bob, again = engine.salts
    assert ana == again != bob
    assert len(ana) == 64
    generation, engine = site(tmp_path)
    await run(generation, ANA)
    assert engine.salts == [ana]
    generation, engine = site_at(tmp_path / "other")
    await run(generation, ANA)
    assert engine.salts != [ana]


def site_at(path: Path) -> tuple[Generation, SaltEngine]:
    path.mkdir()
    return site(path)


def test_the_secret_is_its_owners_alone(tmp_path: Path) -> None:
    Salts(tmp_path / "salt")
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0


async def test_a_prompt_leaves_room_or_is_refused(tmp_path: Path) -> None:
    generation, _ = site(tmp_path)
    async with generation.served("baseModels/tiny", ANA) as served:
        tokens, sampling = await generation.prompt(served, "a" * 9, Sampling(max_tokens=64))
        assert (len(tokens), sampling.max_tokens) == (9, 1)
        for text, reason in (("a" * 10, "PROMPT_TOO_LONG"), ("", "FIELD_RULES")):
            with pytest.raises(MurmuraError) as error:
                await generation.prompt(served, text, Sampling())
            assert error.value.reason == reason


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (EngineDead(), grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD"),
        (EngineFull(), grpc.StatusCode.UNAVAILABLE, "OVERLOADED"),
        (EngineRefused("regex", "no"), grpc.StatusCode.INVALID_ARGUMENT, "FIELD_RULES"),
    ],
)
async def test_troubles_of_the_engine_are_told(
    tmp_path: Path, error: Exception, code: grpc.StatusCode, reason: str
) -> None:
    generation, engine = site(tmp_path)
    engine.error = error
    with pytest.raises(MurmuraError) as refusal:
        await run(generation, ANA)
    assert (refusal.value.code, refusal.value.reason) == (code, reason)


async def test_closing_a_stream_closes_the_engines(tmp_path: Path) -> None:
    generation, engine = site(tmp_path)
    async with generation.served("baseModels/tiny", ANA) as served:
        stream = generation.stream(served, [1], Sampling())
        await anext(stream)
        await stream.aclose()
    assert engine.closed == 1


async def test_options_that_are_not_granted_or_not_here_are_refused(tmp_path: Path) -> None:
    generation, _ = site(tmp_path)
    async with generation.served("baseModels/tiny", ANA) as served:
        for options, reason in (
            ({"logprobs": 1}, "LOGPROBS_NOT_GRANTED"),
            ({"json_schema": "{}"}, "NOT_IN_THIS_RELEASE"),
            ({"regex": "a"}, "NOT_IN_THIS_RELEASE"),
        ):
            with pytest.raises(MurmuraError) as error:
                await generation.sampling(inference_pb2.SamplingOptions(**cast(Any, options)), served)
            assert error.value.reason == reason
        default = await generation.sampling(inference_pb2.SamplingOptions(), served)
        assert default == Sampling(max_tokens=64, temperature=1.0)
        assert await generation.sampling(inference_pb2.SamplingOptions(temperature=0, seed=0), served) == Sampling(
            temperature=0, seed=0
        )
        # Single precision, in which an engine computes, takes both for nothing at all.
        for asked, meant in (
            ({"temperature": 5e-324}, Sampling(temperature=0)),
            ({"temperature": 0.0099}, Sampling(temperature=0)),
            ({"temperature": 0.01}, Sampling(temperature=0.01)),
            ({"top_p": 5e-324}, Sampling(top_p=1e-6)),
            ({"top_p": 0.5}, Sampling(top_p=0.5)),
        ):
            assert await generation.sampling(inference_pb2.SamplingOptions(**cast(Any, asked)), served) == meant


async def test_a_base_model_is_for_roles_that_the_operator_names(tmp_path: Path) -> None:
    generation, _ = site(tmp_path, rules=Rules(base_roles=frozenset({"steward"})))
    with pytest.raises(MurmuraError) as error:
        async with generation.served("baseModels/tiny", ANA):
            raise AssertionError
    assert (error.value.reason, error.value.metadata["allowed_roles"]) == ("ROLE_DENIED", "steward")
    async with generation.served("baseModels/tiny", replace(ANA, roles=frozenset({"steward"}))) as served:
        assert served.digest == ""


class OneAdapter:
    """Leases one adapter, trained without privacy, whose policy grants five log-probabilities."""

    @asynccontextmanager
    async def lease(self, name: str, principal: Principal) -> AsyncGenerator[Record, None]:
        statement = privacy_pb2.PrivacyStatement(unlimited=True).SerializeToString()
        policy = inference_pb2.AdapterPolicy(logprobs=5).SerializeToString()
        yield Record(name, "READY", 1, "digest", "baseModels/tiny", "ana@local", "job", "", statement, policy=policy)


async def test_adapters_without_privacy_are_for_roles_that_the_operator_names(tmp_path: Path) -> None:
    rules = Rules(unlimited_roles=frozenset({"steward"}), max_logprobs=3)
    generation, _ = site(tmp_path, OneAdapter(), rules=rules)
    with pytest.raises(MurmuraError) as error:
        async with generation.served("adapters/one", ANA):
            raise AssertionError
    assert (error.value.reason, error.value.metadata["allowed_roles"]) == ("ROLE_DENIED", "steward")
    async with generation.served("adapters/one", replace(ANA, roles=frozenset({"steward"}))) as served:
        assert served.statement is not None and served.statement.unlimited
        assert served.logprobs == 3, "the operator's limit binds the steward's grant"


async def test_tokens_are_counted_by_digest_and_by_nothing_that_names_anybody(tmp_path: Path) -> None:
    generation, _ = site(tmp_path, OneAdapter())

    def counted(kind: str) -> float:
        return REGISTRY.get_sample_value("murmura_inference_tokens_total", {"sha256": "digest", "kind": kind}) or 0

    before = counted("prompt"), counted("completion")
    async with generation.served("adapters/one", ANA) as served:
        async for _ in generation.stream(served, [1, 2, 3], Sampling()):
            pass
    assert (counted("prompt") - before[0], counted("completion") - before[1]) == (3, 2)
    exposed = generate_latest().decode()
    assert not any(name in exposed for name in ("ana@local", "adapters/one"))


async def test_as_many_log_probabilities_as_are_granted(tmp_path: Path) -> None:
    generation, _ = site(tmp_path)
    async with generation.served("baseModels/tiny", ANA) as served:
        granted = replace(served, logprobs=3)
        sampling = await generation.sampling(inference_pb2.SamplingOptions(logprobs=3), granted)
        assert sampling.logprobs == 3
        with pytest.raises(MurmuraError) as error:
            await generation.sampling(inference_pb2.SamplingOptions(logprobs=4), granted)
        assert error.value.reason == "LOGPROBS_NOT_GRANTED"


async def test_an_unknown_base_model_names_those_there_are(tmp_path: Path) -> None:
    generation, _ = site(tmp_path)
    with pytest.raises(MurmuraError) as error:
        async with generation.served("baseModels/other", ANA):
            raise AssertionError
    assert error.value.reason == "BASE_MODEL_UNKNOWN"
    assert error.value.metadata["base_models"] == "baseModels/tiny"


async def test_one_tenants_flood_is_refused_with_a_time_to_come_back_and_another_is_served(tmp_path: Path) -> None:
    generation, engine = site(tmp_path)
    base = Base(cast(Any, engine), {}, Turns(TurnLimits(running=2, tenant_running=1, tenant_waiting=0)))
    generation = Generation({"baseModels/tiny": base}, cast(Adapters, None), Salts(tmp_path / "salt"), Rules())
    async with (
        generation.served("baseModels/tiny", ANA) as served,
        aclosing(generation.stream(served, [1], Sampling())) as pieces,
    ):
        await anext(pieces)
        with pytest.raises(MurmuraError) as caught:
            await run(generation, ANA)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_LIMIT")
        assert caught.value.retry_after_s
        assert await run(generation, BOB) == "xy"
    assert await run(generation, ANA) == "xy"


class Tokenizer:
    """One token a letter; no token starts a text, as in GPT-2."""

    bos_token_id: int | None = None
    eos_token_id: int | None = 9

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


async def test_an_empty_prompt_is_what_every_text_begins_with() -> None:
    tokenizer = Tokenizer()
    assert await encode(tokenizer, "a") == [97]
    assert await encode(tokenizer, "") == [9]
    tokenizer.bos_token_id = 0
    assert await encode(tokenizer, "") == [0]
    tokenizer.bos_token_id = tokenizer.eos_token_id = None
    assert await encode(tokenizer, "") == []


def test_an_item_says_which_rule_it_breaks() -> None:
    """It has no place for details of its own."""
    assert invalid("prompt", "must not be empty").item().message == (
        "The request breaks its rules. prompt must not be empty."
    )
