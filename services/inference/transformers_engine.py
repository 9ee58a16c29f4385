"""The engine where vLLM has no wheel: transformers and PEFT, a token for each request in turn.

One thread owns the model, so an adapter is added between two tokens of other requests and nothing
is ever shared. Requests take turns token by token, each with its own key-value cache: slow beside
vLLM's batches, yet streams flow, nobody waits for a long output to end, and greedy output is that
of transformers with PEFT because it is that.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.inference.decoding import TextOut, draw
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
    joined,
    warm_up,
)

# Of a model that sets no bound itself, such as one with ALiBi.
_CONTEXT = 2048
T = TypeVar("T")


class _Request:
    """A request under way: what is left to feed, its cache, and where its pieces go."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        adapter_id: int | None,
        put: Callable[[Delta | Exception], None],
        text: TextOut,
    ) -> None:
        self.feed = list(prompt)
        self.sampling = sampling
        self.adapter_id = adapter_id
        self.put = put
        self.text = text
        self.made = 0
        self.cache: Any = None
        self.aborted = False
        self.random = torch.Generator()
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(sampling.seed)


class TransformersEngine:
    """Transformers behind the engine protocol.

    Args:
        model: a directory, or a hub id whose files are on this machine.
        settings: limits and types.
    """

    name = "transformers"
    structured = False

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._path = model
        self._settings = settings
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._active: list[_Request] = []
        self._adapters: set[int] = set()
        self._current: int | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._ends: frozenset[int] = frozenset()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="transformers-engine", daemon=True)
        self.context_length = 0

    async def start(self) -> None:
        """Load the base model and make one token."""
        self._thread.start()
        await self._do(self._load)
        await warm_up(self)

    async def add_adapter(self, adapter_id: int, name: str, directory: Path) -> None:
        """Add an adapter between two tokens."""

        def add() -> None:
            if adapter_id in self._adapters:
                return
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(str(directory), adapter_name=str(adapter_id))
            else:
                self._model = PeftModel.from_pretrained(self._model, str(directory), adapter_name=str(adapter_id))
            self._model.eval()
            self._adapters.add(adapter_id)
            self._current = -1  # whichever is set now, choose again

        await self._do(add)

    async def remove_adapter(self, adapter_id: int) -> None:
        """Remove an adapter."""

        def remove() -> None:
            if adapter_id not in self._adapters:
                return
            self._adapters.discard(adapter_id)
            if self._adapters:
                self._model.delete_adapter(str(adapter_id))
            else:
                self._model = self._model.unload()
            self._current = -1

        await self._do(remove)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter_id: int | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt. The salt is not needed: no cache is shared here."""
        if sampling.json_schema or sampling.regex:
            raise EngineRefused("json_schema" if sampling.json_schema else "regex", "takes vLLM")
        if adapter_id is not None and adapter_id not in self._adapters:
            raise KeyError(adapter_id)
        await self.check_health()
        if self._settings.max_queue and len(self._active) >= self._settings.max_queue:
            raise EngineFull
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Delta | Exception] = asyncio.Queue()

        def put(piece: Delta | Exception) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        request = _Request(prompt, sampling, adapter_id, put, TextOut(self._tokenizer, sampling.stop))
        self._inbox.put(lambda: self._active.append(request))
        made: list[Delta] = []
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                made.append(piece)
                if piece.finish is not None or not sampling.whole:
                    yield joined(made)
                    made.clear()
                if piece.finish is not None:
                    return
        finally:
            request.aborted = True

    async def tokenize(self, text: str) -> list[int]:
        """Return token ids."""
        return await encode(self._tokenizer, text)

    def running(self) -> int:
        """Return how many requests are under way."""
        return len(self._active)

    async def check_health(self) -> None:
        """Raise EngineDead once the thread has ended."""
        if not self._thread.is_alive():
            raise EngineDead

    async def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._inbox.put(lambda: None)
        await asyncio.to_thread(self._thread.join, 10)

    async def _do(self, work: Callable[[], T]) -> T:
        """Run something in the thread that owns the model, between two tokens."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        self._inbox.put(run)
        waiting = asyncio.wrap_future(done)
        # Whoever leaves before the end hears of no failure.
        waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        while True:
            try:
                # Shielded: a wait that ends early would cancel the future under the thread, which dies of that.
                return await asyncio.wait_for(asyncio.shield(waiting), 1.0)
            except TimeoutError:
                await self.check_health()

    def _load(self) -> None:
        dtype = self._settings.dtype
        if dtype == "auto":
            dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        self._tokenizer = AutoTokenizer.from_pretrained(self._path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(self._path, dtype=getattr(torch, dtype), local_files_only=True)
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        ends = model.generation_config.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or [])
        own = int(getattr(model.config.get_text_config(), "max_position_embeddings", _CONTEXT))
        self.context_length = min(own, self._settings.max_context or own)

    def _run(self) -> None:
        """Own the model: run what is in the inbox, then one token for each request, and again."""
        try:
            while not self._stopping:
                self._read_inbox()
                self._active = [request for request in self._active if not request.aborted]
                for request in list(self._active):
                    try:
                        going_on = self._step(request)
                    except Exception as error:
                        # Only this request fails; its text does not travel with the exception.
                        request.put(RuntimeError(type(error).__name__))
                        going_on = False
                    if not going_on:
                        self._active.remove(request)
        finally:
            for request in self._active:
                request.put(EngineDead())

    def _read_inbox(self) -> None:
        wait = not self._active
        while not self._stopping:
            try:
                work = self._inbox.get(block=wait)
            except queue.Empty:
                return
            work()
            wait = False

    @torch.inference_mode()
    def _step(self, request: _Request) -> bool:
        """Make one token; returns whether there is more to come."""
        self._choose(request.adapter_id)
        tokens = torch.tensor([request.feed], device=self._model.device)
        output = self._model(input_ids=tokens, past_key_values=request.cache, use_cache=True, logits_to_keep=1)
        request.cache = output.past_key_values
        token = draw(output.logits[0, -1], request.sampling, request.random)
        request.feed = [token]
        request.made += 1
        ended = token in self._ends
        text, stopped = request.text.push(None if ended else token)
        finish = None
        if ended or stopped:
            finish = Finish.STOP
        elif request.made >= request.sampling.max_tokens:
            finish = Finish.LENGTH
        if finish and not stopped:
            text += request.text.rest()
        request.put(Delta(text, 1, finish, self._likely(output.logits[0, -1], token, request.sampling.logprobs)))
        return finish is None

    def _likely(self, logits: torch.Tensor, token: int, most: int) -> tuple[Likely, ...]:
        if not most:
            return ()
        scores = logits.float().log_softmax(-1)
        best = scores.topk(most)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        likeliest = tuple(Likely(self._tokenizer.decode([one]), score) for one, score in pairs)
        return (Likely(self._tokenizer.decode([token]), float(scores[token]), likeliest),)

    def _choose(self, adapter_id: int | None) -> None:
        if adapter_id == self._current or not isinstance(self._model, PeftModel):
            return
        if adapter_id is None:
            self._model.base_model.disable_adapter_layers()
        else:
            self._model.base_model.enable_adapter_layers()
            self._model.set_adapter(str(adapter_id), inference_mode=True)
        self._current = adapter_id
