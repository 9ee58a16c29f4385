"""Structured logs: a line of JSON for each event, on standard error."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import sys
from functools import partial
from typing import TextIO

import structlog

FLUSH_S = 0.05
_encode = json.JSONEncoder(default=repr, ensure_ascii=False).encode


def configure_logging(service: str, log_format: str) -> None:
    """Send structured logs to standard error, one line each.

    Args:
        service: stands in each line.
        log_format: `json` or `console`.
    """
    as_json = structlog.processors.JSONRenderer(_to_json)
    lines = Lines(sys.stderr)
    atexit.register(lines.flush)
    structlog.configure(
        processors=[
            partial(_named, service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            as_json if log_format == "json" else structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    # grpc.aio logs the exceptions of handlers with their text, which could hold a row.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


class Lines:
    """Where lines go: ordinary ones together, twenty times a second, a warning at once with all that came before it.

    Args:
        stream: takes the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: list[str] = []

    def info(self, line: str) -> None:
        """Take a line that can wait; without an event loop none can."""
        self._waiting.append(line)
        if len(self._waiting) == 1:
            try:
                asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
            except RuntimeError:
                self.flush()

    debug = info

    def warning(self, line: str) -> None:
        """Take a line that cannot."""
        self._waiting.append(line)
        self.flush()

    error = critical = exception = warning

    def flush(self) -> None:
        """Write what waits; what cannot be written is lost, since no call may fail for its line."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            with contextlib.suppress(OSError):
                self._stream.write("\n".join(waiting) + "\n")
                self._stream.flush()


def _to_json(event: object, **_: object) -> str:
    return _encode(event)


def _named(service: str, logger: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["service"] = service
    return event
