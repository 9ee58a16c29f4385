"""What goes wrong when a test asks for it."""

from __future__ import annotations

import asyncio

from tests.support.kube_api.store import ApiError


class Faults:
    """Switches; may be set from any thread."""

    def __init__(self) -> None:
        self.frozen = False
        self.watches_stalled = False
        # Of the next requests so many are refused so: (code, reason, seconds to wait).
        self.refusals: list[tuple[int, str, int]] = []
        self.watches = 0
        self._wait = 0

    def drop_watches(self) -> None:
        """End the watches that are open."""
        self.watches += 1

    async def before(self) -> None:
        """Let a request come in late, or never, or refuse it."""
        while self.frozen:
            await asyncio.sleep(0.02)
        if self.refusals:
            code, reason, self._wait = self.refusals.pop(0)
            raise ApiError(code, reason, f"{reason} on request")

    async def stalled(self) -> None:
        """Hold a watch that is to say nothing."""
        while self.watches_stalled or self.frozen:
            await asyncio.sleep(0.02)

    def headers(self, code: int) -> dict[str, str]:
        return {"Retry-After": str(self._wait)} if code == 429 else {}
