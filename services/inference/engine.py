"""What the service needs of an engine, and nothing of how one works.

vLLM serves; where it has no wheel, transformers does. Both are hidden behind one small protocol, so
that access control, leases, limits and privacy statements are written once and tested against both.
An engine trusts its caller: adapters are verified before they reach it, and their integer ids are
the service's own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from services.common.memory import importing

_LONG_TEXT = 20_000
_encoding = threading.Lock()


class Finish(Enum):
    """Why an output ended."""

    STOP = "stop"
    LENGTH = "length"


class EngineUnfit(Exception):
    """The engine cannot serve adapters of this base model; its text says why."""


class EngineDead(Exception):
    """The engine cannot serve any more; the process has to be replaced."""


class EngineFull(Exception):
    """The engine's queue is full; trying again shortly helps."""


class EngineRefused(Exception):
    """The engine does not take this request.

    Args:
        field: the sampling option at fault.
        problem: what is wrong with it, for the caller; never holds the prompt.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field
        self.problem = problem


# Sharper is no more than the likeliest token, and more than single precision tells apart: a temperature below is taken
# as 0, and a smaller nucleus as this one.
LEAST_TEMPERATURE, LEAST_TOP_P = 0.01, 1e-6


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: most tokens to make, at least 1.
        temperature: 0 takes the likeliest token.
        top_p: nucleus, in (0, 1].
        top_k: only the likeliest this many; 0 means all.
        seed: makes sampling repeatable; None draws a fresh one.
        stop: texts that end the output and do not appear in it.
        json_schema: a JSON schema that the output must satisfy, or empty.
        regex: a regular expression that the output must match, or empty.
        logprobs: log-probabilities of so many tokens in each place; 0 for none.
        whole: the output in one piece, once it has ended: who does not stream need not be woken for each token.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: str = ""
    regex: str = ""
    logprobs: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Likely:
    """A token and how likely it was, before temperature and other options.

    Attributes:
        text: of the token.
        logprob: natural logarithm of its probability.
        likeliest: in its place, as many as were asked for.
    """

    text: str
    logprob: float
    likeliest: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an output.

    Attributes:
        text: the next text; may be empty.
        tokens: how many tokens were made since the last piece.
        finish: why the output ended; None before its last piece.
        logprobs: of the tokens that were made, where asked for.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    logprobs: tuple[Likely, ...] = ()


def joined(pieces: Sequence[Delta]) -> Delta:
    """Return pieces as one."""
    return Delta(
        "".join(piece.text for piece in pieces),
        sum(piece.tokens for piece in pieces),
        pieces[-1].finish,
        tuple(likely for piece in pieces for likely in piece.logprobs),
    )


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is told.

    Attributes:
        dtype: `auto` (float32 on a CPU, bfloat16 on a GPU), `float32` or `bfloat16`.
        max_context: longest prompt plus output in tokens; 0 takes the model's own.
        max_adapters: adapters that can run in one batch.
        max_resident_adapters: adapters kept in memory; others are read again from their directory
            when used.
        max_rank: greatest LoRA rank.
        max_running: most requests that run at once.
        max_queue: most requests that wait in the engine; 0 sets no limit.
        max_logprobs: most log-probabilities in each place that anybody may be granted.
        gpu_memory: share of the GPU's memory that an engine takes, weights and KV cache together.
        cpu_cache_gib: memory for the KV cache where there is no GPU.
        scratch: a directory of this service alone; None takes a temporary one.
    """

    dtype: str = "auto"
    max_context: int = 0
    max_adapters: int = 4
    max_resident_adapters: int = 32
    max_rank: int = 64
    max_running: int = 128
    max_queue: int = 256
    max_logprobs: int = 0
    gpu_memory: float = 0.9
    cpu_cache_gib: int = 1
    scratch: Path | None = None


class Engine(Protocol):
    """Makes tokens with one base model and many adapters."""

    name: str
    context_length: int
    structured: bool

    async def start(self) -> None:
        """Load the base model and make one token: an engine that has started serves.

        Raises:
            EngineUnfit: before anything is loaded, if the base model is none for this engine.
        """

    async def add_adapter(self, adapter_id: int, name: str, directory: Path) -> None:
        """Add an adapter.

        Args:
            adapter_id: positive, never used before for other weights.
            name: for logs.
            directory: a verified PEFT directory, to stay until `remove_adapter`.
        """

    async def remove_adapter(self, adapter_id: int) -> None:
        """Remove an adapter that no request uses; does nothing if it is not there."""

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter_id: int | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt. Closing the generator, or cancelling its task, aborts the request.

        Args:
            prompt: token ids, at least one; with `max_tokens` within `context_length`.
            sampling: how.
            adapter_id: one that was added, or None for the base model.
            cache_salt: requests share cached prefixes only under the same salt.

        Raises:
            EngineRefused: if the engine does not take an option.
            EngineFull: if too many requests wait.
            EngineDead: if the engine died.
        """

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, those that start a text included."""

    def running(self) -> int:
        """Return how many requests are under way."""

    async def check_health(self) -> None:
        """Raise EngineDead if the engine cannot serve."""

    async def stop(self) -> None:
        """Abort what runs and free everything."""


def choose(wish: str) -> tuple[str, str]:
    """Choose an engine by what is installed.

    Args:
        wish: `auto`, `vllm` or `transformers`.

    Returns:
        Its name, and a sentence that says why.

    Raises:
        ValueError: if the one that was named is not installed.
    """
    installed = [name for name in ("vllm", "transformers") if importlib.util.find_spec(name)]
    if wish == "auto":
        if not installed:
            raise ValueError("Neither vLLM nor transformers is installed; install one of the inference extras.")
        if installed[0] == "vllm":
            return "vllm", "vLLM serves: it is installed."
        return "transformers", "transformers serves, slowly: vLLM is not installed here."
    if wish not in installed:
        raise ValueError(f"MURMURA_ENGINE names {wish}, which is not installed; install it or choose auto.")
    return wish, f"{wish} serves: MURMURA_ENGINE names it."


def make(name: str, model: str, settings: EngineSettings) -> Engine:
    """Make the engine that `choose` named; its libraries are imported here and not before."""
    if name == "vllm":
        from services.inference.vllm_engine import VllmEngine

        return VllmEngine(model, settings)
    with importing():
        from services.inference.transformers_engine import TransformersEngine

    return TransformersEngine(model, settings)


async def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenize, off the event loop where the text is long.

    An empty text is what every text begins with in training: the token that starts one, or in its place ends one.
    """

    def work() -> list[int]:
        # A fast tokenizer must not be used by two threads at once.
        with _encoding:
            ids: list[int] = tokenizer.encode(text)
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return ids or ([] if start is None else [int(start)])

    return work() if len(text) < _LONG_TEXT else await asyncio.to_thread(work)


async def warm_up(engine: Engine) -> None:
    """Make one token, so that readiness means that tokens can be made."""
    prompt = (await engine.tokenize("a"))[:1]
    async for _ in engine.generate(prompt, Sampling(max_tokens=1, temperature=0), None, secrets.token_hex(8)):
        pass
