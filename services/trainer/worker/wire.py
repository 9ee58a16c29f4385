"""The worker's wires: its two services, its token, its patience.

Services may be restarted while a worker runs; whatever it asks, it asks again until they are back or its patience
ends. Its token lives for minutes and is replaced by the answer of each heartbeat.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from services.common.tls import worker_channel
from services.common.upstream import MESSAGE_LIMIT

PATIENCE_S = 600.0
_WAIT_S = 1.0
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
T = TypeVar("T")


@dataclass
class Token:
    """The job token as it stands.

    Attributes:
        text: the newest one.
        path: where the launcher leaves one.
    """

    text: str
    path: Path

    @classmethod
    def read(cls, path: Path) -> Token:
        """Read the token that the launcher left."""
        return cls(path.read_text().strip(), path)

    def read_again(self) -> None:
        """Take what the launcher has left, if it is still there."""
        with contextlib.suppress(OSError):
            self.text = self.path.read_text().strip()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what proves who calls."""
        return (("authorization", f"Bearer {self.text}"),)


def connect(endpoint: str, service: str) -> grpc.Channel:
    """Open a channel to a service: with TLS, and to that service only, where the trainer named an authority."""
    if authority := os.environ.get("MURMURA_TLS_AUTHORITY"):
        return worker_channel(endpoint, service, Path(authority), os.environ["MURMURA_TLS_DOMAIN"], _OPTIONS)
    return grpc.insecure_channel(endpoint, options=_OPTIONS)


def patiently(attempt: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Make a call, again and again while the service is away.

    Raises:
        grpc.RpcError: any refusal at once; an absence once the patience has ended.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return attempt()
        except grpc.RpcError as error:
            status: Any = error
            if status.code() not in _PASSING or time.monotonic() > deadline:
                raise
        time.sleep(_WAIT_S)
