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

from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.common.tls import worker_channel
from services.common.upstream import MESSAGE_LIMIT

PATIENCE_S = 600.0
_WAIT_S = 1.0
_EXCHANGE_TIMEOUT_S = 30.0
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Rows come by the mebibyte: a message in one frame, and what there is of it from the socket at once.
    ("grpc.http2.max_frame_size", MESSAGE_LIMIT),
    ("grpc.experimental.tcp_min_read_chunk_size", 1 << 20),
]
T = TypeVar("T")


@dataclass
class Token:
    """The job token as it stands.

    Attributes:
        text: the newest one.
        source: gets another one.
    """

    text: str
    source: Callable[[], str]

    @classmethod
    def read(cls, path: Path) -> Token:
        """Read the token that the launcher left, and will leave again."""
        return cls.of(lambda: path.read_text().strip())

    @classmethod
    def exchanged(cls, path: Path, job: str, trainer: Any) -> Token:
        """Exchange a pod's own token for one of the job.

        Args:
            path: where the cluster leaves the pod's, and a new one before that expires.
            job: `trainingJobs/<id>`.
            trainer: the WorkerService.
        """

        def exchange() -> str:
            request = pb.ExchangeTokenRequest(job=job, pod_token=path.read_text().strip())
            answer = patiently(lambda: trainer.ExchangeToken(request, timeout=_EXCHANGE_TIMEOUT_S))
            return str(answer.job_token)

        return cls.of(exchange)

    @classmethod
    def of(cls, source: Callable[[], str]) -> Token:
        """Return the first token of a source."""
        return cls(source(), source)

    def read_again(self) -> None:
        """Take another one, if there is one."""
        with contextlib.suppress(OSError, grpc.RpcError):
            self.text = self.source()

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
