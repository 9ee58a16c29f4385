"""The service as a process, on a free port, with adapters that the trainer's code published."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from murmura.api.common.v1 import privacy_pb2
from murmura.api.inference.v1 import inference_pb2
from murmura.api.inference.v1 import inference_service_pb2 as messages
from services.trainer.artifacts import ArtifactStore, Provenance
from tests.support.inference_fixtures import ENGINES
from tests.support.inference_process import Service, deploy, health, start
from tests.support.refusals import error_info, packed_status

GREEDY = inference_pb2.SamplingOptions(temperature=0, max_tokens=12)


@pytest.fixture(scope="module", params=ENGINES)
def service(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    tiny_adapters: list[Path],
    trainer_key: Ed25519PrivateKey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    root = tmp_path_factory.mktemp(request.param)
    store = ArtifactStore(root / "artifacts", trainer_key)
    statement = privacy_pb2.PrivacyStatement(epsilon=4.0, delta=1e-5, account="accounts/x")
    statement.price.units = 123456789
    for index, adapter in enumerate(tiny_adapters[:2]):
        store.publish(
            adapter,
            Provenance(
                f"adapters/a{index}",
                "baseModels/tiny",
                "ana@local",
                "trainingJobs/one",
                "2025-06-01T12:00:00Z",
                statement,
            ),
        )
    few = {"ENGINE_MAX_RUNNING": "6", "TENANT_MAX_RUNNING": "4", "TENANT_MAX_WAITING": "20", "ENGINE_MAX_LOGPROBS": "2"}
    service = deploy(root, request.param, tiny_base, trainer_key, **few)
    yield service
    service.process.kill()
    service.process.wait()


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, bytes]:
    """Return code, reason and the exact bytes of the status."""
    return error.code(), error_info(error)[0], packed_status(error)


def asked(model: str, prompt: str = "The patient", **options: Any) -> messages.GenerateRequest:
    chosen = inference_pb2.SamplingOptions()
    chosen.CopyFrom(GREEDY)
    chosen.MergeFrom(inference_pb2.SamplingOptions(**options))
    return messages.GenerateRequest(model=model, prompt=prompt, options=chosen)


def test_unary_stream_and_batch_say_the_same_and_carry_the_statement(service: Service) -> None:
    stub = service.stub()
    base = stub.Generate(asked("baseModels/tiny"))
    assert base.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert (base.usage.prompt_tokens, base.usage.completion_tokens) == (12, 12)
    assert not base.HasField("statement")
    unary = stub.Generate(asked("adapters/a0"))
    assert unary.text != base.text
    assert unary.statement.epsilon == 4.0
    assert unary.statement.price.units == 123456789
    pieces = list(stub.StreamGenerate(messages.StreamGenerateRequest(request=asked("adapters/a0"))))
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == unary.text
    assert pieces[-1].statement == unary.statement
    assert pieces[-1].usage == unary.usage
    assert not any(piece.HasField("usage") for piece in pieces[:-1])
    prompts = ["The patient", "b" * 5000, "The patient"]
    answers = {
        answer.index: answer
        for answer in stub.BatchGenerate(
            messages.BatchGenerateRequest(model="adapters/a0", prompts=prompts, options=GREEDY)
        )
    }
    assert sorted(answers) == [0, 1, 2]
    assert answers[0].completion == answers[2].completion == unary
    assert answers[1].error.metadata["limit"] == "255"


def test_tokens_are_counted_and_the_context_bounds(service: Service) -> None:
    stub = service.stub()
    count = stub.CountTokens(messages.CountTokensRequest(model="baseModels/tiny", text="abc"))
    assert (count.tokens, count.context_length) == (4, 256)
    full = stub.Generate(asked("baseModels/tiny", "a" * 250, max_tokens=64))
    assert full.usage.completion_tokens <= 256 - 251
    with pytest.raises(grpc.RpcError) as error:
        stub.Generate(asked("baseModels/tiny", "a" * 256))
    assert refusal(error.value)[1] == "PROMPT_TOO_LONG"


def test_foreign_and_unknown_are_the_same_bytes(service: Service, tiny_adapters: Any) -> None:
    stub, name = service.stub("bob@local"), "adapters/a0"
    calls = {
        "Generate": asked(name),
        "CountTokens": messages.CountTokensRequest(model=name),
        "LoadAdapter": messages.LoadAdapterRequest(name=name),
        "GetAdapter": messages.GetAdapterRequest(name=name),
        "UnloadAdapter": messages.UnloadAdapterRequest(name=name),
    }
    service.stub().LoadAdapter(messages.LoadAdapterRequest(name=name))
    unknown = f"adapters/{'z' * (len(name) - len('adapters/'))}"
    for method, request in calls.items():
        with pytest.raises(grpc.RpcError) as foreign:
            getattr(stub, method)(request)
        for field in ("model", "name"):
            if field in request.DESCRIPTOR.fields_by_name:
                setattr(request, field, unknown)
        with pytest.raises(grpc.RpcError) as missing:
            getattr(stub, method)(request)
        seen = refusal(foreign.value)
        assert seen[0] is grpc.StatusCode.NOT_FOUND
        other = refusal(missing.value)[2]
        assert seen[2].replace(name.encode(), unknown.encode()) == other, method
    assert not stub.ListAdapters(messages.ListAdaptersRequest()).adapters
    listed = service.stub("steward@local", "steward").ListAdapters(messages.ListAdaptersRequest())
    assert [adapter.name for adapter in listed.adapters] == [name]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"logprobs": 1}, "LOGPROBS_NOT_GRANTED"), ({"regex": "((("}, None)],
)
def test_what_is_not_granted_is_refused(service: Service, options: dict[str, Any], reason: str | None) -> None:
    with pytest.raises(grpc.RpcError) as error:
        service.stub().Generate(asked("adapters/a0", **options))
    other = "FIELD_RULES" if service.engine == "vllm" else "NOT_IN_THIS_RELEASE"
    seen = status_pb2.Status.FromString(refusal(error.value)[2])
    assert (reason or other) in str(seen)


def allowing(name: str, policy: inference_pb2.AdapterPolicy) -> messages.UpdateAdapterPolicyRequest:
    return messages.UpdateAdapterPolicyRequest(request_id=str(uuid.uuid4()), name=name, policy=policy)


def test_a_steward_grants_an_adapter_and_its_log_probabilities(service: Service) -> None:
    ana, bob, steward = service.stub(), service.stub("bob@local"), service.stub("steward@local", "steward")
    name = "adapters/a0"
    granted = inference_pb2.AdapterPolicy(users=["bob@local"], logprobs=2)
    with pytest.raises(grpc.RpcError) as error:
        ana.UpdateAdapterPolicy(allowing(name, granted))
    assert refusal(error.value)[:2] == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED")
    answer = steward.UpdateAdapterPolicy(allowing(name, granted))
    assert answer.adapter.policy == granted
    said = bob.Generate(asked(name, logprobs=2))
    assert said == ana.Generate(asked(name, logprobs=2))
    assert len(said.logprobs) == said.usage.completion_tokens
    assert "".join(one.token for one in said.logprobs) == said.text
    assert all(len(one.likeliest) == 2 and one.logprob == one.likeliest[0].logprob for one in said.logprobs)
    pieces = bob.StreamGenerate(messages.StreamGenerateRequest(request=asked(name, logprobs=2)))
    assert [one for piece in pieces for one in piece.logprobs] == list(said.logprobs)
    for model, most in ((name, 3), ("adapters/a1", 1), ("baseModels/tiny", 1)):
        with pytest.raises(grpc.RpcError) as error:
            ana.Generate(asked(model, logprobs=most))
        assert refusal(error.value)[1] == "LOGPROBS_NOT_GRANTED"
    nothing = inference_pb2.AdapterPolicy()
    steward.UpdateAdapterPolicy(allowing(name, nothing))
    with pytest.raises(grpc.RpcError) as error:
        bob.Generate(asked(name))
    assert refusal(error.value)[0] is grpc.StatusCode.NOT_FOUND


CATASTROPHES = [
    {"regex": "(.*.*)*" * 250},
    {"json_schema": json.dumps({"anyOf": [{"type": "string", "pattern": ".{0,900}" * 20}] * 80})},
]


def test_a_catastrophic_expression_is_refused_and_nobody_else_notices(service: Service) -> None:
    if service.engine != "vllm":
        pytest.skip("the transformers engine constrains no output")
    ana, bob = service.stub(), service.stub("bob@local")
    bob.Generate(asked("baseModels/tiny", regex="yes|no"))  # what tries structures out has started
    with ThreadPoolExecutor() as threads:
        hostile = [threads.submit(ana.Generate, asked("baseModels/tiny", **bad)) for bad in CATASTROPHES]
        # Both are at it while another tenant is served.
        started = time.monotonic()
        answer = bob.Generate(asked("baseModels/tiny", "b", max_tokens=32))
        assert time.monotonic() - started < 2
        assert answer.usage.completion_tokens > 0
        for one in hostile:
            problem = one.exception()
            assert isinstance(problem, grpc.RpcError)
            assert refusal(problem)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_RULES")
    assert bob.Generate(asked("baseModels/tiny", regex="yes|no")).text in ("yes", "no")


def test_an_unloaded_adapter_comes_back_by_loading_it(service: Service) -> None:
    stub, name = service.stub(), "adapters/a1"
    before = stub.Generate(asked(name))
    stub.UnloadAdapter(messages.UnloadAdapterRequest(name=name))
    with pytest.raises(grpc.RpcError) as error:
        stub.Generate(asked(name))
    assert refusal(error.value)[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_NOT_READY")
    loaded = stub.LoadAdapter(messages.LoadAdapterRequest(name=name)).adapter
    assert loaded.state == inference_pb2.ADAPTER_STATE_READY
    assert stub.Generate(asked(name)) == before


def test_a_client_that_leaves_releases_the_adapter(service: Service) -> None:
    stub, name = service.stub(), "adapters/a1"
    request = messages.StreamGenerateRequest(request=asked(name, "a", max_tokens=240))
    streams = [stub.StreamGenerate(request) for _ in range(4)]
    for stream in streams:
        next(stream)
    started = time.monotonic()
    for stream in streams:
        stream.cancel()
    with pytest.raises(grpc.RpcError) as late:
        stub.Generate(asked(name, "a", max_tokens=240), timeout=0.05)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Unloading waits for every lease, and for what runs in the engine under it.
    stub.UnloadAdapter(messages.UnloadAdapterRequest(name=name))
    assert time.monotonic() - started < 3
    stub.LoadAdapter(messages.LoadAdapterRequest(name=name))


def served(calls: list[Any]) -> int:
    """How many have their answer by now; a refusal takes nobody's turn."""
    return sum(one.done() and not one.exception() for one in calls)


def test_a_tenant_that_floods_is_told_to_wait_and_another_is_served_at_once(service: Service) -> None:
    ana, bob = service.stub(), service.stub("bob@local")
    long = {"max_tokens": 100, "temperature": 1.0}
    with ThreadPoolExecutor(40) as threads:
        flood = [threads.submit(ana.Generate, asked("baseModels/tiny", "a", seed=n, **long)) for n in range(40)]
        refused: list[Any] = []
        deadline = time.monotonic() + 30
        while not refused:
            assert time.monotonic() < deadline
            refused = [one for one in flood if one.done() and one.exception()]
            time.sleep(0.01)
        before = served(flood)
        answer = bob.Generate(asked("baseModels/tiny", "b", **long))
        during = served(flood) - before
        assert answer.usage.completion_tokens > 0
        assert during <= 12, "in a common queue nearly all of the others would be done"
    refused = [one for one in flood if one.exception()]
    assert len(refused) <= 40 - 24, "those that run and those that may wait are served"
    for one in refused:
        problem = one.exception()
        assert problem.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal(problem)[1] == "TENANT_LIMIT"
        details = status_pb2.Status.FromString(refusal(problem)[2]).details
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in details)
        assert retry.retry_delay.seconds >= 1


def test_prompts_are_not_in_the_log(service: Service) -> None:
    secret = "zebra quartz 4711"
    stub = service.stub()
    stub.Generate(asked("adapters/a0", secret))
    with pytest.raises(grpc.RpcError):
        stub.Generate(asked("adapters/a0", secret * 40))
    log = (service.root / "log").read_text()
    assert "zebra" not in log
    assert "/Generate" in log


def test_a_dead_engine_ends_the_process(service: Service) -> None:
    if service.engine != "vllm":
        pytest.skip("the transformers engine is a thread of the service and dies with it")
    (child,) = [
        one
        for one in psutil.Process(service.process.pid).children()
        if not any(other in " ".join(one.cmdline()) for other in ("resource_tracker", "structures_sandbox"))
    ]
    child.kill()
    with pytest.raises(grpc.RpcError) as error:
        for _ in range(100):
            service.stub().Generate(asked("adapters/a0"), timeout=5)
            time.sleep(0.1)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert service.process.wait(20) == 3
    assert health(service.port) is None


def test_after_a_restart_adapters_are_ready(service: Service) -> None:
    if service.engine == "vllm":
        pytest.skip("a restart is the same with either engine; the transformers engine starts sooner")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    service.process, service.port = start(service.environment, service.root / "log")
    adapter = service.stub().GetAdapter(messages.GetAdapterRequest(name="adapters/a0")).adapter
    assert adapter.state == inference_pb2.ADAPTER_STATE_READY
    assert service.stub().Generate(asked("adapters/a0")).statement.epsilon == 4.0
