"""Bring the embedded default up, say how it is, and take it down.

`up` is idempotent: it starts what is not running, waits until every service says that it serves, and explains a
service that does not with the end of its log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from murmura.local import processes
from murmura.local.identity import Identity
from murmura.local.layout import DEFAULT_BASE_PORT, SERVICES, Layout, mint_all

READY_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class ServiceStatus:
    """How one service is.

    Attributes:
        service: its name.
        endpoint: where it listens; empty before the first `up`.
        pid: its process; None where it does not run.
        serving: whether its health check says so.
    """

    service: str
    endpoint: str
    pid: int | None
    serving: bool


def up(
    layout: Layout,
    base_port: int = DEFAULT_BASE_PORT,
    timeout_s: float = READY_TIMEOUT_S,
    report: Callable[[str], None] = lambda line: None,
) -> list[ServiceStatus]:
    """Start what is not running and wait until everything serves.

    Args:
        layout: the deployment.
        base_port: first of four ports on the first `up`; 0 takes free ones. Later runs keep the ports.
        timeout_s: longest wait for readiness.
        report: takes a line for a person whenever something happens.

    Returns:
        The status of every service, all serving.

    Raises:
        processes.LocalError: if a port is taken, or a service ends or does not get ready.
    """
    layout.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = Identity(layout.directory)
    mint_all(identity)
    endpoints = processes.choose_endpoints(layout, SERVICES, base_port)
    layout.write_profile(endpoints, identity)
    for service in SERVICES:
        if processes.find(layout, service).pid is None:
            processes.start(layout, service, layout.environment(service, endpoints, identity))
            report(f"starting {service} on {endpoints[service]}")
    waiting, deadline = set(SERVICES), time.monotonic() + timeout_s
    while waiting:
        for service in sorted(waiting):
            if is_serving(endpoints[service]):
                waiting.discard(service)
                report(f"{service} is ready")
            elif processes.find(layout, service).pid is None:
                raise processes.LocalError(_explain(layout, service, "ended while starting"))
            elif time.monotonic() > deadline:
                raise processes.LocalError(_explain(layout, service, f"is not ready after {timeout_s:.0f} s"))
        time.sleep(0.2)
    return status(layout)


def status(layout: Layout) -> list[ServiceStatus]:
    """Return how every service is, without changing anything."""
    endpoints = layout.endpoints()
    found = []
    for service in SERVICES:
        endpoint = endpoints.get(service, "")
        pid = processes.find(layout, service).pid
        found.append(ServiceStatus(service, endpoint, pid, pid is not None and is_serving(endpoint)))
    return found


def down(layout: Layout, report: Callable[[str], None] = lambda line: None) -> int:
    """Stop workers and services; returns how many services were running."""
    if workers := processes.stop_workers(layout):
        report(f"stopped {workers} worker(s); what they ran is charged")
    count = 0
    for stopped in processes.stop(layout, tuple(reversed(SERVICES))):
        report(f"stopped {stopped.service}")
        count += 1
    return count


def is_serving(endpoint: str, timeout_s: float = 1.0) -> bool:
    """Ask a service's health check."""
    if not endpoint:
        return False
    with grpc.insecure_channel(endpoint) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _explain(layout: Layout, service: str, what: str) -> str:
    return (
        f"The {service} service {what}. The end of {layout.log(service)}:\n"
        f"{processes.log_tail(layout, service)}\n"
        "Next: `murmura doctor` says what is missing; `murmura down` stops the others."
    )
