"""Three ways to one engine: called in process, behind Murmura's service, behind vLLM's own HTTP server.

What `make bench-inference` compares; all three lead to `tests.bench.one_engine`. Each is asked for rounds of requests;
a request is a prompt and the number of an adapter.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.inference.v1 import inference_pb2, inference_service_pb2_grpc
from murmura.api.inference.v1 import inference_service_pb2 as pb
from services.common.tokens import mint
from tests.bench.load import Seen, drive
from tests.bench.one_engine import LINE
from tests.support.inference_process import Service, deploy
from tests.support.random_models import publish

TOKENS = 64  # of a prompt, and of an output


def start(root: Path, base: Path, adapters: list[Path], settings: dict[str, Any]) -> Service:
    """Start the engine with what stands before it; the adapters can be asked for as `adapters/a<number>`."""
    root.mkdir()
    trainer = Ed25519PrivateKey.generate()
    for number, adapter in enumerate(adapters):
        publish(root / "artifacts", f"adapters/a{number}", adapter, trainer)
    variables = {f"ENGINE_{name.upper()}": str(value) for name, value in settings.items()}
    # What an adapter says before its first request is nobody's wait here, and slow with a large model on a CPU.
    variables["ADAPTER_CANARY_TOKENS"] = "0"
    return deploy(root, "vllm", base, trainer, module="tests.bench.one_engine", **variables)


def _port(service: Service, way: str) -> int:
    return int((service.root / "state" / f"listening_{way}").read_text())


class Bare:
    """AsyncLLM, driven in the engine's client process."""

    def __init__(self, service: Service) -> None:
        self._port = _port(service, "bare")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def measure(self, streams: int, work: list[tuple[str, int]], *, leave: bool = False) -> Seen:
        """Send a round."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=LINE)
        reader, writer = self._streams
        asked = {"streams": streams, "requests": work, "leave": leave, "max_tokens": TOKENS}
        writer.write(json.dumps(asked).encode() + b"\n")
        return Seen(**json.loads(await reader.readline()))

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()


class Murmura:
    """The inference service, called over gRPC."""

    def __init__(self, service: Service) -> None:
        self._service = service
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
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()


class Http:
    """vLLM's own server, its completions streamed as server-sent events."""

    def __init__(self, service: Service) -> None:
        self._url = f"http://127.0.0.1:{_port(service, 'http')}"
        self._session: Any = None

    async def measure(self, streams: int, work: list[tuple[str, int]], *, leave: bool = False) -> Seen:
        """Send a round."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        # The service keeps what its tenants have sent apart by a salt; here it makes a prompt new to each way.
        options = {"max_tokens": TOKENS, "temperature": 0, "stream": True, "cache_salt": "http"}
        options["stream_options"] = {"include_usage": True}

        async def send(prompt: str, adapter: int) -> AsyncGenerator[int, None]:
            body = {"model": f"a{adapter}", "prompt": prompt, **options}
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
