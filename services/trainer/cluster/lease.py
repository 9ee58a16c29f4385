"""One active trainer: a lease in the cluster, held by renewing it.

Two trainers on the same jobs would each start workers and believe the other's to be leftovers. Clocks of machines
differ, so a lease counts as expired when it has not changed for its whole duration by the watcher's own clock. A holder
that could not renew it gives up before that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from services.trainer.cluster.client import Cluster, ClusterError

DURATION_S = 15.0
_log = structlog.get_logger()


class Lease:
    """A coordination.k8s.io/v1 Lease.

    Args:
        cluster: in whose namespace it lies.
        name: of the lease.
        holder: who would hold it; another life of the same machine is another holder.
        duration_s: after which one that is not renewed is free.
    """

    def __init__(self, cluster: Cluster, name: str, holder: str, duration_s: float = DURATION_S) -> None:
        self._cluster, self._name, self._holder, self._duration_s = cluster, name, holder, duration_s
        self._seen: tuple[str, float] = ("", 0.0)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, lost: Callable[[], None]) -> None:
        """Wait until it is held, or `release` is called; from there on it is renewed.

        Args:
            lost: is called once, from another thread, when it can no longer be relied on.
        """
        told = False
        while not self._closing.is_set():
            try:
                if self._take():
                    break
            except ClusterError as error:
                _log.warning("cluster does not answer", kind="Lease", code=error.code, why=error.words)
            else:
                if not told:
                    _log.info("another trainer is active; waiting", lease=self._name)
                    told = True
            self._closing.wait(self._duration_s / 5)
        if self._closing.is_set():
            return
        self._thread = threading.Thread(target=self._renew, args=(lost,), name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the next one have it at once."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(self._duration_s)
        try:
            found = self._cluster.get("Lease", self._name)
            if found is not None and found["spec"].get("holderIdentity") == self._holder:
                found["spec"]["holderIdentity"] = ""
                self._cluster.replace(found)
        except ClusterError:
            return  # it expires by itself

    def _renew(self, lost: Callable[[], None]) -> None:
        renewed = time.monotonic()
        while not self._closing.wait(self._duration_s / 5):
            asked = time.monotonic()
            try:
                if not self._take():
                    lost()
                    return
                renewed = asked
            except ClusterError as error:
                _log.warning("cluster does not answer", kind="Lease", code=error.code, why=error.words)
                if time.monotonic() - renewed > 0.6 * self._duration_s:
                    lost()
                    return

    def _take(self) -> bool:
        """Take or renew it; says whether it is held."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": max(1, int(self._duration_s)),
            "renewTime": stamp,
        }
        found = self._cluster.get("Lease", self._name)
        body: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._cluster.namespace},
            "spec": spec,
        }
        try:
            if found is None:
                self._cluster.create(body)
                return True
            if not self._free(found):
                return False
            # Another one that takes it in the same moment changes the version, and one of the two is refused.
            body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
            self._cluster.replace(body)
        except ClusterError as error:
            if error.code == 409:
                return False
            raise
        return True

    def _free(self, found: dict[str, Any]) -> bool:
        holder, version = found["spec"].get("holderIdentity"), found["metadata"]["resourceVersion"]
        if holder in (self._holder, "", None):
            return True
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        return time.monotonic() - self._seen[1] > self._duration_s
