"""Stands for a worker where a test wants more of them than this machine could run: it calls, and trains nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save

from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from murmura.api.trainer.v1 import trainer_service_pb2_grpc

ADAPTER = {
    "adapter_model.safetensors": save({"base.lora_A.weight": np.zeros((2, 2), np.float32)}),
    "adapter_config.json": json.dumps({"peft_type": "LORA"}).encode(),
}
PATIENCE_S = 120.0
FAILED = 1


class StandIns:
    """Workers of all pods.

    Attributes:
        uploaded: when each job's upload was sent, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.uploaded: dict[str, float] = {}
        self._stub: Any = None

    async def __call__(self, told: dict[str, str]) -> int:
        """Do what a worker does; returns its exit code."""
        if self._stub is None:
            options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
            channel = grpc.aio.insecure_channel(told["MURMURA_TRAINER_ENDPOINT"], options=options)
            self._stub = trainer_service_pb2_grpc.WorkerServiceStub(channel)
        try:
            await self._work(told["MURMURA_JOB"], int(told["MURMURA_ATTEMPT"]), Path(told["MURMURA_POD_TOKEN_FILE"]))
        except grpc.RpcError:
            return FAILED
        return 0

    async def _work(self, job: str, attempt: int, token: Path) -> None:
        proof = await asyncio.to_thread(token.read_text)
        exchanged = pb.ExchangeTokenRequest(job=job, pod_token=proof)
        answer = await patiently(lambda: self._stub.ExchangeToken(exchanged, timeout=60))
        metadata = (("authorization", f"Bearer {answer.job_token}"),)
        asked = pb.GetAssignmentRequest(job=job)
        answer = await patiently(lambda: self._stub.GetAssignment(asked, metadata=metadata, timeout=60))
        steps = answer.assignment.mechanism.steps
        beat = pb.HeartbeatRequest(job=job, attempt=attempt, completed_steps=steps)
        await patiently(lambda: self._stub.Heartbeat(beat, metadata=metadata, timeout=60))

        async def upload() -> Any:
            yield pb.UploadAdapterRequest(job=job, attempt=attempt, completed_steps=steps)
            for name, data in ADAPTER.items():
                yield pb.UploadAdapterRequest(file_name=name, data=data)
            self.uploaded[job] = time.monotonic()

        await patiently(lambda: self._stub.UploadAdapter(upload(), metadata=metadata, timeout=60))


async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call, again while the service is away."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or time.monotonic() > end:
                raise
        await asyncio.sleep(0.2)
