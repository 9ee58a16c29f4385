"""What every model can do: continue a prompt. That is post-processing: it costs no privacy, however often."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from murmura.api.inference.v1 import inference_pb2, inference_service_pb2
    from murmura.calls import Call
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

    def served_name(self) -> str:
        """Return its name at the inference service."""
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
            temperature: up to 2; 0 takes the likeliest token.
            max_new_tokens: most tokens to make for each.
            top_p: nucleus.
            seed: makes sampling repeatable; each prompt uses seed plus its index.
            stop: texts that end an output.

        Returns:
            The continuations, without the prompts, in the order of the prompts.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        made = self.completions(texts, sampling_options(temperature, max_new_tokens, top_p, seed, stop))
        return [completion.text for completion in made]

    def generate_dataset(
        self,
        n: int,
        *,
        to: str | Path,
        prompt: str | Sequence[str] = "",
        temperature: float = 1.0,
        max_new_tokens: int = 128,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: list[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a synthetic dataset: records with `prompt` and `text`, the prompt and what followed it.

        Costs no privacy, however many records. The model's privacy statement goes with the file: in the metadata of
        Parquet (key `murmura`), or beside JSON Lines as `<name>.privacy.json`. If it is interrupted, the file holds the
        records that were done.

        Args:
            n: how many records.
            to: the file, `*.parquet` or `*.jsonl`.
            prompt: what each record begins with; of several, each in its turn.
            temperature: up to 2; 0 takes the likeliest token.
            max_new_tokens: most tokens to make for each.
            top_p: nucleus.
            seed: makes the dataset repeatable; each record uses seed plus its index.
            stop: texts that end a record.
            overwrite: take the place of a file that exists.

        Returns:
            The file.

        Raises:
            InvalidInput: if the file exists, or its name says no format.
        """
        from murmura.generation import generate

        options = sampling_options(temperature, max_new_tokens, top_p, seed, stop)
        return generate(self, n, prompt, Path(to), options, overwrite)

    def completions(
        self,
        prompts: Sequence[str],
        options: inference_pb2.SamplingOptions,
        offset: int = 0,
        seen: Callable[[int], None] = lambda count: None,
    ) -> list[inference_service_pb2.GenerateResponse]:
        """Continue prompts in one batch.

        Args:
            prompts: texts.
            options: how; a seed is used as seed plus offset plus index.
            offset: how many prompts there were before these.
            seen: called with how many are done, as they come.
        """
        from murmura.calls import models

        if not prompts:
            return []
        call = models.batch_generate(self.served_name(), prompts, options, offset)
        return models.in_order(self._restartable(call, seen), len(prompts))

    def stream(
        self,
        prompt: str,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a prompt, piece by piece as it is made."""
        from murmura.calls import models

        options = sampling_options(temperature, max_new_tokens, 1.0, seed, None)
        for piece in self.client.follow(models.stream_generate(self.served_name(), prompt, options)):
            if piece.text:
                yield piece.text

    def complete(self, prompt: str, **options: Any) -> inference_service_pb2.GenerateResponse:
        """Continue one prompt; returns the whole answer, with its privacy statement and why it ended.

        Args:
            prompt: a text.
            **options: fields of the contract's `SamplingOptions`, among them log-probabilities where they are granted.
        """
        from murmura.api.inference.v1 import inference_pb2
        from murmura.calls import models

        call = models.generate(self.served_name(), prompt, inference_pb2.SamplingOptions(**options))
        answer: inference_service_pb2.GenerateResponse = self.client.run(call)
        return answer

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, those that start one included."""
        from murmura.calls import models

        return int(self.client.run(models.count_tokens(self.served_name(), text)).tokens)

    def _restartable(self, call: Call, seen: Callable[[int], None]) -> list[Any]:
        """Collect a stream; sampling is free, so it starts over when the service is being restarted."""
        import time

        from murmura.errors import Unreachable

        deadline = time.monotonic() + self.client.connection.patience_s
        while True:
            try:
                answers = []
                for answer in self.client.follow(call):
                    answers.append(answer)
                    seen(len(answers))
                return answers
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

    def served_name(self) -> str:
        """Return its name at the inference service."""
        return self.name


def sampling_options(
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: list[str] | None = None,
) -> inference_pb2.SamplingOptions:
    """Return what `sample` takes as a message."""
    from murmura.api.inference.v1 import inference_pb2

    return inference_pb2.SamplingOptions(
        temperature=temperature, max_tokens=max_new_tokens, top_p=top_p, seed=seed, stop=stop or []
    )
