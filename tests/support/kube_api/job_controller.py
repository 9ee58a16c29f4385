"""Jobs: their pods, and how they end. Indexed completion and pod failure policies, as in Kubernetes 1.31 and later."""

from __future__ import annotations

import time
import uuid
from typing import Any

from tests.support.kube_api.store import FOREGROUND, Store, event, now

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"


class JobController:
    """Brings jobs one step further."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.most_pods: int | None = None
        self.replace_after_s = 0.2
        self._failed_at: dict[str, float] = {}

    def step(self) -> None:
        for job in self._store.select("jobs"):
            self._one(job)
        for pod in self._store.select("pods"):
            owner = self._owner(pod)
            counted = _over(pod) or owner is None or "deletionTimestamp" in owner["metadata"]
            if TRACKING in pod["metadata"].get("finalizers", []) and counted:
                self._store.update("pods", pod, lambda object: object["metadata"]["finalizers"].remove(TRACKING))
        self._collect()

    def _owner(self, pod: dict[str, Any]) -> dict[str, Any] | None:
        uid = pod["metadata"].get("ownerReferences", [{}])[0].get("uid")
        return next((job for job in self._store.select("jobs") if job["metadata"]["uid"] == uid), None)

    def _one(self, job: dict[str, Any]) -> None:
        meta, spec = job["metadata"], job["spec"]
        status = job.get("status", {})
        pods = [pod for plural, pod in self._store.dependents(meta["uid"]) if plural == "pods"]
        active = [pod for pod in pods if not _over(pod)]
        if meta.get("deletionTimestamp"):
            return
        if any(c["type"] in ("Failed", "Complete") for c in status.get("conditions", [])):
            return
        if spec.get("suspend"):
            self._status(job, active=len(active), conditions=[condition("Suspended", "JobSuspended", "Job suspended")])
            return
        done = {_index(pod) for pod in pods if pod.get("status", {}).get("phase") == "Succeeded"}
        verdict = self._verdict(job, pods)
        if verdict is not None:
            if active:
                for pod in active:
                    self._delete(pod)
                self._status(job, active=len(active), conditions=[condition("FailureTarget", *verdict)])
                return
            self._status(
                job, active=0, conditions=[condition("FailureTarget", *verdict), condition("Failed", *verdict)]
            )
            return
        if len(done) >= spec.get("completions", 1):
            self._status(job, active=0, conditions=[condition("SuccessCriteriaMet"), condition("Complete")])
            return
        taken = done | {_index(pod) for pod in active}
        for index in range(spec.get("completions", 1)):
            if index not in taken and self._may_replace(job):
                self._create(job, index)
        active = [pod for plural, pod in self._store.dependents(meta["uid"]) if plural == "pods" and not _over(pod)]
        self._status(job, active=len(active), conditions=[])

    def _verdict(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> tuple[str, str] | None:
        counted = 0
        for pod in pods:
            if pod.get("status", {}).get("phase") != "Failed":
                continue
            action = _action(job["spec"].get("podFailurePolicy", {}).get("rules", []), pod)
            if action == "FailJob":
                return (
                    "PodFailurePolicy",
                    f"Container worker for pod {pod['metadata']['name']} failed matching FailJob rule",
                )
            if action == "Ignore":
                self._failed_at[job["metadata"]["uid"]] = (
                    self._failed_at.get(job["metadata"]["uid"], 0) or time.monotonic()
                )
            counted += action == "Count"
        if counted > job["spec"].get("backoffLimit", 6):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        return None

    def _may_replace(self, job: dict[str, Any]) -> bool:
        failed = self._failed_at.get(job["metadata"]["uid"])
        return failed is None or time.monotonic() - failed > self.replace_after_s

    def _create(self, job: dict[str, Any], index: int) -> None:
        meta = job["metadata"]
        if (
            self.most_pods is not None
            and sum(not _over(p) for p in self._store.select("pods", meta["namespace"])) >= self.most_pods
        ):
            event(
                self._store,
                job,
                "FailedCreate",
                "Error creating: pods is forbidden: exceeded quota: team, requested: pods=1, used: pods="
                f"{self.most_pods}, limited: pods={self.most_pods}",
                "job-controller",
            )
            return
        self._failed_at.pop(meta["uid"], None)
        template = job["spec"]["template"]
        labels = template.get("metadata", {}).get("labels", {}) | {
            "batch.kubernetes.io/job-name": meta["name"],
            "batch.kubernetes.io/controller-uid": meta["uid"],
            INDEX: str(index),
        }
        annotations = template.get("metadata", {}).get("annotations", {}) | {INDEX: str(index)}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{meta['name']}-{index}-{uuid.uuid4().hex[:5]}",
                "labels": labels,
                "annotations": annotations,
                "finalizers": [TRACKING],
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": meta["name"],
                        "uid": meta["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": template["spec"] | {"hostname": f"{meta['name']}-{index}"},
            "status": {"phase": "Pending"},
        }
        self._store.create("pods", meta["namespace"], pod)

    def _delete(self, pod: dict[str, Any]) -> None:
        if not pod["metadata"].get("deletionTimestamp"):
            self._store.delete("pods", pod["metadata"]["namespace"], pod["metadata"]["name"], {})

    def _status(self, job: dict[str, Any], **facts: Any) -> None:
        def change(object: dict[str, Any]) -> None:
            status = object.setdefault("status", {})
            old = {c["type"]: c for c in status.get("conditions", [])}
            facts["conditions"] = [old.get(c["type"], c) for c in facts["conditions"]]
            status.update(facts)
            status.setdefault("startTime", now())

        self._store.update("jobs", job, change)

    def _collect(self) -> None:
        """Let what is owned by something that goes, go too."""
        for (plural, namespace, name), found in list(self._store.objects.items()):
            for owner in found["metadata"].get("ownerReferences", []):
                alive = [o for _, o in _with_uid(self._store, owner["uid"])]
                going = not alive or (
                    FOREGROUND in alive[0]["metadata"].get("finalizers", [])
                    and alive[0]["metadata"].get("deletionTimestamp")
                )
                if going and not found["metadata"].get("deletionTimestamp"):
                    self._store.delete(plural, namespace, name, {})
        for plural, found in [(p, o) for (p, _, _), o in list(self._store.objects.items())]:
            if FOREGROUND in found["metadata"].get("finalizers", []) and not list(
                self._store.dependents(found["metadata"]["uid"])
            ):
                self._store.update(plural, found, lambda object: object["metadata"]["finalizers"].remove(FOREGROUND))


def _with_uid(store: Store, uid: str) -> list[tuple[str, dict[str, Any]]]:
    return [(plural, o) for (plural, _, _), o in store.objects.items() if o["metadata"]["uid"] == uid]


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}


def _over(pod: dict[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _index(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["annotations"][INDEX])


def _action(rules: list[dict[str, Any]], pod: dict[str, Any]) -> str:
    status = pod["status"]
    codes = [
        s["state"]["terminated"]["exitCode"]
        for s in status.get("containerStatuses", [])
        if "terminated" in s.get("state", {})
    ]
    for rule in rules:
        for wanted in rule.get("onPodConditions", []):
            for found in status.get("conditions", []):
                if found["type"] == wanted["type"] and found["status"] == wanted.get("status", "True"):
                    return str(rule["action"])
        if (exits := rule.get("onExitCodes")) is not None:
            for code in codes:
                if code and (code in exits["values"]) == (exits["operator"] == "In"):
                    return str(rule["action"])
    return "Count"
