"""The life of a service: start, say that it serves, stop without dropping a call.

Every service runs the same server: interceptors in one order, message and time limits, health, reflection. What is
its own is a function that adds its handlers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from services.common.audit import Audit, AuditFile
from services.common.auth import Auth
from services.common.calls import CallInterceptor
from services.common.config import ServiceSettings
from services.common.interceptors import Interceptors
from services.common.logs import configure_logging
from services.common.memory import calm_collector
from services.common.oidc import Issuer
from services.common.telemetry import Logs, Metrics, RequestIds, serve_metrics
from services.common.tls import server_credentials
from services.common.tokens import TrustedKeys
from services.common.validation import Validation

MESSAGE_LIMIT = 4 << 20
_log = structlog.get_logger()

_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    ("grpc.so_reuseport", 0),
]


class Lifecycle:
    """What a service registers while it starts.

    Attributes:
        resources: entered by the service, closed after the server has stopped.
    """

    def __init__(self) -> None:
        self.resources = AsyncExitStack()
        self._ended = asyncio.Event()
        self.exit_code = 0

    def end(self, exit_code: int = 0) -> None:
        """Ask the server to stop; a code other than 0 tells the supervisor to restart it."""
        self.exit_code = self.exit_code or exit_code
        self._ended.set()

    async def ended(self) -> None:
        """Wait until someone asks."""
        await self._ended.wait()


def interceptors(auth: Auth, *more: CallInterceptor) -> list[grpc.aio.ServerInterceptor]:
    """Return what every call passes through.

    Logs, metrics and the audit log see rejected calls too.

    Args:
        auth: lets calls in.
        more: stand before it.
    """
    return [Interceptors([RequestIds(), Logs(), Metrics(), *more, auth, Validation()])]


def _auth(settings: ServiceSettings, lifecycle: Lifecycle) -> Auth:
    keys = TrustedKeys(settings.trusted_keys, settings.roles_of_keys)
    issuer = None
    if (configuration := settings.oidc()) is not None:
        issuer = Issuer(configuration)
        issuer.start()
        lifecycle.resources.callback(issuer.close)
    return Auth(keys, issuer, settings.tls_domain if settings.certificates else "")


def _audit(name: str, settings: ServiceSettings, lifecycle: Lifecycle) -> Audit:
    path = settings.audit_log or settings.state_dir / "audit.jsonl"
    try:
        file = AuditFile(path)
    except OSError as error:
        unfit(f"MURMURA_AUDIT_LOG: {path}: {error.strerror}. Make it writable, or name another.")
    lifecycle.resources.callback(file.close)
    return Audit(name, file)


def _listen(server: grpc.aio.Server, settings: ServiceSettings) -> dict[str, str]:
    """Open the ports; returns their addresses, keyed by the file of the state directory that tells them."""
    certificates = settings.certificates
    if certificates is None:
        return {"listening": _listening("MURMURA_LISTEN", settings.listen, server.add_insecure_port)}
    secure = partial(server.add_secure_port, server_credentials=server_credentials(certificates, of_services=False))
    ports = {"listening": _listening("MURMURA_LISTEN", settings.listen, secure)}
    if settings.services_listen:
        secure = partial(server.add_secure_port, server_credentials=server_credentials(certificates, of_services=True))
        ports["listening_services"] = _listening("MURMURA_SERVICES_LISTEN", settings.services_listen, secure)
    return ports


def _listening(variable: str, address: str, add_port: Callable[[str], int]) -> str:
    """Open a port; returns its address, with the number that it was given where it may be any."""
    try:
        port = add_port(address)
    except RuntimeError:
        unfit(f"{variable}: cannot listen at {address}: it is taken, or none of this machine's addresses")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def make_directory(variable: str, path: Path) -> None:
    """Make a directory that a service keeps things in, or end the process, naming the variable that names it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        unfit(f"{variable}: {path} cannot be a directory of this service: {error.strerror}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        unfit(f"{variable}: {path} cannot be a directory of this service: it may not write there")


def unfit(why: str) -> NoReturn:
    """End the process before it serves, with a sentence that names the variable at fault."""
    print(why, file=sys.stderr)
    raise SystemExit(2)


Register = Callable[[grpc.aio.Server, Lifecycle], Awaitable[list[str]]]


async def serve(name: str, settings: ServiceSettings, register: Register) -> int:
    """Run a service until it is told to stop.

    Args:
        name: the service, for logs.
        settings: its configuration.
        register: adds handlers to the server, enters resources, and returns the full names of its gRPC services.

    Returns:
        The exit code of the process.
    """
    configure_logging(name, settings.log_format)
    try:
        serve_metrics(settings.metrics_port, settings.metrics_host)
    except OSError as error:
        unfit(f"MURMURA_METRICS_HOST, MURMURA_METRICS_PORT: cannot listen there: {error.strerror}")
    make_directory("MURMURA_STATE_DIR", settings.state_dir)
    lifecycle = Lifecycle()
    server = grpc.aio.server(
        interceptors=interceptors(_auth(settings, lifecycle), _audit(name, settings, lifecycle)),
        options=_OPTIONS,
        maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.end)
    async with lifecycle.resources:
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        names = await register(server, lifecycle)
        gc.collect()
        calm_collector()
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        ports = _listen(server, settings)
        await server.start()
        for file, address in ports.items():
            (settings.state_dir / file).write_text(f"{address}\n")
        for served in ("", *names):
            await health.set(served, health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving", **ports, tls=settings.certificates is not None)
        await lifecycle.ended()
        _log.info("stopping", grace_s=settings.stop_grace_s)
        await health.enter_graceful_shutdown()
        await server.stop(settings.stop_grace_s)
    _log.info("stopped")
    return lifecycle.exit_code
