"""The engine for real work: vLLM's AsyncLLM, its known hazards kept out.

vLLM runs in a process of its own. On a CPU that process is forked from this one after everything is
imported, which makes a start three times quicker; a fork must come before any thread, so the
service starts the engine before gRPC. vLLM dies when a request names an adapter that was never
added; this module refuses such a request instead. Prefix caching stays on and every request carries
a salt, without which the cache's timing tells tenants each other's prompts (arXiv 2502.07776).
Log-probabilities are off in the engine itself, unless the operator lets stewards grant them.

On a CPU, vLLM 0.32 marks a request without an adapter by the index -1, and its torch kernels then
take the last adapter slot: in a batch with other tenants, the base model answers with an adapter
of one of them. There the base model is served as an adapter of zeros, so the index never occurs.
"""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from services.common.memory import importing
from services.inference.engine import (
    Delta,
    EngineDead,
    EngineFull,
    EngineRefused,
    EngineSettings,
    Finish,
    Likely,
    Sampling,
    encode,
    warm_up,
)
from services.inference.orphans import end_with_parent
from services.inference.vllm_config import configuration, set_environment, write_zeros

_ZEROS_ID = 2**31 - 1  # the catalogue counts from 1


class VllmEngine:
    """vLLM behind the engine protocol.

    Args:
        model: a directory, or a hub id whose files are on this machine.
        settings: limits and types.
    """

    name = "vllm"
    structured = True

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._model = model
        self._settings = settings
        self._adapters: dict[int, Any] = {}
        self._zeros: Any = None
        self._llm: Any = None
        self._tokenizer: Any = None
        self.context_length = 0

    async def start(self) -> None:
        """Start the engine's process, load the base model, make one token."""
        set_environment(self._settings)
        with importing():
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            from services.inference.base_models import linear_shapes, locate, skeleton

            on_cpu = current_platform.is_cpu()
            base = skeleton(locate(self._model))
            config = configuration(self._model, base, self._settings, on_cpu=on_cpu)
        # Only now: vLLM sets the method to spawn while it makes its configuration.
        if on_cpu and threading.active_count() == 1:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
            os.register_at_fork(after_in_child=end_with_parent(signal.SIGTERM))
        self._llm = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        self._tokenizer = self._llm.get_tokenizer()
        self.context_length = int(config.model_config.max_model_len)
        if on_cpu:
            scratch = self._settings.scratch or Path(tempfile.mkdtemp(prefix="murmura-engine-"))
            directory = scratch / hashlib.sha256(self._model.encode()).hexdigest()[:16]
            write_zeros(directory, linear_shapes(base))
            self._zeros = LoRARequest("zeros", _ZEROS_ID, str(directory))
            await self._llm.add_lora(self._zeros)
        await warm_up(self)

    async def add_adapter(self, adapter_id: int, name: str, directory: Path) -> None:
        """Add an adapter; vLLM reads it at once, and again if it was evicted from memory."""
        from vllm.lora.request import LoRARequest

        # vLLM compares adapters by name: the id makes it unique.
        request = LoRARequest(f"{name}#{adapter_id}", adapter_id, str(directory))
        try:
            await self._llm.add_lora(request)
        except Exception:
            await self.check_health()
            raise
        self._adapters[adapter_id] = request

    async def remove_adapter(self, adapter_id: int) -> None:
        """Remove an adapter."""
        if self._adapters.pop(adapter_id, None) is not None:
            await self._llm.remove_lora(adapter_id)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter_id: int | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; vLLM aborts when this generator is closed."""
        from vllm.exceptions import MaxQueuedTokensError, QueueOverflowError, VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        adapter = self._zeros
        if adapter_id is not None:
            adapter = self._adapters[adapter_id]  # vLLM would die of an id it does not know
        try:
            stream = self._llm.generate(
                tokens_input(list(prompt), cache_salt=cache_salt),
                _parameters(sampling),
                uuid.uuid4().hex,
                lora_request=adapter,
            )
            async with aclosing(stream):
                async for output in stream:
                    piece = output.outputs[0]
                    finish = None
                    if output.finished:
                        if piece.finish_reason not in ("stop", "length"):
                            raise RuntimeError("vLLM ended an output without a reason that it documents")
                        finish = Finish(piece.finish_reason)
                    yield Delta(piece.text, len(piece.token_ids), finish, _likely(piece, sampling.logprobs))
        except EngineDeadError:
            raise EngineDead from None
        except (QueueOverflowError, MaxQueuedTokensError):
            raise EngineFull from None
        except VLLMClientError as refused:
            # Its text can quote the request, so it is not passed on.
            if (field := getattr(refused, "parameter", "")) in _PARAMETERS:
                raise EngineRefused(str(field), "is no value that the engine takes") from None
            field = "json_schema" if sampling.json_schema else "regex" if sampling.regex else ""
            if not field:
                raise
            raise EngineRefused(field, "the engine cannot constrain an output to this") from None

    async def tokenize(self, text: str) -> list[int]:
        """Return token ids."""
        return await encode(self._tokenizer, text)

    def running(self) -> int:
        """Return how many requests are under way."""
        return int(self._llm.get_num_unfinished_requests())

    async def check_health(self) -> None:
        """Raise EngineDead once vLLM's process has died."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.check_health()
        except EngineDeadError:
            raise EngineDead from None

    async def stop(self) -> None:
        """End the engine's process."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


# What vLLM calls as the contract does.
_PARAMETERS = frozenset({"temperature", "top_p", "top_k", "max_tokens", "seed", "stop"})


def _parameters(sampling: Sampling) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    structure = None
    if sampling.json_schema:
        structure = StructuredOutputsParams(json=sampling.json_schema, disable_any_whitespace=True)
    elif sampling.regex:
        structure = StructuredOutputsParams(regex=sampling.regex)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop),
        structured_outputs=structure,
        output_kind=RequestOutputKind.FINAL_ONLY if sampling.whole else RequestOutputKind.DELTA,
        logprobs=sampling.logprobs or None,
    )


def _likely(piece: Any, most: int) -> tuple[Likely, ...]:
    """Return the log-probabilities of a piece; vLLM lists the token that was made besides the likeliest."""
    if not most:
        return ()
    made = []
    for token, place in zip(piece.token_ids, piece.logprobs, strict=True):
        ordered = sorted((one for one in place.values() if one.rank <= most), key=lambda one: int(one.rank))
        likeliest = tuple(Likely(one.decoded_token or "", one.logprob) for one in ordered)
        made.append(Likely(place[token].decoded_token or "", place[token].logprob, likeliest))
    return tuple(made)
