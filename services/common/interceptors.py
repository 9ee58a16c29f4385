"""One shape for interceptors, whatever the arity of the method.

gRPC knows four kinds of handlers, and wraps a handler anew for each interceptor at each call. Here the four kinds are
wrapped once for each method, with all interceptors in one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc

from services.common.calls import Call, CallInterceptor
from services.common.errors import STATUS_DETAILS, MurmuraError, unknown

DEFAULT_DEADLINE_S = 60.0
_UNGUARDED = "/grpc.health.v1.Health/"


class Interceptors(grpc.aio.ServerInterceptor):
    """All interceptors of a server.

    A unary call whose caller set no deadline gets the default one; streams may run as long as their caller wishes.

    Args:
        layers: outermost first.
    """

    def __init__(self, layers: Sequence[CallInterceptor]) -> None:
        self._before = [layer.before for layer in layers if type(layer).before is not CallInterceptor.before]
        self._checks = [layer.check for layer in layers if type(layer).check is not CallInterceptor.check]
        self._decided = [layer.decided for layer in layers if type(layer).decided is not CallInterceptor.decided]
        self._after = [layer.after for layer in layers if type(layer).after is not CallInterceptor.after][::-1]
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, wrapped."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(_UNGUARDED):
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> Any:
        serializers = (handler.request_deserializer, _serialised_by(handler.response_serializer))
        if handler.response_streaming:
            inner_stream = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                call = _call(method, context, None if handler.request_streaming else request)
                decided = False
                try:
                    await self._begin(call)
                    async for response in inner_stream(self._requests(call, request, handler), context):
                        if not decided:
                            self._decide(call)
                            decided = True
                        yield response
                    if not decided:
                        self._decide(call)
                except BaseException as error:
                    await self._fail(call, error)
                else:
                    self._end(call)

            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(streaming, *serializers)
            return grpc.unary_stream_rpc_method_handler(streaming, *serializers)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def single(request: Any, context: Any) -> Any:
            call = _call(method, context, None if handler.request_streaming else request)
            try:
                await self._begin(call)
                request = self._requests(call, request, handler)
                if handler.request_streaming or context.time_remaining() is not None:
                    answer = await inner(request, context)
                else:
                    answer = await _in_time(inner(request, context))
                self._decide(call)
            except BaseException as error:
                await self._fail(call, error)
            else:
                self._end(call)
                return answer

        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(single, *serializers)
        return grpc.unary_unary_rpc_method_handler(single, *serializers)

    async def _begin(self, call: Call) -> None:
        for before in self._before:
            waits = before(call)
            if waits is not None:
                await waits

    def _decide(self, call: Call) -> None:
        for decided in self._decided:
            decided(call)

    def _end(self, call: Call) -> None:
        for after in self._after:
            after(call)

    async def _fail(self, call: Call, error: BaseException) -> NoReturn:
        """End a call with what may be said of an error: refusals as they are, of anything else nothing."""
        # What panics in Rust is no `Exception`.
        if not isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit):
            refusal = error if isinstance(error, MurmuraError) else unknown(error)
            call.outcome, call.reason = refusal.code.name, refusal.reason
            self._decide(call)
            self._end(call)
            details = (STATUS_DETAILS, refusal.status().SerializeToString())
            await call.context.abort(refusal.code, refusal.message, (*call.trailing, details))
        else:
            # The client went away.
            call.outcome = grpc.StatusCode.CANCELLED.name
            self._decide(call)
            self._end(call)
        raise error

    def _requests(self, call: Call, request: Any, handler: Any) -> Any:
        if not handler.request_streaming:
            self._check(call, request)
            return request

        async def checked() -> AsyncIterator[Any]:
            async for message in request:
                self._check(call, message)
                yield message

        return checked()

    def _check(self, call: Call, message: Any) -> None:
        if call.request is None:
            call.request = message
        for check in self._checks:
            check(call, message)


def _serialised_by(serializer: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serializer that leaves alone what a handler has serialised itself."""
    return lambda message: message if type(message) is bytes else serializer(message)


async def _in_time(answer: Awaitable[Any]) -> Any:
    limit = asyncio.timeout(DEFAULT_DEADLINE_S)
    try:
        async with limit:
            return await answer
    except TimeoutError:
        if not limit.expired():
            raise
        raise MurmuraError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "OVERLOADED",
            f"No answer within {DEFAULT_DEADLINE_S:.0f} s, the default. Set a longer deadline, or try again.",
        ) from None


def _call(method: str, context: Any, request: Any) -> Call:
    return Call(method, context, dict(context.invocation_metadata() or ()), request=request)
