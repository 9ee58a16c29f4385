"""Request ids, a log line for each call, and metrics: what an operator sees of a call. Never a message's content."""

from __future__ import annotations

import random
import re
import time
from functools import cache

import structlog
from prometheus_client import Counter, Histogram, start_http_server

from services.common.calls import Call, CallInterceptor

REQUEST_ID = "x-request-id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger()

_CALLS = Counter("murmura_rpc_total", "Calls by method and status code.", ["method", "code"])
_SECONDS = Histogram("murmura_rpc_seconds", "Duration of calls by method.", ["method"])


def serve_metrics(port: int, host: str = "127.0.0.1") -> None:
    """Serve Prometheus metrics; port 0 serves none."""
    if port:
        start_http_server(port, addr=host)


class RequestIds(CallInterceptor):
    """Gives each call an id, the caller's where it has a sound one, and returns it with the status."""

    def before(self, call: Call) -> None:
        """Settle on the id."""
        given = call.metadata.get(REQUEST_ID, "")
        sound = isinstance(given, str) and _WELL_FORMED.fullmatch(given)
        # It tells calls apart and guards nothing, so it need not be unpredictable.
        call.facts["call_id"] = str(given) if sound else f"{random.getrandbits(128):032x}"
        call.trailing.append((REQUEST_ID, call.facts["call_id"]))
        call.context.set_trailing_metadata(tuple(call.trailing))


class Logs(CallInterceptor):
    """Writes a line for each call: who, what, how it ended, how long."""

    def __init__(self) -> None:
        # Bound once: the module's own logger looks its configuration up at each line.
        self._log = structlog.get_logger().bind()

    def after(self, call: Call) -> None:
        """Write the line."""
        self._log.info(
            "call",
            method=call.method,
            code=call.outcome,
            seconds=round(time.monotonic() - call.started, 4),
            call_id=call.facts.get("call_id", ""),
            subject=call.facts.get("subject", ""),
        )


class Metrics(CallInterceptor):
    """Counts and times calls, rejected ones too."""

    def after(self, call: Call) -> None:
        """Count it."""
        count, seconds = _series(call.method, call.outcome)
        count.inc()
        seconds.observe(time.monotonic() - call.started)


@cache
def _series(method: str, code: str) -> tuple[Counter, Histogram]:
    return _CALLS.labels(method, code), _SECONDS.labels(method)
