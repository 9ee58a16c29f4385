"""What is asked of the services, whoever waits for the answer: the requests of both clients, each built in one place.

A `Call` is a request on its way to a method, with its deadline. `Client` and `AsyncClient` differ in how they wait and
in nothing else, so what they send is made here, by functions that do no I/O.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

_NAMESPACE = uuid.UUID("6c1f8a52-7d3b-5f0e-9f57-3f2f6c0b9a11")
PAGE_SIZE = 1000
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Call:
    """A request on its way.

    Attributes:
        service: `dataset`, `ledger`, `trainer` or `inference`.
        method: the RPC's name.
        request: its message.
        interface: the gRPC service, where it is not named like the service.
        timeout_s: deadline of one attempt; None: a stream that may last.
    """

    service: str
    method: str
    request: Any
    interface: str = ""
    timeout_s: float | None = DEADLINE_S


def stub_class(service: str, interface: str = "") -> Any:
    """Return the generated stub of a gRPC service; of a blocking and of an asyncio channel it makes what fits it."""
    import importlib

    module = importlib.import_module(f"murmura.api.{service}.v1.{service}_service_pb2_grpc")
    return getattr(module, f"{interface or f'{service.capitalize()}Service'}Stub")


def repeatable(request: Any) -> bool:
    """Say whether a request may be sent again: it reads, or it carries the id that makes a write happen once."""
    return "request_id" not in request.DESCRIPTOR.fields_by_name or bool(request.request_id)


def request_id(subject: str, message: Any, salt: str = "") -> str:
    """Derive a request id from who asks and what is asked, so that a repeated call is the same request."""
    body = message.SerializeToString(deterministic=True).hex()
    return str(uuid.uuid5(_NAMESPACE, f"{subject}\n{message.DESCRIPTOR.full_name}\n{body}\n{salt}"))


def qualified(collection: str, name: str) -> str:
    """Return the full resource name of a short or full one."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"
