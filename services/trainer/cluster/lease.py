"""One active trainer: a lease in the cluster, held by renewing it.

Two trainers on the same jobs would each start workers and believe the other's to be leftovers. Clocks of machines
differ, so a lease counts as expired when it has not changed for its whole duration by the watcher's own clock. A holder
that could not renew it gives up before that, also while it still waits for an answer: a server that has frozen keeps a
call for longer than a lease lasts.
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
# Of its duration, after which a lease that was not renewed can no longer be relied on.
_RELIED_ON = 0.6
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
        # When the last renewal that succeeded was asked for: the others' clocks began to run at that moment or later.
        self._renewed = 0.0
        self._closing = threading.Event()
        self._lost = False
        self._threads: list[threading.Thread] = []

    def acquire(self, lost: Callable[[], None]) -> None:
        """Wait until it is held, or `release` is called; from there on it is renewed.

        Args:
            lost: is called once, from another thread, when it can no longer be relied on.
        """
        told = False
        while not self._closing.is_set():
            try:
                if self._renew():
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
        self._threads = [
            threading.Thread(target=self._keep, name="lease", daemon=True),
            threading.Thread(target=self._guard, args=(lost,), name="lease guard", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def release(self) -> None:
        """Let the next one have it at once, unless it was lost."""
        self._closing.set()
        if self._lost:
            return  # nor is a call that still waits for its answer waited for
        for thread in self._threads:
            thread.join(self._duration_s)
        try:
            found = self._cluster.get("Lease", self._name)
            if found is not None and found["spec"].get("holderIdentity") == self._holder:
                found["spec"]["holderIdentity"] = ""
                self._cluster.replace(found)
        except ClusterError:
            return  # it expires by itself

    def _keep(self) -> None:
        """Renew it again and again."""
        while not self._closing.wait(self._duration_s / 5):
            try:
                if not self._renew():
                    self._renewed = float("-inf")
                    return
            except ClusterError as error:
                _log.warning("cluster does not answer", kind="Lease", code=error.code, why=error.words)

    def _guard(self, lost: Callable[[], None]) -> None:
        """Say once that it is lost: in time, whatever call the other thread waits for."""
        while not self._closing.wait(self._duration_s / 50):
            if time.monotonic() - self._renewed > _RELIED_ON * self._duration_s:
                self._lost = True
                self._closing.set()
                lost()

    def _renew(self) -> bool:
        """Take or renew it, and note when; says whether it is held."""
        asked = time.monotonic()
        held = self._take()
        if held:
            self._renewed = asked
        return held

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
