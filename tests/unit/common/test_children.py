"""A service starts processes beside gRPC without losing any, talks with them, and ends them."""

import subprocess
import sys

import uvloop

from services.common import children

CROWD = """
import asyncio, collections, sys
import grpc, uvloop
from services.common import children

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    call = grpc.aio.insecure_channel(f"127.0.0.1:{port}").unary_unary("/nobody/Serves")

    async def ask():
        while True:
            try:
                await call(b"")
            except grpc.RpcError:
                pass

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    ended = collections.Counter()
    for _ in range(600):
        child = await children.start(["cat"])
        child.writer.write_eof()
        assert await child.reader.read() == b""
        ended[await asyncio.to_thread(child.process.wait)] += 1
        await child.end()
    print(dict(ended))
    for task in asking:
        task.cancel()

uvloop.run(main())
"""


def test_none_of_many_is_lost_while_grpc_is_busy() -> None:
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, timeout=120)
    assert done.stdout == "{0: 600}\n", done.stderr[-2000:]


def test_a_child_answers_line_by_line_and_is_ended() -> None:
    async def talk() -> tuple[bytes, bytes, int, bytes]:
        child = await children.start(["cat"])
        answers = []
        for line in (b"one\n", b"two\n"):
            child.writer.write(line)
            answers.append(await child.reader.readline())
        return answers[0], answers[1], await child.end(), await child.reader.read()

    assert uvloop.run(talk()) == (b"one\n", b"two\n", -9, b"")


def test_one_that_has_ended_is_heard_of_and_can_be_ended_again() -> None:
    async def listen() -> tuple[bytes, int, int]:
        child = await children.start(
            [sys.executable, "-c", "import os; print(os.environ['A']); raise SystemExit(3)"], {"A": "b"}
        )
        said = await child.reader.read()
        child.process.wait()
        return said, await child.end(), await child.end()

    assert uvloop.run(listen()) == (b"b\n", 3, 3)
