"""A bare grpc.aio server that answers each method with the same bytes every time: the peer of `make bench-ledger`.

No interceptor, no parsing, no state: what is left is what any Python gRPC service costs. Reads one JSON line, method to
answer in base64; prints its port.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import grpc


class Echo(grpc.GenericRpcHandler):
    """Answers by method name."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self._handlers = {method: _handler(answer) for method, answer in answers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        return self._handlers.get(handler_call_details.method)


def _handler(answer: bytes) -> Any:
    async def reply(request: bytes, context: Any) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(reply)


async def main() -> None:
    """Serve until the process is killed."""
    answers = {method: base64.b64decode(text) for method, text in json.loads(sys.stdin.readline()).items()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(answers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
