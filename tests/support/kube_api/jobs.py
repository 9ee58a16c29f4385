"""Jobs as the trainer makes them, for tests that have no launcher."""

from __future__ import annotations

from typing import Any

from services.trainer.cluster import objects
from services.trainer.cluster.settings import ClusterSettings
from services.trainer.launcher import WorkOrder
from tests.support.kube_api.server import NAMESPACE

_SETTINGS = ClusterSettings(image="murmura/worker:test", namespace=NAMESPACE, fake_gpu=True)


def job(job_id: str = "a" * 16, attempt: int = 1) -> dict[str, Any]:
    """Return the Job of an attempt."""
    order = WorkOrder(f"trainingJobs/{job_id}", job_id, attempt, "")
    return objects.job(order, _SETTINGS, {}, ["true"], 60)
