"""`make bench-inference`: what access control, isolation and provenance cost beside the engine they stand before.

One random Llama with adapters, the same prompts, three ways to it: vLLM's AsyncLLM called in process, Murmura's
inference service, and vLLM's own HTTP server. All three run at once and take turns, so that what the machine does
meanwhile hits each alike; engine arguments and environment are the same. Prints a table for people on standard error
and one JSON line on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from murmura.api.inference.v1 import inference_pb2, inference_service_pb2_grpc
from murmura.api.inference.v1 import inference_service_pb2 as pb
from services.common.tokens import mint
from services.inference.engine import EngineSettings
from services.inference.vllm_engine import set_environment
from tests.bench.load import Seen, drive, later, over, pooled
from tests.support.inference_process import deploy
from tests.support.ports import free_port
from tests.support.random_models import make_adapter, make_base, publish

MODEL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
SETTINGS = {"max_context": 256, "max_adapters": 8, "max_resident_adapters": 8, "max_rank": 16}
WORDS = 32_000
TOKENS = 64  # of a prompt, and of an output
ADAPTERS = 8
# Rounds and requests of each, by streams.
ROUNDS = {1: 12, 16: 3, 64: 3}
REQUESTS = {1: 1, 16: 32, 64: 64}
# A first token alone differs by milliseconds from way to way, and by far more from prompt to prompt: many prompts, each
# sent every way in turn and left after its first token.
FIRSTS = 100
_START_S = 300
_prompts = random.Random(5)
_console = Console(stderr=True)


def requests(count: int, adapters: int = 1) -> list[tuple[str, int]]:
    """Return requests that were never sent before; the token that starts a text is one of a prompt's."""
    return [("".join(_prompts.choices(string.ascii_letters, k=TOKENS - 1)), n % adapters) for n in range(count)]


class Bare:
    """AsyncLLM in a process of its own, driven from within."""

    def __init__(self, base: Path, adapters: list[Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bare_engine"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        paths = [str(path) for path in adapters]
        self._ask({"model": str(base), "adapters": paths, "settings": SETTINGS, "max_tokens": TOKENS})

    async def measure(self, streams: int, work: list[tuple[str, int]], *, leave: bool = False) -> Seen:
        """Send a round."""
        asked = {"streams": streams, "requests": work, "leave": leave}
        return Seen(**await asyncio.to_thread(self._ask, asked))

    async def close(self) -> None:
        """Close connections: there are none."""

    def kill(self) -> None:
        """End the process, and the engine with it."""
        self._process.kill()

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("{"):
                found: dict[str, Any] = json.loads(answer)
                return found
        raise RuntimeError("the bare engine ended")


class Murmura:
    """The inference service, called over gRPC."""

    def __init__(self, root: Path, base: Path, adapters: list[Path]) -> None:
        root.mkdir()
        trainer = Ed25519PrivateKey.generate()
        for number, adapter in enumerate(adapters):
            publish(root / "artifacts", f"adapters/a{number}", adapter, trainer)
        settings = {f"ENGINE_{name.upper()}": str(value) for name, value in SETTINGS.items()}
        self._service = deploy(root, "vllm", base, trainer, **settings)
        self._channel: Any = None

    async def measure(self, streams: int, work: list[tuple[str, int]], *, leave: bool = False) -> Seen:
        """Send a round."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._service.port}")
        stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        token = mint(self._service.key, "deployment", "ana@local", ["analyst"], 600)
        metadata = (("authorization", f"Bearer {token}"),)
        options = inference_pb2.SamplingOptions(temperature=0, max_tokens=TOKENS)

        async def send(prompt: str, adapter: int) -> AsyncGenerator[int, None]:
            asked = pb.GenerateRequest(model=f"adapters/a{adapter}", prompt=prompt, options=options)
            call = stub.StreamGenerate(pb.StreamGenerateRequest(request=asked), metadata=metadata)
            try:
                async for piece in call:
                    yield piece.usage.completion_tokens
            finally:
                call.cancel()

        return await drive(streams, work, send, leave=leave)

    async def close(self) -> None:
        """Close connections."""
        if self._channel is not None:
            await self._channel.close()

    def kill(self) -> None:
        """End the service, and the engine with it."""
        self._service.process.kill()


class Http:
    """vLLM's own server, its completions streamed as server-sent events."""

    def __init__(self, root: Path, base: Path, adapters: list[Path]) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        settings = EngineSettings(**SETTINGS)  # type: ignore[arg-type]
        arguments = {
            "host": "127.0.0.1",
            "port": port,
            "served-model-name": "base",
            "max-model-len": settings.max_context,
            "max-num-seqs": settings.max_running,
            "max-loras": settings.max_adapters,
            "max-cpu-loras": settings.max_resident_adapters,
            "max-lora-rank": settings.max_rank,
        }
        on_gpu = bool(shutil.which("nvidia-smi"))
        arguments |= {"dtype": "bfloat16"} if on_gpu else {"dtype": "float32", "distributed-executor-backend": "uni"}
        # The CPU wheel's `vllm serve` looks for a package of another name; this is what it runs.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
        command += [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        command += ["--enable-lora", "--disable-log-stats", "--disable-uvicorn-access-log"]
        command += [] if on_gpu else ["--enforce-eager"]
        command += ["--lora-modules", *(f"a{number}={path}" for number, path in enumerate(adapters))]
        self._log = root.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._session: Any = None

    def wait(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self._url}/health"):
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(self._log.read_text()[-2000:])

    async def measure(self, streams: int, work: list[tuple[str, int]], *, leave: bool = False) -> Seen:
        """Send a round."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        async def send(prompt: str, adapter: int) -> AsyncGenerator[int, None]:
            body = {"model": f"a{adapter}", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
            body["stream_options"] = {"include_usage": True}
            async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        usage = json.loads(line[6:]).get("usage")
                        yield usage["completion_tokens"] if usage else 0

        return await drive(streams, work, send, leave=leave)

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    def kill(self) -> None:
        """End the server and its engine."""
        os.killpg(self._process.pid, signal.SIGKILL)


async def by_turns(
    ways: dict[str, Any], streams: int, count: int, rounds: int, *, leave: bool
) -> dict[str, list[Seen]]:
    """Send each round's requests every way, a different way first each time."""
    seen: dict[str, list[Seen]] = {name: [] for name in ways}
    for turn in range(rounds):
        if turn % max(1, rounds // 10) == 0:
            _console.print(f"{streams} streams: round {turn + 1} of {rounds}", style="dim")
        names, work = list(ways), requests(count)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seen[name].append(await ways[name].measure(streams, work, leave=leave))
    return seen


async def compare(ways: dict[str, Any], table: Table) -> dict[str, Any]:
    """Measure the three ways, and eight adapters beside one."""
    for way in ways.values():
        await way.measure(16, requests(16, ADAPTERS))
    found: dict[str, Any] = {"streams": {}}
    for streams, count in REQUESTS.items():
        seen = await by_turns(ways, streams, count, ROUNDS[streams], leave=False)
        # Among many streams a first token waits for its turn, whatever the way; there the same rounds tell.
        firsts = await by_turns(ways, 1, 1, FIRSTS, leave=True) if streams == 1 else seen
        figures = {name: (pooled(seen[name])[0], *pooled(firsts[name])[1:]) for name in ways}
        bare, ours, http = (seen[name] for name in ("bare", "Murmura", "HTTP"))
        for name, (rate, p50, p99) in figures.items():
            ratio = f"{over(seen[name], bare):.3f}"
            table.add_row(f"{streams}: {name}", f"{rate:.0f}", ratio, f"{p50:.1f}", f"{p99:.1f}")
        found["streams"][str(streams)] = {
            "tokens_over_bare": round(over(ours, bare), 3),
            "tokens_over_http": round(over(ours, http), 3),
            "ttft_p50_ms_over_bare": round(later(firsts["Murmura"], firsts["bare"]), 2),
            "ttft_p99_over_http": round(figures["Murmura"][2] / figures["HTTP"][2], 3),
        }
    one, eight = [], []
    for turn in range(ROUNDS[16]):
        _console.print(f"eight adapters and one: round {turn + 1} of {ROUNDS[16]}", style="dim")
        one.append(await ways["Murmura"].measure(16, requests(REQUESTS[16])))
        eight.append(await ways["Murmura"].measure(16, requests(REQUESTS[16], ADAPTERS)))
    for name, rounds in (("one adapter", one), ("eight adapters", eight)):
        rate, p50, p99 = pooled(rounds)
        table.add_row(f"16: Murmura, {name}", f"{rate:.0f}", "", f"{p50:.1f}", f"{p99:.1f}")
    return found | {"eight_adapters_over_one": round(over(eight, one), 3)}


def main() -> int:
    """Run the benchmark; returns the exit code."""
    table = Table(title=f"{TOKENS} prompt and {TOKENS} output tokens a request")
    table.add_column("streams: way", no_wrap=True)
    for heading in ("tokens/s", "/ bare", "first p50, ms", "first p99, ms"):
        table.add_column(heading, justify="right")
    set_environment(EngineSettings())
    directory = Path(tempfile.mkdtemp(prefix="bench-inference-"))
    ways: dict[str, Any] = {}
    try:
        _console.print("making a model and starting three engines", style="dim")
        base = make_base(directory / "base", words=WORDS, num_key_value_heads=4, initializer_range=0.02, **MODEL)
        adapters = [make_adapter(base, directory / f"a{n}", n, SETTINGS["max_rank"]) for n in range(ADAPTERS)]
        ways["bare"] = Bare(base, adapters)
        ways["Murmura"] = Murmura(directory / "murmura", base, adapters)
        http = ways["HTTP"] = Http(directory / "http", base, adapters)
        http.wait()

        async def run() -> dict[str, Any]:
            try:
                return await compare(ways, table)
            finally:
                for way in ways.values():
                    await way.close()

        found = asyncio.run(run())
    finally:
        for way in ways.values():
            way.kill()
        shutil.rmtree(directory)
    _console.print(table)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
