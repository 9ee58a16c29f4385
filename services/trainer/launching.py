"""Chooses where workers run. Nobody else knows; and who runs them on one machine needs no cluster's packages."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.common.server import unfit
from services.trainer.launcher import Launcher, Pods
from services.trainer.local_launcher import LocalLauncher


@dataclass(frozen=True)
class Launching:
    """Where workers run.

    Attributes:
        launcher: starts them.
        pods: says which job the bearer of a pod's token works on; None where workers are no pods.
        acquire: waits until this trainer is the only active one; what it is given is called if it no longer is.
        release: lets another one be it.
    """

    launcher: Launcher
    pods: Pods | None = None
    acquire: Callable[[Callable[[], None]], None] = lambda lost: None
    release: Callable[[], None] = lambda: None


def launching(kind: str, directory: Path, told: dict[str, str], running_limit_s: float, nodes: int = 1) -> Launching:
    """Return where workers run.

    Args:
        kind: "local" or "kubernetes".
        directory: for what the launcher keeps.
        told: what every worker is told, besides its job.
        running_limit_s: of a worker.
        nodes: machines that share a worker's work.

    Raises:
        SystemExit: after saying why, where workers cannot run so.
    """
    if kind == "local":
        if nodes > 1:
            unfit("MURMURA_WORKER_NODES: several machines need MURMURA_LAUNCHER=kubernetes.")
        return Launching(LocalLauncher(directory, told))
    from services.trainer.cluster.client import Cluster, ClusterError
    from services.trainer.cluster.identity import PodIdentity
    from services.trainer.cluster.launcher import KubernetesLauncher
    from services.trainer.cluster.lease import Lease
    from services.trainer.cluster.settings import ClusterSettings

    settings = ClusterSettings.load()
    if nodes > 1 and not settings.network_encrypted:
        unfit(
            "MURMURA_WORKER_NODES: machines that share a run send each other sums without noise. Let the cluster "
            "encrypt what pods say to each other (WireGuard of your network plugin), then set "
            "MURMURA_CLUSTER_NETWORK_ENCRYPTED=true."
        )
    try:
        cluster = Cluster(settings.namespace, settings.kubeconfig, settings.context)
    except ClusterError as problem:
        unfit(f"MURMURA_LAUNCHER: no cluster: {problem.words}")
    launcher = KubernetesLauncher(cluster, settings, directory, told, running_limit_s)
    lease = Lease(cluster, f"{settings.deployment}-trainer", f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    pods = PodIdentity(cluster, settings.service_account, launcher.owner)
    return Launching(launcher, pods, lease.acquire, lease.release)
