"""Which pod runs where; and an autoscaler that makes a node for one that fits nowhere, and removes empty ones."""

from __future__ import annotations

import time
import uuid
from typing import Any

from tests.support.kube_api.store import Store, event, now

GPU = "nvidia.com/gpu"


class Scheduler:
    """Binds pods to nodes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Seconds until a node appears for a pod that wants a GPU; None: never.
        self.node_after_s: float | None = None
        self.empty_for_s = 0.5
        self._wanted: dict[str, float] = {}
        self._empty: dict[str, float] = {}

    def add_node(
        self, name: str, *, gpus: int = 0, pods: int = 500, made: bool = False, labels: dict[str, str] | None = None
    ) -> None:
        taints = [{"key": GPU, "value": "present", "effect": "NoSchedule"}] if gpus else []
        self._store.create(
            "nodes",
            "",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {"made-by-autoscaler": str(made), **(labels or {})}},
                "spec": {"taints": taints},
                "status": {
                    "capacity": {GPU: str(gpus), "pods": str(pods)},
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now()}],
                },
            },
        )

    def step(self) -> None:
        for pod in self._store.select("pods"):
            if (
                pod["spec"].get("nodeName")
                or pod["metadata"].get("deletionTimestamp")
                or pod["status"].get("phase") != "Pending"
            ):
                continue
            node = next((n for n in self._store.select("nodes") if self._fits(pod, n)), None)
            if node is not None:
                self._store.update("pods", pod, lambda object, node=node: _bind(object, node["metadata"]["name"]))
                continue
            self._refuse(pod)
            self._scale_up(pod)
        self._scale_down()

    def _on(self, node: str) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self._store.select("pods")
            if pod["spec"].get("nodeName") == node and pod["status"].get("phase") not in ("Succeeded", "Failed")
        ]

    def _fits(self, pod: dict[str, Any], node: dict[str, Any]) -> bool:
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
        labels = node["metadata"]["labels"]
        tolerated = {t.get("key") for t in pod["spec"].get("tolerations", [])}
        on = self._on(node["metadata"]["name"])
        capacity = node["status"]["capacity"]
        return (
            ready
            and all(labels.get(key) == value for key, value in pod["spec"].get("nodeSelector", {}).items())
            and all(taint["key"] in tolerated for taint in node["spec"].get("taints", []))
            and len(on) < int(capacity["pods"])
            and sum(map(_gpus, on)) + _gpus(pod) <= int(capacity[GPU])
        )

    def _refuse(self, pod: dict[str, Any]) -> None:
        nodes = len(list(self._store.select("nodes")))
        message = f"0/{nodes} nodes are available: {nodes} Insufficient {GPU}."

        def change(object: dict[str, Any]) -> None:
            if not object["status"].get("conditions"):
                object["status"]["conditions"] = [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
                ]

        self._store.update("pods", pod, change)
        event(self._store, pod, "FailedScheduling", message, "default-scheduler")

    def _scale_up(self, pod: dict[str, Any]) -> None:
        if self.node_after_s is None or not _gpus(pod):
            return
        since = self._wanted.setdefault(pod["metadata"]["uid"], time.monotonic())
        event(
            self._store,
            pod,
            "TriggeredScaleUp",
            "pod triggered scale-up: [{gpu-pool 0->1 (max: 4)}]",
            "cluster-autoscaler",
        )
        if time.monotonic() - since > self.node_after_s:
            self._wanted[pod["metadata"]["uid"]] = time.monotonic()
            labels = pod["spec"].get("nodeSelector", {})
            self.add_node(f"gpu-{uuid.uuid4().hex[:6]}", gpus=max(1, _gpus(pod)), made=True, labels=labels)

    def _scale_down(self) -> None:
        for node in self._store.select("nodes"):
            name = node["metadata"]["name"]
            if node["metadata"]["labels"].get("made-by-autoscaler") != "True":
                continue
            if self._on(name):
                self._empty.pop(name, None)
            elif time.monotonic() - self._empty.setdefault(name, time.monotonic()) > self.empty_for_s:
                self._store.remove("nodes", node)


def _gpus(pod: dict[str, Any]) -> int:
    return sum(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) for c in pod["spec"]["containers"])


def _bind(pod: dict[str, Any], node: str) -> None:
    pod["spec"]["nodeName"] = node
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}]
    pod["status"]["startTime"] = now()
