"""Request ids, structured logs and metrics: what an operator sees of a call. Never a message's content."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import structlog
from prometheus_client import Counter, Histogram, start_http_server

from services.common.calls import Call, CallInterceptor

REQUEST_ID = "x-request-id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger()

_CALLS = Counter("murmura_rpc_total", "Calls by method and status code.", ["method", "code"])
_SECONDS = Histogram("murmura_rpc_seconds", "Duration of calls by method.", ["method"])


def configure_logging(service: str, log_format: str) -> None:
    """Send structured logs to standard error, one line each.

    Args:
        service: stands in each line.
        log_format: `json` or `console`.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # grpc.aio logs the exceptions of handlers with their text, which could hold a row.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


def serve_metrics(port: int) -> None:
    """Serve Prometheus metrics on a port of this machine; 0 serves none."""
    if port:
        start_http_server(port, addr="127.0.0.1")


class RequestIds(CallInterceptor):
    """Gives each call an id, the caller's where it has a sound one, and returns it with the status."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Bind the id."""
        given = call.metadata.get(REQUEST_ID, "")
        sound = isinstance(given, str) and _WELL_FORMED.fullmatch(given)
        call.facts["call_id"] = str(given) if sound else str(uuid.uuid4())
        call.trailing.append((REQUEST_ID, call.facts["call_id"]))
        call.context.set_trailing_metadata(tuple(call.trailing))
        yield


class Logs(CallInterceptor):
    """Writes a line for each call: who, what, how it ended, how long."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Write the line at the end."""
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except BaseException:
            # A client that went away; whatever else escapes was mapped further in.
            call.outcome = "CANCELLED"
            raise
        finally:
            _log.info(
                "call",
                method=call.method,
                code=call.outcome,
                seconds=round(time.monotonic() - call.started, 4),
                call_id=call.facts.get("call_id", ""),
                subject=call.facts.get("subject", ""),
            )


class Metrics(CallInterceptor):
    """Counts and times calls, rejected ones too."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Count at the end."""
        try:
            yield
        finally:
            _CALLS.labels(call.method, call.outcome).inc()
            _SECONDS.labels(call.method).observe(time.monotonic() - call.started)
