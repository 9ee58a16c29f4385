"""What is asked about adapters, and of models."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from murmura.api.inference.v1 import inference_pb2
from murmura.api.inference.v1 import inference_service_pb2 as messages
from murmura.calls import PAGE_SIZE, Call, qualified
from murmura.errors import from_item

LOADING_S = 300.0


def list_adapters() -> Call:
    """List adapters."""
    return Call("inference", "ListAdapters", messages.ListAdaptersRequest(page_size=PAGE_SIZE), "AdapterService")


def get_adapter(name: str) -> Call:
    """Read an adapter."""
    request = messages.GetAdapterRequest(name=qualified("adapters", name))
    return Call("inference", "GetAdapter", request, "AdapterService")


def load_adapter(name: str) -> Call:
    """Have an adapter verified and served."""
    request = messages.LoadAdapterRequest(request_id=str(uuid.uuid4()), name=qualified("adapters", name))
    return Call("inference", "LoadAdapter", request, "AdapterService", LOADING_S)


def unload_adapter(name: str) -> Call:
    """Have an adapter served no more."""
    request = messages.UnloadAdapterRequest(request_id=str(uuid.uuid4()), name=qualified("adapters", name))
    return Call("inference", "UnloadAdapter", request, "AdapterService", LOADING_S)


def allow(adapter: str, users: Sequence[str], logprobs: int) -> Call:
    """Say what is allowed with an adapter, in place of what was said before."""
    policy = inference_pb2.AdapterPolicy(users=users, logprobs=logprobs)
    request = messages.UpdateAdapterPolicyRequest(
        request_id=str(uuid.uuid4()), name=qualified("adapters", adapter), policy=policy
    )
    return Call("inference", "UpdateAdapterPolicy", request, "AdapterService")


def generate(model: str, prompt: str, options: inference_pb2.SamplingOptions) -> Call:
    """Continue a prompt."""
    return Call("inference", "Generate", messages.GenerateRequest(model=model, prompt=prompt, options=options))


def batch_generate(model: str, prompts: Sequence[str], options: inference_pb2.SamplingOptions, offset: int = 0) -> Call:
    """Continue prompts; a stream. A seed is used as seed plus offset plus index."""
    request = messages.BatchGenerateRequest(model=model, prompts=prompts, options=options)
    if options.HasField("seed"):
        request.options.seed += offset
    return Call("inference", "BatchGenerate", request, timeout_s=None)


def in_order(answers: Iterable[messages.BatchGenerateResponse], count: int) -> list[messages.GenerateResponse]:
    """Return the completions of a batch in the order of its prompts.

    Args:
        answers: one for each prompt, in any order.
        count: how many prompts there were.

    Raises:
        MurmuraError: if one of them failed.
    """
    found: dict[int, messages.GenerateResponse] = {}
    for answer in answers:
        if answer.HasField("error"):
            raise from_item(answer.error)
        found[answer.index] = answer.completion
    return [found[index] for index in range(count)]


def stream_generate(model: str, prompt: str, options: inference_pb2.SamplingOptions) -> Call:
    """Continue a prompt piece by piece; a stream."""
    request = messages.GenerateRequest(model=model, prompt=prompt, options=options)
    return Call("inference", "StreamGenerate", messages.StreamGenerateRequest(request=request), timeout_s=None)


def count_tokens(model: str, text: str) -> Call:
    """Count the tokens of a text."""
    return Call("inference", "CountTokens", messages.CountTokensRequest(model=model, text=text))
