"""TLS for servers and for calls between services, with certificates that may change while calls run.

A server asks for its certificate at each handshake. A client's channel keeps the one that it was made with, so the
channel is made anew once the files have changed, and the old one ends when its last call has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from services.common.certificates import Certificates, Material

# A call of one service to another has a deadline far below this; streams are a worker's, on channels of its own.
RETIRE_S = 120.0


def server_credentials(certificates: Certificates, of_services: bool) -> grpc.ServerCredentials:
    """Return what a port serves with.

    Args:
        certificates: this service's own.
        of_services: take calls only from who shows a certificate of the same authority. gRPC's Python knows "must" and
            "is not asked" and nothing in between, so services get a port apart from people and workers.
    """
    served = 0

    def configuration(material: Material) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(material.key, material.certificate)], material.authority if of_services else None
        )

    def newer() -> Any:
        nonlocal served
        material = certificates.current()
        if material.version == served:
            return None
        served = material.version
        return configuration(material)

    first = certificates.current()
    served = first.version
    return grpc.dynamic_ssl_server_credentials(configuration(first), newer, of_services)


def name_check(service: str, domain: str) -> list[tuple[str, str]]:
    """Return the channel options that make gRPC insist on the certificate of one service, wherever it listens."""
    return [("grpc.ssl_target_name_override", f"{service}.{domain}")]


def worker_channel(endpoint: str, service: str, authority: Path, domain: str, options: Sequence[Any]) -> grpc.Channel:
    """Open a channel for who has a token and no certificate.

    Args:
        endpoint: `host:port`.
        service: whom to expect there.
        authority: PEM file of the authority that signed that service's certificate.
        domain: of the names in certificates.
        options: more channel options.
    """
    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    return grpc.secure_channel(endpoint, credentials, [*options, *name_check(service, domain)])


class FreshChannel:
    """A channel of grpc.aio that shows the newest certificate; stubs take it for one.

    Args:
        endpoint: `host:port`.
        service: whom to expect there.
        certificates: this service's own.
        options: more channel options.
    """

    def __init__(self, endpoint: str, service: str, certificates: Certificates, options: Sequence[Any]) -> None:
        self._endpoint = endpoint
        self._certificates = certificates
        self._options = [*options, *name_check(service, certificates.domain)]
        self._version = 0
        self._channel: grpc.aio.Channel | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def unary_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """Return a unary method."""
        return self._method("unary_unary", method, codec)

    def unary_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """Return a method that answers with a stream."""
        return self._method("unary_stream", method, codec)

    def stream_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """Return a method that takes a stream."""
        return self._method("stream_unary", method, codec)

    def stream_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """Return a method that takes a stream and answers with one."""
        return self._method("stream_stream", method, codec)

    async def close(self) -> None:
        """Close the channel, and those that wait for their last call."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    def _method(self, kind: str, method: tuple[Any, ...], codec: dict[str, Any]) -> Callable[..., Any]:
        made: tuple[Any, Any] = (None, None)

        def call(*request: Any, **settings: Any) -> Any:
            nonlocal made
            channel = self._current()
            if made[0] is not channel:
                made = channel, getattr(channel, kind)(*method, **codec)
            return made[1](*request, **settings)

        return call

    def _current(self) -> grpc.aio.Channel:
        material = self._certificates.current()
        if self._channel is None or material.version != self._version:
            old = self._channel
            credentials = grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)
            self._channel = grpc.aio.secure_channel(self._endpoint, credentials, options=self._options)
            self._version = material.version
            if old is not None:
                task = asyncio.create_task(old.close(RETIRE_S))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
        return self._channel
