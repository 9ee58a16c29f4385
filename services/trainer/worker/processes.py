"""A worker of several processes, one for each GPU: torch's own launcher starts them and connects them.

The first rank decides how the worker ends. A wish to leave (SIGTERM) is passed on to it and waited for, since it has a
checkpoint to save; where any process fails, the launcher ends the others.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from services.trainer.launcher import EVICTED
from services.trainer.worker.ranks import MEETING
from services.trainer.worker.session import FAILED


def launch(count: int) -> int:
    """Run the worker as `count` processes; returns its exit code.

    Args:
        count: at least 2.
    """
    signal.signal(signal.SIGTERM, _pass_on)
    # Sums without noise travel between the processes: not past this machine.
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", _loopback())
    # They meet in a private file: whoever can reach a port to meet at could come between them.
    with tempfile.TemporaryDirectory() as folder:
        os.environ[MEETING] = f"{folder}/ranks"
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/launcher",
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            # Another attempt is the trainer's to make: it fences this one off first.
            max_restarts=0,
            # It would give the first rank 30 seconds for its checkpoint, and forget its exit code.
            signals_to_handle="SIGINT",
        )
        try:
            elastic_launch(config, sys.executable)("-m", "services.trainer.worker")
        except ChildFailedError as error:
            return EVICTED if EVICTED in [failure.exitcode for failure in error.failures.values()] else FAILED
    return 0


def _loopback() -> str:
    """Return the name of the interface that leads nowhere else."""
    return next(
        name for name, found in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in found)
    )


def _pass_on(*_: object) -> None:
    for child in psutil.Process().children():
        child.terminate()
