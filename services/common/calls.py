"""One shape for interceptors, whatever the arity of the method.

gRPC knows four kinds of handlers. An interceptor here says what happens around a call and what is checked of each
request message; wrapping the four kinds is done once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc

UNGUARDED = "/grpc.health.v1.Health/"


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


_current: ContextVar[Call | None] = ContextVar("murmura_call", default=None)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Base of the interceptors."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Run around the whole call, streams included."""
        yield

    def check(self, call: Call, message: Any) -> None:
        """See each request message before the handler does; raise to refuse."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler, whichever kind it is."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(UNGUARDED):
            return handler
        if handler.response_streaming:
            inner_stream = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                call = _call(method, context)
                async with self._around(call):
                    async for response in inner_stream(self._requests(call, request, handler), context):
                        yield response

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(streaming, handler.request_deserializer, handler.response_serializer)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def single(request: Any, context: Any) -> Any:
            call = _call(method, context)
            async with self._around(call):
                return await inner(self._requests(call, request, handler), context)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(single, handler.request_deserializer, handler.response_serializer)

    def _around(self, call: Call) -> AbstractAsyncContextManager[None]:
        return self.around(call)

    def _requests(self, call: Call, request: Any, handler: Any) -> Any:
        if not handler.request_streaming:
            self.check(call, request)
            return request

        async def checked() -> AsyncIterator[Any]:
            async for message in request:
                self.check(call, message)
                yield message

        return checked()


def _call(method: str, context: Any) -> Call:
    """Return the call of this task, made by the outermost interceptor."""
    call = _current.get()
    if call is None or call.context is not context:
        metadata = {key: value for key, value in (context.invocation_metadata() or ())}
        call = Call(method, context, metadata)
        _current.set(call)
    return call
