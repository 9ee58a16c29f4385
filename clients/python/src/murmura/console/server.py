"""Serves the console on this machine, until Ctrl-C."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from murmura.errors import MurmuraError

if TYPE_CHECKING:
    from murmura.client import Client


def serve(client: Client, port: int, ready: Callable[[str], None]) -> None:
    """Serve the console on the loopback, and nowhere else.

    Args:
        client: as whom it reads.
        port: where; 0 takes a free one.
        ready: takes the address to open, once it can be opened.

    Raises:
        MurmuraError: if the port is taken, or the console is not installed.
    """
    try:
        import uvicorn

        from murmura.console.app import application
    except ImportError as missing:
        raise MurmuraError(f"The console needs {missing.name}: pip install 'murmura[console]'.") from None
    key = secrets.token_urlsafe(24)
    listener = _listen(port)
    with listener:
        ready(f"http://127.0.0.1:{listener.getsockname()[1]}/?key={key}")
        # No access log: the first address holds the key.
        config = uvicorn.Config(application(client, key), log_level="warning", access_log=False, server_header=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise MurmuraError(f"Port {port} {why}. Another: `murmura console --port 0` takes a free one.") from None
    listener.listen()
    return listener
