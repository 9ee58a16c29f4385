"""A worker of several processes, one for each GPU: torch's own launcher starts them and connects them.

The first rank decides how the worker ends. A wish to leave (SIGTERM) is passed on to it and waited for, since it has a
checkpoint to save; where any process fails, the launcher ends the others.
"""

from __future__ import annotations

import signal
import sys
import uuid

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from services.trainer.worker.session import EVICTED, FAILED


def launch(count: int) -> int:
    """Run the worker as `count` processes; returns its exit code.

    Args:
        count: at least 2.
    """
    signal.signal(signal.SIGTERM, _pass_on)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
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


def _pass_on(*_: object) -> None:
    for child in psutil.Process().children():
        child.terminate()
