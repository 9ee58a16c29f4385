"""What is asked of a cluster, against the API's own schemas."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from services.trainer.cluster import objects, waiting
from services.trainer.cluster.settings import ClusterSettings
from services.trainer.launcher import WorkOrder

ID = "0123456789abcdef"
VERSIONS = ["1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
FULL = {
    "queue": "team",
    "models_claim": "models",
    "authority_config_map": "authority",
    "image_pull_secrets": ["registry"],
    "node_selector": {"murmura.dev/pool": "gpu"},
    "tolerations": [{"key": "team", "operator": "Exists"}],
}


def settings(**facts: Any) -> ClusterSettings:
    return ClusterSettings(**({"image": "registry.example/worker@sha256:0"} | facts))


def made(nodes: int = 1, **facts: Any) -> dict[str, Any]:
    order = WorkOrder(f"trainingJobs/{ID}", ID, 12, "secret-token", nodes)
    return objects.job(order, settings(**facts), {"MURMURA_PROCESSES": "1"}, ["python"], 3600.0)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("facts", [{}, {"fake_gpu": True}, FULL])
@pytest.mark.parametrize("nodes", [1, 4])
def test_every_version_takes_it_strictly(version: str, facts: dict[str, Any], nodes: int) -> None:
    kubernetes_validate.validate(made(nodes, **facts), version, strict=True)
    order = WorkOrder(f"trainingJobs/{ID}", ID, 12, "", nodes)
    for met in objects.meeting(order, settings(), "a-uid"):
        kubernetes_validate.validate(met, version, strict=True)


def test_the_schemas_would_notice() -> None:
    wrong = made()
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.36", strict=True)


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_failed_pod_is_judged_in_this_order(nodes: int) -> None:
    spec = made(nodes)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", nodes, nodes)
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    rules = spec["podFailurePolicy"]["rules"]
    alone = nodes == 1
    assert [rule["action"] for rule in rules] == [
        "Ignore" if alone else "FailJob",
        "FailJob",
        "Ignore" if alone else "FailJob",
        "FailJob",
    ]
    assert [rule["onPodConditions"][0]["type"] for rule in rules[:2]] == ["DisruptionTarget", "ConfigIssue"]
    assert [(rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"]) for rule in rules[2:]] == [
        ("In", [75]),
        ("NotIn", [75]),
    ]


def test_a_pod_may_do_nothing_but_its_work() -> None:
    spec = pod(made())
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # Its last words are what it writes, never the end of its log.
    assert container["terminationMessagePolicy"] == "File"
    for amount in ("memory", "ephemeral-storage"):
        assert container["resources"]["limits"][amount] == container["resources"]["requests"][amount]
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)
    token = next(volume for volume in spec["volumes"] if volume["name"] == "token")
    assert [source["serviceAccountToken"]["audience"] for source in token["projected"]["sources"]] == [objects.AUDIENCE]


def test_pods_of_a_gang_hear_each_other_and_nobody_else_hears_them() -> None:
    """Sums without noise travel between them; every other pod is shut out by what the manifests deny by default."""
    order = WorkOrder(f"trainingJobs/{ID}", ID, 12, "", 2)
    service, policy = objects.meeting(order, settings(), "a-uid")
    marks = made(2)["spec"]["template"]["metadata"]["labels"]
    assert policy["kind"] == "NetworkPolicy"
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == marks
    assert {objects.JOB, objects.ATTEMPT, objects.DEPLOYMENT} <= set(marks)
    only = [{"podSelector": {"matchLabels": marks}}]
    assert (policy["spec"]["ingress"], policy["spec"]["egress"]) == ([{"from": only}], [{"to": only}])
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for owned in (service, policy):
        [owner] = owned["metadata"]["ownerReferences"]
        # Where owners' finalizers are guarded, as OpenShift does, who blocks a Job's deletion needs a right to them.
        assert (owner["uid"], owner.get("blockOwnerDeletion", False)) == ("a-uid", False)


def test_the_job_token_is_nowhere_in_it() -> None:
    assert "secret-token" not in str(made(2, **FULL))


def test_a_gpu_is_asked_for_unless_there_is_none_to_have() -> None:
    real, fake = pod(made(gpus=2)), pod(made(gpus=2, fake_gpu=True))
    limits = real["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "2"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in real["tolerations"]
    assert "nvidia.com/gpu" not in str(fake)


def test_nobody_moves_a_pod_that_works() -> None:
    assert made()["spec"]["template"]["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }


def test_waiting_does_not_count_as_running() -> None:
    job = made()
    assert "activeDeadlineSeconds" not in job["spec"]
    assert pod(job)["activeDeadlineSeconds"] == 3600


def test_a_queue_lets_it_go() -> None:
    job = made(queue="team")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspend" not in made()["spec"]


def test_names_are_hostnames_with_any_index() -> None:
    assert len(f"{objects.name('f' * 16, 999)}-63") <= 63
    assert len(f"{objects.name('f' * 16, 999)}-0.{objects.name('f' * 16, 999)}") <= 63


def test_what_is_the_same_has_the_same_hash_and_what_is_not_another() -> None:
    def annotation(job: dict[str, Any]) -> str:
        return str(job["metadata"]["annotations"][objects.SPEC_HASH])

    assert annotation(made()) == annotation(made())
    assert annotation(made()) != annotation(made(cpu="8"))


@pytest.mark.parametrize(
    "wrong", [{"namespace": "Not A Name"}, {"memory": "lots"}, {"gpus": -1}, {"image": ""}, {"models_path": "models"}]
)
def test_settings_that_cannot_be_are_named(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MURMURA_CLUSTER_IMAGE", "worker")
    [(name, value)] = wrong.items()
    monkeypatch.setenv(f"MURMURA_CLUSTER_{name.upper()}", str(value))
    with pytest.raises(SystemExit):
        ClusterSettings.load()
    assert f"MURMURA_CLUSTER_{name.upper()}: " in capsys.readouterr().err


# ---------------------------------------------------------------- why it waits


def waits(pod: dict[str, Any] | None, *events: tuple[str, str | None, str | None], **job: Any) -> str:
    found = {"metadata": {"uid": "j", "labels": job.pop("labels", {})}, "spec": job}
    told: dict[str, list[dict[str, Any]]] = {}
    for uid, reason, message in events:
        said = {"reason": reason, "message": message}
        told.setdefault(uid, []).append({name: value for name, value in said.items() if value is not None})
    return waiting.words(found, [{"metadata": {"uid": "p"}} | pod] if pod else [], told)


GPU = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
NOWHERE = {
    "spec": GPU,
    "status": {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no GPU"}],
    },
}
NO_AUTHORITY = 'MountVolume.SetUp failed for volume "authority" : configmap "murmura-authority" not found'
QUOTA = 'Error creating: pods "x" is forbidden: exceeded quota: team, requested: pods=1'


def container(reason: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": "no such image"}}
    return {"spec": {"nodeName": "n"}, "status": {"phase": "Pending", "containerStatuses": [{"state": state}]}}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (waits(NOWHERE), "a GPU node: 0/3 nodes: no GPU"),
        (waits(NOWHERE, ("p", "TriggeredScaleUp", "pool 0->1")), "a GPU node, which is being made"),
        (waits(NOWHERE | {"spec": {}}), "a node: 0/3 nodes: no GPU"),
        (waits(None, ("j", "FailedCreate", QUOTA)), "room in the quota: exceeded quota: team, requested: pods=1"),
        (waits(None), "its pod"),
        # Whoever makes an event may leave out what the scheduler writes.
        (waits(None, ("j", "FailedCreate", None), ("j", None, "odd")), "its pod"),
        (waits(NOWHERE, ("p", None, None)), "a GPU node: 0/3 nodes: no GPU"),
        (waits(None, suspend=True, labels={"kueue.x-k8s.io/queue-name": "team"}), "a turn in the queue team"),
        (waits(container("ImagePullBackOff")), "its image, which cannot be pulled: no such image"),
        (waits(container("ContainerCreating")), "its container"),
        (
            waits(container("ContainerCreating"), ("p", "Scheduled", "to n"), ("p", "FailedMount", NO_AUTHORITY)),
            f"its container: {NO_AUTHORITY}",
        ),
        # It is there by now.
        (
            waits(container("ContainerCreating"), ("p", "FailedMount", NO_AUTHORITY), ("p", "Pulling", "")),
            "its container",
        ),
        (waits(container("ContainerCreating"), ("p", "FailedMount", None)), "its container"),
        (waits({"spec": {}, "status": {"phase": "Running"}}), ""),
    ],
)
def test_the_analyst_reads_what_is_waited_for(said: str, words: str) -> None:
    assert said == words


def test_a_cluster_that_says_much_is_cut_short() -> None:
    said = waits(None, ("j", "FailedCreate", "no\n" * 2000))
    assert len(said) <= 240
    assert "\n" not in said
