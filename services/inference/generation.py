"""One completion: what is asked of the engine, under which lease, and what its troubles mean.

Everything that a request must pass stands here once, for single, streamed and batched requests
alike: the model and the right to it, the room in the context, the tenant's salt, the limits of this
release. Prompts are never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
from prometheus_client import Counter

from murmura.api.common.v1 import privacy_pb2
from murmura.api.inference.v1 import inference_pb2
from services.common.errors import MurmuraError, invalid
from services.common.tokens import Principal
from services.common.turns import TenantFull
from services.inference import refusals
from services.inference.adapters import Adapters
from services.inference.bases import Base
from services.inference.engine import (
    LEAST_TEMPERATURE,
    LEAST_TOP_P,
    Delta,
    Engine,
    EngineDead,
    EngineFull,
    EngineRefused,
    Sampling,
)
from services.inference.pace import Pace
from services.inference.rights import Rules

DEFAULT_MAX_TOKENS = 64
# By content: who trained an adapter, what it is called and who uses it is in no series.
_TOKENS = Counter("murmura_inference_tokens_total", "Tokens by adapter, empty for base models.", ["sha256", "kind"])


class Salts:
    """A secret of this deployment, and what it makes of each tenant.

    Requests share cached prefixes only under the same salt; without one, the time to the first
    token tells a tenant whether another sent the same prompt (arXiv 2409.20002).

    Args:
        path: holds the secret; made when missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.touch(mode=0o600)
            path.write_bytes(secrets.token_bytes(32))
        self._secret = path.read_bytes()
        if len(self._secret) != 32:
            raise ValueError(f"{path.name} is damaged; remove it, and a new one is made")

    def of(self, tenant: str) -> str:
        """Return the salt of a tenant."""
        return hmac.new(self._secret, tenant.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Served:
    """A model that is ready for a request, while its lease lasts.

    Attributes:
        base: what makes the tokens.
        adapter_id: None for a base model.
        statement: what is promised; None for a base model.
        salt: of the caller.
        logprobs: that are granted.
        digest: of the adapter's manifest; empty for a base model.
    """

    base: Base
    adapter_id: int | None
    statement: privacy_pb2.PrivacyStatement | None
    salt: str
    logprobs: int = 0
    digest: str = ""

    @property
    def engine(self) -> Engine:
        """What makes the tokens."""
        return self.base.engine


class Generation:
    """Makes completions.

    Args:
        bases: `baseModels/<id>` to what serves it.
        adapters: the fine-tuned ones.
        salts: of tenants.
        rules: what the operator allows.
        pieces_per_s: of one tenant's streams together; 0 for each token as it comes.
    """

    def __init__(
        self,
        bases: Mapping[str, Base],
        adapters: Adapters,
        salts: Salts,
        rules: Rules,
        pieces_per_s: float = 0.0,
    ) -> None:
        self._bases = bases
        self._adapters = adapters
        self._salts = salts
        self._rules = rules
        self._pieces_per_s = pieces_per_s

    @asynccontextmanager
    async def served(self, model: str, principal: Principal) -> AsyncIterator[Served]:
        """Hold a model, base or adapter, for a request.

        Raises:
            MurmuraError: if it does not exist, is not the caller's, or is not ready.
        """
        salt = self._salts.of(principal.subject)
        if model.startswith("baseModels/"):
            if not self._rules.base_roles & principal.roles:
                raise refusals.not_for_roles("Base models", self._rules.base_roles)
            yield Served(self._base(model), None, None, salt)
            return
        async with self._adapters.lease(model, principal) as record:
            statement = privacy_pb2.PrivacyStatement.FromString(record.statement)
            if statement.unlimited and not self._rules.unlimited_roles & principal.roles:
                raise refusals.not_for_roles("Adapters trained without privacy", self._rules.unlimited_roles)
            granted = min(record.allowed.logprobs, self._rules.max_logprobs)
            yield Served(self._base(record.base_model), record.engine_id, statement, salt, granted, record.sha256)

    async def prompt(self, served: Served, text: str, sampling: Sampling) -> tuple[list[int], Sampling]:
        """Return the tokens of a prompt, and the options cut to the room that it leaves.

        Raises:
            MurmuraError: PROMPT_TOO_LONG if it leaves no room for one token.
        """
        tokens = await served.engine.tokenize(text)
        limit = served.engine.context_length - 1
        if len(tokens) > limit:
            raise MurmuraError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "PROMPT_TOO_LONG",
                f"The prompt has {len(tokens)} tokens; it may have {limit}. Shorten it.",
                {"tokens": str(len(tokens)), "limit": str(limit)},
            )
        if not tokens:
            raise invalid("prompt", "must not be empty: this model has no token that starts a text")
        room = served.engine.context_length - len(tokens)
        return tokens, replace(sampling, max_tokens=min(sampling.max_tokens, room))

    async def stream(self, served: Served, tokens: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Wait for a turn and yield the pieces of a completion; closing this aborts it in the engine.

        Raises:
            MurmuraError: TENANT_LIMIT, OVERLOADED, ENGINE_DEAD, or a refusal of an option.
        """
        _TOKENS.labels(served.digest, "prompt").inc(len(tokens))
        made = _TOKENS.labels(served.digest, "completion")
        # The salt stands for the tenant.
        with self._translated():
            async with served.base.turns.turn(served.salt, served.adapter_id):
                pieces = served.engine.generate(tokens, sampling, served.adapter_id, served.salt)
                pace = Pace(partial(self._interval_s, served))
                async with aclosing(pieces):
                    async for piece in pieces:
                        made.inc(piece.tokens)
                        if (due := pace.after(piece)) is not None:
                            yield due

    async def sampling(self, options: inference_pb2.SamplingOptions, served: Served) -> Sampling:
        """Return what the engine understands of the options; a structure is tried out first.

        Raises:
            MurmuraError: LOGPROBS_NOT_GRANTED, NOT_IN_THIS_RELEASE, FIELD_RULES.
        """
        if options.logprobs > served.logprobs:
            # Log-probabilities of base and adapter together are the strongest sign of membership
            # (arXiv 2507.18302).
            raise MurmuraError(
                grpc.StatusCode.PERMISSION_DENIED,
                "LOGPROBS_NOT_GRANTED",
                f"{served.logprobs or 'No'} log-probabilities are granted for this model, for nothing tells more about "
                "its training data. Leave `logprobs` out or at that, or ask a steward.",
            )
        structure = options.WhichOneof("structure")
        if structure and not served.engine.structured:
            raise MurmuraError(
                grpc.StatusCode.UNIMPLEMENTED,
                "NOT_IN_THIS_RELEASE",
                f"{structure} takes the vLLM engine; this deployment runs {served.engine.name}.",
                {"feature": structure},
            )
        temperature = options.temperature if options.HasField("temperature") else 1.0
        sampling = Sampling(
            max_tokens=options.max_tokens if options.HasField("max_tokens") else DEFAULT_MAX_TOKENS,
            temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
            top_p=max(options.top_p, LEAST_TOP_P) if options.HasField("top_p") else 1.0,
            top_k=options.top_k,
            seed=options.seed if options.HasField("seed") else None,
            stop=tuple(text for text in options.stop if text),
            json_schema=options.json_schema,
            regex=options.regex,
            logprobs=options.logprobs,
        )
        if structure and served.base.structures is not None:
            with self._translated():
                await served.base.structures.check(sampling, served.salt)
        return sampling

    def _interval_s(self, served: Served) -> float:
        """Return what lies between two pieces of a stream, for as many as its tenant has now."""
        return served.base.turns.running(served.salt) / self._pieces_per_s if self._pieces_per_s else 0.0

    def _base(self, name: str) -> Base:
        if name not in self._bases:
            raise refusals.unknown_base(name, self._bases)
        return self._bases[name]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except EngineRefused as refused:
            raise invalid(f"options.{refused.field}", refused.problem) from None
        except TenantFull:
            raise MurmuraError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TENANT_LIMIT",
                "Too many of your requests wait already. Wait for some of them, or send them as one batch.",
                retry_after_s=1,
            ) from None
        except EngineFull:
            raise MurmuraError(
                grpc.StatusCode.UNAVAILABLE,
                "OVERLOADED",
                "Too many requests wait for the engine. Try again shortly.",
                retry_after_s=1,
            ) from None
        except EngineDead:
            raise refusals.engine_dead() from None
