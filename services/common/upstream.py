"""Calls from one service to another: its own token, bounded waits, and refusals that pass through unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc

from services.common.errors import from_upstream

MESSAGE_LIMIT = 4 << 20
_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # Every write of ours carries a request id, so sending it again is safe.
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Upstream:
    """Another service.

    Args:
        service: its name, for errors.
        endpoint: `host:port`.
        token_file: holds the token that this service shows; read at each call, so that renewal needs no restart.
    """

    def __init__(self, service: str, endpoint: str, token_file: Path) -> None:
        self._service = service
        self._token_file = token_file
        self.channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)

    async def call(self, method: Any, request: Any, timeout_s: float = 20.0) -> Any:
        """Make a unary call.

        Args:
            method: a stub's method.
            request: a read, or a write that carries a request id.
            timeout_s: deadline, retries included.

        Raises:
            MurmuraError: the other's refusal, or DEPENDENCY_UNAVAILABLE.
        """
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata(), wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise from_upstream(error, self._service) from None

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token_file.read_text().strip()}"),)
