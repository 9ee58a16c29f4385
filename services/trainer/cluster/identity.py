"""Which job a pod is of: by its own token, which the cluster signs, and by who controls it, which the cluster knows."""

from __future__ import annotations

from collections.abc import Callable

from services.trainer.cluster.client import Cluster, ClusterError
from services.trainer.cluster.objects import AUDIENCE
from services.trainer.launcher import Unavailable

_EXTRA = "authentication.kubernetes.io"


class PodIdentity:
    """Asks the cluster whose a token is.

    A token counts when the cluster says that it was made for the trainer, is of the workers' service account, and is
    bound to a pod that is still there; and the pod when its controller is a Job of this trainer's.

    Args:
        cluster: the workers' namespace.
        service_account: of the workers.
        owner: returns the job and the attempt of a pod, by its name and uid (`KubernetesLauncher.owner`).
    """

    def __init__(
        self, cluster: Cluster, service_account: str, owner: Callable[[str, str], tuple[str, int] | None]
    ) -> None:
        self._cluster, self._owner = cluster, owner
        self._account = f"system:serviceaccount:{cluster.namespace}:{service_account}"

    def __call__(self, token: str) -> tuple[str, int] | None:
        """Return the job and the attempt that the bearer of a token works on; None where it proves nothing.

        Raises:
            Unavailable: if the cluster does not answer.
        """
        try:
            status = self._cluster.review(token, AUDIENCE)
            user = status.get("user", {})
            if not status.get("authenticated") or AUDIENCE not in status.get("audiences", []):
                return None
            if user.get("username") != self._account:
                return None
            extra = user.get("extra", {})
            [pod], [uid] = extra.get(f"{_EXTRA}/pod-name", [""]), extra.get(f"{_EXTRA}/pod-uid", [""])
            return self._owner(pod, uid) if pod and uid else None
        except ClusterError as error:
            raise Unavailable(f"{error.code}: {error.words}") from None
