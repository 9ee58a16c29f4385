"""The wires to the services for asyncio: the same patience, deadlines and errors as `connection`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from murmura import errors
from murmura.calls import DEADLINE_S, Call, stub_class
from murmura.connection import Patience, Profile


class AsyncConnection:
    """Calls to the services, as one caller, waited for without a thread."""

    def __init__(self, profile: Profile, patience_s: float) -> None:
        self.profile = profile
        self._patience_s = patience_s
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._answered: set[str] = set()

    async def run(self, call: Call) -> Any:
        """Make a unary call; waits for a service that is being restarted."""
        patience = Patience(self.profile, call.service, call.request, self._patience_s, self._answered)
        while True:
            try:
                answer = await self._method(call)(
                    call.request, timeout=call.timeout_s or DEADLINE_S, metadata=self.profile.metadata()
                )
            except grpc.RpcError as error:
                pause = patience.pause(error)
            else:
                patience.over()
                return answer
            await asyncio.sleep(pause)

    async def all(self, call: Call, field: str) -> list[Any]:
        """Return all items of a list, page by page."""
        items: list[Any] = []
        while True:
            answer = await self.run(call)
            items.extend(getattr(answer, field))
            call.request.page_token = answer.next_page_token
            if not call.request.page_token:
                return items

    async def follow(self, call: Call) -> AsyncIterator[Any]:
        """Make a streaming call; an interruption is raised, and whoever leaves the loop cancels it."""
        stream = self._method(call)(call.request, timeout=call.timeout_s, metadata=self.profile.metadata())
        try:
            async for answer in stream:
                yield answer
        except grpc.RpcError as error:
            raise errors.from_rpc(error, call.service, self.profile.endpoints[call.service]) from None
        finally:
            stream.cancel()

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _method(self, call: Call) -> Any:
        if call.service not in self._channels:
            self._channels[call.service] = self.profile.channel(grpc.aio, call.service)
        return getattr(stub_class(call.service, call.interface)(self._channels[call.service]), call.method)
