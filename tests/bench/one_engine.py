"""One engine behind the inference service and vLLM's own HTTP server at once, and called in process as well.

`make bench-inference` compares what stands before an engine. Two engines of the same kind differ by up to a tenth for
as long as they run, more than any of the three ways to one, so all ways lead to the same one here: its batches, its
adapters, its share of the machine. Engine and service start as `python -m services.inference` starts them; the HTTP
server is the application that `vllm serve` runs, on the same loop, given the engine's client that it would else make.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.common.loop import run
from services.inference.__main__ import serve_with, start_engines
from services.inference.settings import InferenceSettings
from services.inference.vllm_engine import VllmEngine
from tests.bench.load import Seen, drive
from tests.support.ports import free_port

LINE = 1 << 20  # bytes, of a round and of what was seen


class Shared:
    """An engine, and the adapters that the service has loaded into it.

    Attributes:
        llm: vLLM's client of the engine.
        adapters: vLLM's names for them, keyed by the last part of the service's.
    """

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self.llm: Any = engine._llm
        self.adapters: dict[str, Any] = {}
        self._add = engine.add_adapter
        engine.add_adapter = self._add_adapter  # type: ignore[method-assign]

    async def _add_adapter(self, adapter_id: int, name: str, directory: Path) -> None:
        await self._add(adapter_id, name, directory)
        self.adapters[name.rpartition("/")[2]] = self._engine._adapters[adapter_id]

    async def measure(self, work: dict[str, Any]) -> Seen:
        """Send a round to the engine itself."""
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        how = SamplingParams(max_tokens=work["max_tokens"], temperature=0, output_kind=RequestOutputKind.DELTA)
        # A bare engine takes tokens; whoever calls it has made them.
        known = {prompt: await self._engine.tokenize(prompt) for prompt, _ in work["requests"]}
        numbers = itertools.count()

        async def send(prompt: str, adapter: int) -> AsyncGenerator[int, None]:
            tokens = tokens_input(known[prompt], cache_salt="bare")
            number = f"bare-{next(numbers)}"
            outputs = self.llm.generate(tokens, how, number, lora_request=self.adapters[f"a{adapter}"])
            async with aclosing(outputs):
                async for output in outputs:
                    yield len(output.outputs[0].token_ids)

        return await drive(work["streams"], work["requests"], send, leave=work["leave"])

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each line, a round for the engine itself, with a line of what was seen."""
        async for line in reader:
            seen = await self.measure(json.loads(line))
            writer.write(json.dumps(asdict(seen)).encode() + b"\n")
            await writer.drain()
        writer.close()

    @asynccontextmanager
    async def http(self, base: str) -> AsyncIterator[int]:
        """Serve it by vLLM's own server; yields the port."""
        import uvicorn
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.entrypoints.launchers.launcher import NoSignalServer
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        told = ["--model", base, "--served-model-name", "base", "--disable-log-stats"]
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(told)
        tasks = await self.llm.get_supported_tasks()
        application = build_app(args, tasks, self.llm.model_config)
        await init_app_state(self.llm, application.state, args, tasks)
        application.state.openai_serving_models.lora_requests = self.adapters
        port = free_port()
        config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="warning", access_log=False)
        server = NoSignalServer(config)
        serving = asyncio.create_task(server.serve())
        try:
            yield port
        finally:
            server.should_exit = True
            await serving


async def main() -> int:
    """Serve until told to stop."""
    settings = InferenceSettings.load()
    engines, _ = await start_engines(settings)
    (engine,), (base,) = engines.values(), settings.base_models.values()
    assert isinstance(engine, VllmEngine)
    shared = Shared(engine)
    try:
        async with (
            await asyncio.start_server(shared.answer, "127.0.0.1", limit=LINE) as bare,
            shared.http(base) as port,
        ):
            for name, number in {"http": port, "bare": bare.sockets[0].getsockname()[1]}.items():
                (settings.state_dir / f"listening_{name}").write_text(str(number))
            return await serve_with(engines, settings, "A benchmark.")
    finally:
        await engine.stop()


if __name__ == "__main__":
    run(main())
