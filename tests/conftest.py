"""What all tests share: how much of the machine each process of a run may take."""

from __future__ import annotations

import os

# Before anything imports torch: with as many test processes as cores, a second thread in each waits for the others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
