"""Calls from one service to another: its own identity, bounded waits, and refusals that pass through unchanged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc

from services.common.errors import dependency_unavailable, from_upstream
from services.common.files import token_in
from services.common.tls import FreshChannel

if TYPE_CHECKING:  # a worker takes a constant from here, and no settings
    from services.common.config import ServiceSettings

MESSAGE_LIMIT = 4 << 20
_TOKEN_BACK_S = 10.0
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
        settings: say what this service shows: its certificate where there is TLS, else the token of a file, which is
            read at each call, so that renewal needs no restart.
    """

    def __init__(self, service: str, endpoint: str, settings: ServiceSettings) -> None:
        self._service = service
        certificates = settings.certificates
        self._token_file = settings.service_token_file if certificates is None else None
        self.channel: Any = (
            grpc.aio.insecure_channel(endpoint, options=OPTIONS)
            if certificates is None
            else FreshChannel(endpoint, service, certificates, OPTIONS)
        )

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
        if self._token_file is None:
            return ()
        try:
            return (("authorization", f"Bearer {token_in(self._token_file)}"),)
        except ValueError:
            raise dependency_unavailable(
                self._service,
                f"This service cannot read the token that it shows to the {self._service}. Tell the operator; when it "
                "can, send the same request again.",
                retry_after_s=_TOKEN_BACK_S,
            ) from None
