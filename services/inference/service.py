"""The RPCs of the inference service: from messages to adapters and completions, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from murmura.api.common.v1 import errors_pb2, privacy_pb2
from murmura.api.inference.v1 import inference_pb2, inference_service_pb2_grpc
from murmura.api.inference.v1 import inference_service_pb2 as messages
from services.common.auth import current_principal
from services.common.errors import MurmuraError, unknown
from services.common.pages import page
from services.inference.adapters import Adapters
from services.inference.catalogue import Record
from services.inference.engine import Finish, Likely, Sampling
from services.inference.generation import Generation, Served

BATCH_WIDTH = 32
_FINISH = {
    Finish.STOP: inference_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


class AdapterService(inference_service_pb2_grpc.AdapterServiceServicer):
    """Decides which adapters the engine holds.

    Args:
        adapters: all of them.
    """

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    async def LoadAdapter(self, request: messages.LoadAdapterRequest, context: Any) -> messages.LoadAdapterResponse:
        """Verify an adapter and add it to the engine."""
        record = await self._adapters.load(request.name, current_principal())
        return messages.LoadAdapterResponse(adapter=adapter_message(record))

    async def GetAdapter(self, request: messages.GetAdapterRequest, context: Any) -> messages.GetAdapterResponse:
        """Read an adapter."""
        record = self._adapters.get(request.name, current_principal())
        return messages.GetAdapterResponse(adapter=adapter_message(record))

    async def ListAdapters(self, request: messages.ListAdaptersRequest, context: Any) -> messages.ListAdaptersResponse:
        """List the caller's adapters."""
        records, token = page(self._adapters.list(current_principal()), request.page_size, request.page_token)
        return messages.ListAdaptersResponse(
            adapters=[adapter_message(record) for record in records], next_page_token=token
        )

    async def UnloadAdapter(
        self, request: messages.UnloadAdapterRequest, context: Any
    ) -> messages.UnloadAdapterResponse:
        """Drain an adapter and remove it from the engine."""
        await self._adapters.unload(request.name, current_principal())
        return messages.UnloadAdapterResponse()

    async def UpdateAdapterPolicy(
        self, request: messages.UpdateAdapterPolicyRequest, context: Any
    ) -> messages.UpdateAdapterPolicyResponse:
        """Say what is allowed with an adapter."""
        record = await self._adapters.allow(request.name, request.policy, current_principal())
        return messages.UpdateAdapterPolicyResponse(adapter=adapter_message(record))


class InferenceService(inference_service_pb2_grpc.InferenceServiceServicer):
    """Makes text.

    Args:
        generation: makes completions.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def Generate(self, request: messages.GenerateRequest, context: Any) -> messages.GenerateResponse:
        """Make one completion."""
        async with self._generation.served(request.model, current_principal()) as served:
            sampling = await self._generation.sampling(request.options, served)
            return await self._complete(served, request.prompt, sampling)

    async def StreamGenerate(
        self, request: messages.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[messages.StreamGenerateResponse]:
        """Make one completion, piece by piece."""
        asked = request.request
        async with self._generation.served(asked.model, current_principal()) as served:
            sampling = await self._generation.sampling(asked.options, served)
            tokens, sampling = await self._generation.prompt(served, asked.prompt, sampling)
            made = 0
            async with aclosing(self._generation.stream(served, tokens, sampling)) as pieces:
                async for piece in pieces:
                    made += piece.tokens
                    response = messages.StreamGenerateResponse(text=piece.text, logprobs=_logprobs(piece.logprobs))
                    if piece.finish is not None:
                        response.finish_reason = _FINISH[piece.finish]
                        response.usage.CopyFrom(_usage(tokens, made))
                        if served.statement is not None:
                            response.statement.CopyFrom(served.statement)
                    yield response

    async def BatchGenerate(
        self, request: messages.BatchGenerateRequest, context: Any
    ) -> AsyncIterator[messages.BatchGenerateResponse]:
        """Make many completions; the engine runs them together."""
        async with self._generation.served(request.model, current_principal()) as served:
            sampling = await self._generation.sampling(request.options, served)
            left = iter(enumerate(request.prompts))
            done: asyncio.Queue[messages.BatchGenerateResponse] = asyncio.Queue(maxsize=BATCH_WIDTH)

            async def work() -> None:
                for index, prompt in left:
                    await done.put(await self._item(served, index, prompt, sampling))

            workers = [asyncio.create_task(work()) for _ in range(min(BATCH_WIDTH, len(request.prompts)))]
            try:
                for _ in request.prompts:
                    yield await done.get()
            finally:
                for worker in workers:
                    worker.cancel()
                # The lease ends only when nothing of this batch is left in the engine.
                await asyncio.gather(*workers, return_exceptions=True)

    async def CountTokens(self, request: messages.CountTokensRequest, context: Any) -> messages.CountTokensResponse:
        """Count the tokens of a text."""
        async with self._generation.served(request.model, current_principal()) as served:
            tokens = await served.engine.tokenize(request.text)
            return messages.CountTokensResponse(tokens=len(tokens), context_length=served.engine.context_length)

    async def _item(
        self, served: Served, index: int, prompt: str, sampling: Sampling
    ) -> messages.BatchGenerateResponse:
        if sampling.seed is not None:
            # Seeds are 64 bits in the contract; the sum stays within them.
            sampling = replace(sampling, seed=(sampling.seed + index) % (1 << 63))
        try:
            completion = await self._complete(served, prompt, sampling)
        except MurmuraError as error:
            return messages.BatchGenerateResponse(index=index, error=error.item())
        except Exception as error:
            return messages.BatchGenerateResponse(index=index, error=unknown(error).item())
        return messages.BatchGenerateResponse(index=index, completion=completion)

    async def _complete(self, served: Served, prompt: str, sampling: Sampling) -> messages.GenerateResponse:
        tokens, sampling = await self._generation.prompt(served, prompt, sampling)
        async with aclosing(self._generation.stream(served, tokens, replace(sampling, whole=True))) as pieces:
            (whole,) = [piece async for piece in pieces]
        if whole.finish is None:
            raise RuntimeError("the engine ended a completion without saying why")
        return messages.GenerateResponse(
            text=whole.text,
            finish_reason=_FINISH[whole.finish],
            usage=_usage(tokens, whole.tokens),
            statement=served.statement,
            logprobs=_logprobs(whole.logprobs),
        )


def adapter_message(record: Record) -> inference_pb2.Adapter:
    """Return what the contract says of an adapter."""
    message = inference_pb2.Adapter(
        name=record.name,
        base_model=record.base_model,
        sha256=record.sha256,
        state=inference_pb2.AdapterState.Value(f"ADAPTER_STATE_{record.state}"),
        statement=privacy_pb2.PrivacyStatement.FromString(record.statement),
        owner=record.owner,
        training_job=record.training_job,
        policy=record.allowed,
    )
    message.create_time.FromJsonString(record.create_time)
    if record.error:
        message.error.CopyFrom(errors_pb2.ItemError.FromString(record.error))
    return message


def _logprobs(made: Iterable[Likely]) -> list[inference_pb2.TokenLogprob]:
    return [
        inference_pb2.TokenLogprob(token=one.text, logprob=one.logprob, likeliest=_logprobs(one.likeliest))
        for one in made
    ]


def _usage(prompt: list[int], made: int) -> inference_pb2.Usage:
    return inference_pb2.Usage(prompt_tokens=len(prompt), completion_tokens=made)
