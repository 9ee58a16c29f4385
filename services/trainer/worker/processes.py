"""A worker of several processes, on one machine or on several: torch's own launcher starts and connects them.

On each machine it starts one process for each GPU. The first rank of all decides how the worker ends. A wish to leave
(SIGTERM) is passed on to this machine's processes and waited for, since there is a checkpoint to save; where any
process fails, the launcher ends the others of its machine, and those elsewhere notice that it is gone.

Sums without noise travel between the processes. On one machine they never leave it. Between machines they do: the
cluster must encrypt what pods say to each other, and let nobody else speak to them (`cluster/objects.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from services.trainer.launcher import EVICTED, FAILED
from services.trainer.worker.ranks import MEETING

# For the other machines to be there. The trainer waits less long, and ends the worker; this is for when it is away.
MEETING_LIMIT_S = 86_400
_NAME_PAUSE_S = 1.0
_LOOK_S = 1.0
_FAREWELL_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where the machines of a worker meet, as one of them sees it.

    Attributes:
        nodes: machines, at least 2.
        rank: of this machine; the first one is 0.
        host, port: of the first machine.
    """

    nodes: int
    rank: int
    host: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """Return what a worker is told; None where it has one machine."""
        nodes = int(environment.get("MURMURA_NODES", "1"))
        if nodes == 1:
            return None
        host, port = environment["MURMURA_MASTER_ADDR"], int(environment["MURMURA_MASTER_PORT"])
        return cls(nodes, int(environment["MURMURA_NODE_RANK"]), host, port)

    def wait_for_its_name(self) -> None:
        """Wait until the first machine has an address: its node may be made minutes after this one."""
        limit = time.monotonic() + MEETING_LIMIT_S
        while time.monotonic() < limit:
            with contextlib.suppress(OSError):
                socket.getaddrinfo(self.host, self.port)
                return
            time.sleep(_NAME_PAUSE_S)


def launch(count: int, place: Place | None = None) -> int:
    """Run this machine's part of the worker; returns the exit code.

    Args:
        count: of processes on this machine; at least 2, unless there are several machines.
        place: where those meet.
    """
    signal.signal(signal.SIGTERM, _pass_on)
    # Handlers of signals run in the main thread, and not while that waits for the other machines.
    running = ThreadPoolExecutor(1).submit(_run, count, place)
    begun, idle_since = False, 0.0
    while True:
        with contextlib.suppress(TimeoutError):
            return running.result(_LOOK_S)
        if psutil.Process().children():
            begun, idle_since = True, time.monotonic()
        elif begun and time.monotonic() - idle_since > _FAREWELL_S:
            # They have ended well, for where one has failed nothing is waited for. Torch's launcher gives the other
            # machines five minutes to say so too; one that was told to leave may never.
            os._exit(0)


def _run(count: int, place: Place | None) -> int:
    with _meeting(count, place) as config:
        try:
            elastic_launch(config, sys.executable)("-m", "services.trainer.worker")
        except ChildFailedError as error:
            return EVICTED if EVICTED in [failure.exitcode for failure in error.failures.values()] else FAILED
        except (RendezvousError, RuntimeError):
            return FAILED  # the other machines are gone, or never came
    return 0


@contextlib.contextmanager
def _meeting(count: int, place: Place | None) -> Iterator[LaunchConfig]:
    """Say how the processes find each other, for as long as they run."""
    common: dict[str, Any] = {
        "nproc_per_node": count,
        # Another attempt is the trainer's to make: it fences this one off first.
        "max_restarts": 0,
        # It would give the first rank 30 seconds for its checkpoint, and forget its exit code.
        "signals_to_handle": "SIGINT",
    }
    if place is not None:
        place.wait_for_its_name()
        yield LaunchConfig(
            min_nodes=place.nodes,
            max_nodes=place.nodes,
            # The port is this worker's alone.
            run_id="worker",
            rdzv_backend="static",
            rdzv_endpoint=f"{place.host}:{place.port}",
            rdzv_configs={"rank": place.rank, "timeout": MEETING_LIMIT_S},
            **common,
        )
        return
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", _loopback())
    # They meet in a private file: whoever can reach a port to meet at could come between them.
    with tempfile.TemporaryDirectory() as folder:
        os.environ[MEETING] = f"{folder}/ranks"
        yield LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            run_id="worker",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/launcher",
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            **common,
        )


def _loopback() -> str:
    """Return the name of the interface that leads nowhere else."""
    return next(
        name for name, found in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in found)
    )


def _pass_on(*_: object) -> None:
    children = psutil.Process().children()
    if not children:
        os._exit(EVICTED)  # nothing has begun, and the wait for other machines cannot be broken off otherwise
    for child in children:
        child.terminate()
