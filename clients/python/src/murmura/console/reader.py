"""A client for a person who waits before a page: a service that is away or slow is said to be so at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from murmura.calls import Call
from murmura.client import Client

DEADLINE_S = 5.0


class Reader(Client):
    """Asks once, and not for long.

    Args:
        options: as of `Client`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, patience_s=0.0, **options)

    def run(self, call: Call) -> Any:
        """Make a unary call and return its answer."""
        return super().run(replace(call, timeout_s=min(call.timeout_s or DEADLINE_S, DEADLINE_S)))
