"""Why a worker does not run yet, in words for the analyst who waits: from conditions and events. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LONGEST = 240
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"})
# What a node could not do for a pod, and goes on trying: a volume, a secret or a network that is not there.
_NODE = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady"})
_BROKEN = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def words(job: dict[str, Any], pods: Iterable[dict[str, Any]], events: dict[str, list[dict[str, Any]]]) -> str:
    """Return what an attempt waits for, as words that follow "waiting for"; empty where its pods run.

    Args:
        job: its Job.
        pods: those of it that are not over.
        events: by the uid of what they are about, oldest first.
    """
    queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if job["spec"].get("suspend"):
        return _cut(f"a turn in the queue {queue}" if queue else "its Job to be resumed")
    found = [_of_pod(pod, events.get(pod["metadata"]["uid"], [])) for pod in pods]
    if not found:
        # An event need have neither a reason nor a message.
        about = events.get(job["metadata"]["uid"], [])
        told = [event.get("message", "") for event in about if event.get("reason") == "FailedCreate"]
        if told and "quota" in told[-1]:
            return _cut(f"room in the quota: {told[-1].partition('forbidden: ')[2] or told[-1]}")
        return _cut(f"its pod: {told[-1]}") if told and told[-1] else "its pod"
    return next(filter(None, found), "")


def image_trouble(pods: Iterable[dict[str, Any]]) -> bool:
    """Say whether the image of some pod cannot be pulled."""
    return any(_waiting(pod).get("reason") in _IMAGE for pod in pods)


def broken(pods: Iterable[dict[str, Any]]) -> str:
    """Return why a container of some pod can never be made, or nothing."""
    for pod in pods:
        if (state := _waiting(pod)).get("reason") in _BROKEN:
            return _cut(f"{state['reason']}: {state.get('message', '')}")
    return ""


def _of_pod(pod: dict[str, Any], events: list[dict[str, Any]]) -> str:
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return ""
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            wanted = "a GPU node" if _wants_gpu(pod) else "a node"
            if any(event.get("reason") in ("TriggeredScaleUp", "Nominated") for event in events):
                return f"{wanted}, which is being made"
            return _cut(f"{wanted}: {condition.get('message') or 'none fits'}")
    if (state := _waiting(pod)).get("reason") in _IMAGE:
        return _cut(f"its image, which cannot be pulled: {state.get('message') or state['reason']}")
    if not pod.get("spec", {}).get("nodeName"):
        return "a node"
    # The newest alone: what came after a trouble says that it is over.
    newest = events[-1] if events else {}
    told = newest.get("message") if newest.get("reason") in _NODE else ""
    return _cut(f"its container: {told}") if told else "its container"


def _waiting(pod: dict[str, Any]) -> dict[str, Any]:
    for container in pod.get("status", {}).get("containerStatuses", []):
        state: dict[str, Any] = container.get("state", {}).get("waiting") or {}
        if state:
            return state
    return {}


def _wants_gpu(pod: dict[str, Any]) -> bool:
    limits = pod.get("spec", {}).get("containers", [{}])[0].get("resources", {}).get("limits", {})
    return any("/" in resource for resource in limits)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
