"""Three ways to one engine: called in process, behind Murmura's service, behind vLLM's own HTTP server.

What `make bench-inference` compares. Each starts processes of its own and is asked for rounds of requests; a request is
a prompt and the number of an adapter.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.inference.v1 import inference_pb2, inference_service_pb2_grpc
from murmura.api.inference.v1 import inference_service_pb2 as pb
from services.common.tokens import mint
from services.inference.engine import EngineSettings
from tests.bench.load import Seen, drive
from tests.support.inference_process import deploy
from tests.support.ports import free_port
from tests.support.random_models import publish

TOKENS = 64  # of a prompt, and of an output
_START_S = 300


class Bare:
    """AsyncLLM in a process of its own, driven from within."""

    def __init__(self, base: Path, adapters: list[Path], settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bare_engine"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        paths = [str(path) for path in adapters]
        self._ask({"model": str(base), "adapters": paths, "settings": settings, "max_tokens": TOKENS})

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

    def __init__(self, root: Path, base: Path, adapters: list[Path], settings: dict[str, Any]) -> None:
        root.mkdir()
        trainer = Ed25519PrivateKey.generate()
        for number, adapter in enumerate(adapters):
            publish(root / "artifacts", f"adapters/a{number}", adapter, trainer)
        variables = {f"ENGINE_{name.upper()}": str(value) for name, value in settings.items()}
        # What an adapter says before its first request is nobody's wait here, and slow with a large model on a CPU.
        self._service = deploy(root, "vllm", base, trainer, ADAPTER_CANARY_TOKENS="0", **variables)
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

    @property
    def process(self) -> int:
        """The service's process; the engine's is a child of it."""
        return self._service.process.pid

    async def close(self) -> None:
        """Close connections."""
        if self._channel is not None:
            await self._channel.close()

    def kill(self) -> None:
        """End the service, and the engine with it."""
        self._service.process.kill()


class Http:
    """vLLM's own server, its completions streamed as server-sent events."""

    def __init__(self, root: Path, base: Path, adapters: list[Path], settings: dict[str, Any]) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        told = EngineSettings(**settings)
        arguments = {
            "host": "127.0.0.1",
            "port": port,
            "served-model-name": "base",
            "max-model-len": told.max_context,
            "max-num-seqs": told.max_running,
            "max-loras": told.max_adapters,
            "max-cpu-loras": told.max_resident_adapters,
            "max-lora-rank": told.max_rank,
        }
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            arguments |= {"dtype": "bfloat16", "gpu-memory-utilization": told.gpu_memory}
        else:
            arguments |= {"dtype": "float32", "distributed-executor-backend": "uni"}
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

    @property
    def process(self) -> int:
        """The server's process; the engine's is a child of it."""
        return self._process.pid

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    def kill(self) -> None:
        """End the server and its engine."""
        os.killpg(self._process.pid, signal.SIGKILL)
