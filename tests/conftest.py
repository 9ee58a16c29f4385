"""What all tests share: how much of the machine each process of a run may take."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from services.common.memory import calm_collector, importing

# Before anything imports torch: with as many test processes as cores, a second thread in each waits for the others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: tests wait for services and clocks a third of the time."""
    return min(6, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests, and with them torch, and then leave it to them."""
    with importing():
        found = yield
    calm_collector()
    return found
