"""A port that nobody listens on, and that no other process of the test run will be given."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below the range from which systems take ports for connections that go out; each process of pytest-xdist has its own.
_FIRST, _EACH = 16_000, 2_000
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_ports = itertools.count(random.randrange(_EACH))


def free_port() -> int:
    for number in itertools.islice(_ports, _EACH):
        port = _FIRST + _PROCESS * _EACH + number % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"all {_EACH} ports of this test process are taken")
