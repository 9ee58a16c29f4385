"""vLLM's AsyncLLM with nothing around it, in a process of its own: the peer of `make bench-inference`.

The engine is made as the service makes it, and called directly. Reads JSON lines, the model and its adapters first,
then rounds; prints a JSON line for each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.inference.engine import EngineSettings
from services.inference.vllm_engine import VllmEngine
from tests.bench.load import drive


async def main() -> None:
    """Serve rounds until standard input ends."""
    job = json.loads(sys.stdin.readline())
    engine = VllmEngine(job["model"], EngineSettings(**job["settings"]))
    await engine.start()
    from vllm.inputs.engine import tokens_input
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    llm: Any = engine._llm
    adapters = [LoRARequest(Path(path).name, 1 + n, path) for n, path in enumerate(job["adapters"])]
    for adapter in adapters:
        await llm.add_lora(adapter)
    how = SamplingParams(max_tokens=job["max_tokens"], temperature=0, output_kind=RequestOutputKind.DELTA)
    numbers = itertools.count()

    async def send(prompt: str, adapter: int) -> AsyncGenerator[int, None]:
        tokens = tokens_input(known[prompt])
        async with aclosing(llm.generate(tokens, how, str(next(numbers)), lora_request=adapters[adapter])) as outputs:
            async for output in outputs:
                yield len(output.outputs[0].token_ids)

    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        # A bare engine takes tokens; whoever calls it has made them.
        known = {prompt: await engine.tokenize(prompt) for prompt, _ in work["requests"]}
        seen = await drive(work["streams"], work["requests"], send, leave=work["leave"])
        print(json.dumps(asdict(seen)), flush=True)
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main())
