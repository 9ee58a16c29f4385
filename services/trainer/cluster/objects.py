"""What is asked of the cluster for an attempt of a job, as plain data.

A Job with exactly the pods that work at once, each with an index; where there are several, a Service under which they
find each other, and a NetworkPolicy that lets them and nobody else. Nothing private is in any of it: names, labels and
annotations are read by whoever may list them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from services.trainer.cluster.settings import ClusterSettings
from services.trainer.launcher import EVICTED, WorkOrder

CONTAINER = "worker"
JOB, ATTEMPT, DEPLOYMENT = "murmura.dev/job", "murmura.dev/attempt", "murmura.dev/deployment"
SPEC_HASH = "murmura.dev/spec-hash"
INDEX = "batch.kubernetes.io/job-completion-index"
AUDIENCE = "murmura-trainer"
SUMMARY = "/dev/termination-log"
MEETING_PORT = 29_400
_TOKEN_DIRECTORY = "/var/run/secrets/murmura"  # noqa: S105 - a place, not a secret
_AUTHORITY_DIRECTORY = "/etc/murmura/authority"
# SIGTERM leaves so long to finish a step and save a checkpoint.
_GRACE_S = 90
_TOKEN_LIFETIME_S = 600
_DAY_S = 86_400
_USER = 10_001


def name(job_id: str, attempt: int) -> str:
    """Return the name of an attempt's Job; with a pod's index behind it, it is a hostname of at most 63 characters."""
    return f"tj-{job_id}-a{attempt}"


def labels(settings: ClusterSettings, job_id: str, attempt: int) -> dict[str, str]:
    """Return the labels of everything that belongs to an attempt."""
    return {
        "app.kubernetes.io/name": "murmura-worker",
        "app.kubernetes.io/managed-by": "murmura-trainer",
        JOB: job_id,
        ATTEMPT: str(attempt),
        DEPLOYMENT: settings.deployment,
    }


def attempt_of(marks: dict[str, str]) -> int:
    """Return the attempt that labels name; 0 where they name none, for whoever makes pods labels them at will."""
    found = marks.get(ATTEMPT, "")
    return int(found) if found.isdecimal() else 0


def job(
    order: WorkOrder, settings: ClusterSettings, environment: dict[str, str], command: list[str], running_limit_s: float
) -> dict[str, Any]:
    """Return the Job of an attempt.

    Args:
        order: the attempt.
        settings: of the cluster.
        environment: what every worker is told, besides its job.
        command: what a worker runs.
        running_limit_s: after which the cluster ends a pod, should the trainer be away; waiting does not count.
    """
    marks = labels(settings, order.job_id, order.attempt)
    spec: dict[str, Any] = {
        # Indexed for one pod too, so that there is one way only.
        "completionMode": "Indexed",
        "completions": order.nodes,
        "parallelism": order.nodes,
        "backoffLimit": 0,
        # A pod is replaced once it is certain that it runs no more.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules(order.nodes)},
        "ttlSecondsAfterFinished": _DAY_S,
        "template": {
            "metadata": {
                "labels": marks,
                "annotations": {
                    "karpenter.sh/do-not-disrupt": "true",
                    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                },
            },
            "spec": _pod(order, settings, environment, command, running_limit_s),
        },
    }
    metadata: dict[str, Any] = {
        "name": name(order.job_id, order.attempt),
        "namespace": settings.namespace,
        "labels": dict(marks),
    }
    if settings.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
        spec["suspend"] = True  # Kueue lets it go when its turn has come
    metadata["annotations"] = {SPEC_HASH: digest(spec)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def meeting(order: WorkOrder, settings: ClusterSettings, uid: str) -> list[dict[str, Any]]:
    """Return what the pods of an attempt need to meet: a Service and a NetworkPolicy.

    Sums without noise travel between the pods, and whoever could speak to them could falsify those; so the policy opens
    them to each other and to no other worker. Both go with the Job of this uid.
    """
    called = name(order.job_id, order.attempt)
    marks = labels(settings, order.job_id, order.attempt)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": called, "uid": uid, "controller": True}
    metadata = {
        "name": called,
        "namespace": settings.namespace,
        "labels": marks,
        "ownerReferences": [owner],
    }
    each_other = [{"podSelector": {"matchLabels": marks}}]
    service = {
        "clusterIP": "None",
        "selector": marks,
        # They look for each other before any of them is ready.
        "publishNotReadyAddresses": True,
        "ports": [{"name": "meeting", "port": MEETING_PORT, "protocol": "TCP"}],
    }
    policy = {
        "podSelector": {"matchLabels": marks},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": each_other}],
        "egress": [{"to": each_other}],
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": policy},
    ]


def digest(spec: dict[str, Any]) -> str:
    """Return what tells two specifications apart; the cluster fills in defaults, so what it returns cannot."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def _failure_rules(nodes: int) -> list[dict[str, Any]]:
    """Return what becomes of a failed pod; the first rule that fits counts.

    A pod alone is replaced by the cluster when it was evicted, said so by its exit code or not. Of several none can go
    on without the others: they end together, and the trainer makes another attempt.
    """
    disrupted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    broken = {"action": "FailJob", "onPodConditions": [{"type": "ConfigIssue", "status": "True"}]}
    exits = {"containerName": CONTAINER, "values": [EVICTED]}
    others = {"action": "FailJob", "onExitCodes": exits | {"operator": "NotIn"}}
    if nodes > 1:
        return [
            disrupted | {"action": "FailJob"},
            broken,
            {"action": "FailJob", "onExitCodes": exits | {"operator": "In"}},
            others,
        ]
    return [
        disrupted | {"action": "Ignore"},
        broken,
        {"action": "Ignore", "onExitCodes": exits | {"operator": "In"}},
        others,
    ]


def _pod(
    order: WorkOrder, settings: ClusterSettings, environment: dict[str, str], command: list[str], running_limit_s: float
) -> dict[str, Any]:
    mounts, volumes = _volumes(settings)
    amounts = {"memory": settings.memory, "ephemeral-storage": settings.ephemeral_storage}
    tolerations = list(settings.tolerations)
    if settings.gpus and not settings.fake_gpu:
        amounts[settings.gpu_resource] = str(settings.gpus)
        tolerations.append({"key": settings.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": int(running_limit_s),
        "terminationGracePeriodSeconds": _GRACE_S,
        "serviceAccountName": settings.service_account,
        # The one token that it gets is for the trainer alone: the cluster's API takes it from nobody.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": settings.node_selector,
        "tolerations": tolerations,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "imagePullPolicy": settings.image_pull_policy,
                "command": command,
                "env": _environment(order, settings, environment),
                "resources": {"requests": amounts | {"cpu": settings.cpu}, "limits": amounts},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePath": SUMMARY,
                # Never its log: a summary is what the worker means to say.
                "terminationMessagePolicy": "File",
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": one} for one in settings.image_pull_secrets]
    if order.nodes > 1:
        spec["subdomain"] = name(order.job_id, order.attempt)
    return spec


def _environment(order: WorkOrder, settings: ClusterSettings, told: dict[str, str]) -> list[dict[str, Any]]:
    own = {
        "MURMURA_JOB": order.job,
        "MURMURA_ATTEMPT": str(order.attempt),
        "MURMURA_POD_TOKEN_FILE": f"{_TOKEN_DIRECTORY}/token",
        "MURMURA_SUMMARY_FILE": SUMMARY,
        "HOME": "/tmp",  # noqa: S108 - a volume of the pod's own
    }
    if settings.authority_config_map:
        own["MURMURA_TLS_AUTHORITY"] = f"{_AUTHORITY_DIRECTORY}/ca.crt"
    if order.nodes > 1:
        called = name(order.job_id, order.attempt)
        own |= {
            "MURMURA_NODES": str(order.nodes),
            "MURMURA_MASTER_ADDR": f"{called}-0.{called}",
            "MURMURA_MASTER_PORT": str(MEETING_PORT),
        }
    variables: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted((told | own).items())]
    if order.nodes > 1:
        path = f"metadata.annotations['{INDEX}']"
        variables.append({"name": "MURMURA_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": path}}})
    return variables


def _volumes(settings: ClusterSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    token = {"path": "token", "audience": AUDIENCE, "expirationSeconds": _TOKEN_LIFETIME_S}
    mounts: list[dict[str, Any]] = [
        {"name": "token", "mountPath": _TOKEN_DIRECTORY, "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - where processes of a worker share tensors
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o440}},
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.ephemeral_storage}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
    ]
    if settings.models_claim:
        mounts.append({"name": "models", "mountPath": settings.models_path, "readOnly": True})
        claim = {"claimName": settings.models_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    if settings.authority_config_map:
        mounts.append({"name": "authority", "mountPath": _AUTHORITY_DIRECTORY, "readOnly": True})
        volumes.append({"name": "authority", "configMap": {"name": settings.authority_config_map}})
    return mounts, volumes
