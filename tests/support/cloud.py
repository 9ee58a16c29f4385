"""A deployment whose trainer runs its workers in the small Kubernetes of `kube_api`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from services.trainer.cluster.client import CLUSTER_RULES, RULES
from tests.support.deployment import Cluster
from tests.support.kube_api.server import NAMESPACE, KubeApi

JOBS_OF_A_DATASET = 8
# What the manifests give the trainer, and no right more.
RIGHTS = {(group, resource, verb) for group, resource, verbs in (*RULES, *CLUSTER_RULES) for verb in verbs}


class Cloud(Cluster):
    """A deployment whose trainer runs its workers in a cluster.

    Attributes:
        api: the cluster.
        told: more that the trainer is told.
    """

    def __init__(self, directory: Path, base_models: dict[str, str]) -> None:
        super().__init__(directory, base_models)
        self.api = KubeApi(directory / "pods")
        self.api.start()
        self.api.scheduler.node_after_s = 0.5
        self.config = self.api.kubeconfig(directory / "kubeconfig", RIGHTS)
        self.told: dict[str, str] = {}

    def settings(self, service: str) -> dict[str, str]:
        found = super().settings(service)
        if service == "trainer":
            found |= {
                "LAUNCHER": "kubernetes",
                "CLUSTER_KUBECONFIG": str(self.config),
                "CLUSTER_IMAGE": "murmura/worker:test",
                "CLUSTER_NAMESPACE": NAMESPACE,
                "CHECKPOINT_SECONDS": "0.3",
                **self.told,
            }
        return found

    def stop(self) -> None:
        super().stop()
        self.api.stop()

    def pod(self, name: str) -> str:
        """Wait for the pod of a job to run; returns its name."""
        job_id = name.removeprefix("trainingJobs/")
        found: list[str] = []

        def runs() -> bool:
            found[:] = [
                pod["metadata"]["name"]
                for pod in self.api.all("pods")
                if pod["metadata"]["labels"]["murmura.dev/job"] == job_id
                and pod["status"]["phase"] == "Running"
                and "deletionTimestamp" not in pod["metadata"]
            ]
            return bool(found)

        self.wait(runs, f"a pod of {name} runs")
        return found[0]

    def datasets(self, jobs: int) -> list[Any]:
        """Register rows for so many jobs, each dataset with an account of its own: one covers few jobs."""
        return [self._dataset() for _ in range(0, jobs, JOBS_OF_A_DATASET)]

    def stepping(self, name: str) -> None:
        self.wait(lambda: self.job(name).completed_steps > 0, f"{name} takes steps")

    def _dataset(self) -> Any:
        salt = uuid.uuid4().hex
        rows = [{"patient": f"p{unit}", "text": f"{salt} {unit} {row}"} for unit in range(400) for row in range(2)]
        return self.register(rows, epsilon=100.0)

    def empty(self) -> bool:
        return not any(self.api.names(plural) for plural in ("jobs", "pods", "services", "networkpolicies"))
