"""What an interceptor of ours is: it says what happens around a call, and what is checked of each request message."""

from __future__ import annotations

import time
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
        facts: what an interceptor leaves for the next.
    """

    method: str
    context: Any
    metadata: dict[str, str | bytes]
    trailing: list[tuple[str, str | bytes]] = field(default_factory=list)
    outcome: str = "OK"
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, str] = field(default_factory=dict)


class CallInterceptor:
    """Base of the interceptors. Plain hooks, since every call passes through all of them."""

    def before(self, call: Call) -> None:
        """Begin a call; raise to refuse it."""

    def check(self, call: Call, message: Any) -> None:
        """See each request message before the handler does; raise to refuse."""

    def after(self, call: Call) -> None:
        """End a call, however it went: its outcome is known."""
