"""What every model can do: continue a prompt. That is post-processing: it costs no privacy, however often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from murmura.errors import MurmuraError

if TYPE_CHECKING:
    from murmura.client import Client


class Sampler:
    """Something that makes text: a base model or an adapter."""

    def __init__(self, client: Client | None) -> None:
        self._own_client = client

    @property
    def client(self) -> Client:
        """Who asks."""
        from murmura.client import newest

        return self._own_client or newest()

    def _served_name(self) -> str:
        raise NotImplementedError

    def sample(
        self,
        prompts: list[str] | str,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: list[str] | None = None,
    ) -> list[str]:
        """Continue each prompt. Costs no privacy.

        Args:
            prompts: one text or several.
            temperature: 0 takes the likeliest token.
            max_new_tokens: most tokens to make for each.
            top_p: nucleus.
            seed: makes sampling repeatable; each prompt uses seed plus its index.
            stop: texts that end an output.

        Returns:
            The continuations, without the prompts, in the order of the prompts.
        """
        from murmura.api.inference.v1 import inference_service_pb2 as messages

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            return []
        options = _options(temperature, max_new_tokens, top_p, seed, stop)
        request = messages.BatchGenerateRequest(model=self._served_name(), prompts=texts, options=options)
        answers: dict[int, str] = {}
        for answer in self._restartable("BatchGenerate", request):
            if answer.HasField("error"):
                raise MurmuraError(answer.error.message)
            answers[answer.index] = answer.completion.text
        return [answers[index] for index in range(len(texts))]

    def stream(
        self,
        prompt: str,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a prompt, piece by piece as it is made."""
        from murmura.api.inference.v1 import inference_service_pb2 as messages

        request = messages.StreamGenerateRequest(
            request=messages.GenerateRequest(
                model=self._served_name(),
                prompt=prompt,
                options=_options(temperature, max_new_tokens, 1.0, seed, None),
            )
        )
        for piece in self.client.stub("inference").stream("StreamGenerate", request):
            if piece.text:
                yield piece.text

    def _restartable(self, method: str, request: Any) -> list[Any]:
        """Collect a stream; sampling is free, so it starts over when the service is being restarted."""
        import time

        from murmura.errors import Unreachable

        stub, patience = self.client.stub("inference"), self.client.connection.patience_s
        deadline = time.monotonic() + patience
        while True:
            try:
                return list(stub.stream(method, request))
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1.0)


class Served(Sampler):
    """Something that the inference service knows by name.

    Args:
        name: `adapters/<id>` or `baseModels/<id>`.
        client: who asks; by default the client made last.
    """

    def __init__(self, name: str, client: Client | None = None) -> None:
        super().__init__(client)
        self.name = name

    def _served_name(self) -> str:
        return self.name


def _options(temperature: float, max_new_tokens: int, top_p: float, seed: int | None, stop: list[str] | None) -> Any:
    from murmura.api.inference.v1 import inference_pb2

    return inference_pb2.SamplingOptions(
        temperature=temperature, max_tokens=max_new_tokens, top_p=top_p, seed=seed, stop=stop or []
    )
