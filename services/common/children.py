"""Child processes that a service talks with line by line.

Not by the event loop's own means: uvloop starts a process with fork(2), and then gRPC's fork handlers run in the child
before it becomes another program. While gRPC is busy, one in a hundred dies there (SIGSEGV; grpcio 1.85). Python's
`subprocess` starts one with vfork(2), which runs no handlers.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Child:
    """A child process.

    Attributes:
        process: itself.
        reader: what it writes to its standard output.
        writer: its standard input.
    """

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def end(self) -> int:
        """End it, unless it has ended by itself; returns its exit code, or less than 0: the signal that ended it."""
        self.process.kill()
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()
        return await asyncio.to_thread(self.process.wait)


async def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
    """Start a child process; what it writes to its standard error is dropped.

    Args:
        command: the program and its arguments.
        environment: its variables; by default this process's.
    """
    ours, theirs = socket.socketpair()
    # First, so that nobody who is cancelled leaves a process behind.
    reader, writer = await asyncio.open_connection(sock=ours)
    with theirs:
        end = theirs.fileno()
        process = subprocess.Popen(  # noqa: ASYNC220 - it is milliseconds, and see above
            command, stdin=end, stdout=end, stderr=subprocess.DEVNULL, env=environment and dict(environment)
        )
    return Child(process, reader, writer)
