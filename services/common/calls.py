"""What an interceptor of ours is: it says what happens around a call, and what is checked of each request message."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """One call as the interceptors see it.

    Attributes:
        method: `/package.Service/Method`.
        context: gRPC's.
        metadata: request metadata; keys in lower case.
        trailing: metadata that goes out with the status.
        outcome: name of the status code so far.
        reason: of the refusal, a name of the catalogue; empty where there is none.
        request: the request, or the first message of a stream of them, once it has arrived.
        facts: what an interceptor leaves for the next.
    """

    method: str
    context: Any
    metadata: dict[str, str | bytes]
    trailing: list[tuple[str, str | bytes]] = field(default_factory=list)
    outcome: str = "OK"
    reason: str = ""
    request: Any = None
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, str] = field(default_factory=dict)


class CallInterceptor:
    """Base of the interceptors. Plain hooks, since every call passes through all of them."""

    def before(self, call: Call) -> Awaitable[None] | None:
        """Begin a call; raise to refuse it. Returns what the call must wait for, which is nothing as a rule."""

    def check(self, call: Call, message: Any) -> None:
        """See each request message before the handler does; raise to refuse."""

    def decided(self, call: Call) -> None:
        """See that a call is allowed or refused, just before the caller does: its first answer or its refusal is due.

        A stream that is refused after its first answer comes here again.
        """

    def after(self, call: Call) -> None:
        """End a call, however it went: its outcome is known."""
