"""The trainer's side of a cluster, and the manifests, with a real Kubernetes API server and the rights of its own role.

Needs `kube-apiserver` and `etcd` (see tests/support/api_server.py) and is skipped where they are not. What a cluster's
controllers and nodes would do, the tests do.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.cluster import objects
from services.trainer.cluster.client import Cluster, ClusterError
from services.trainer.cluster.identity import PodIdentity
from services.trainer.cluster.launcher import KubernetesLauncher
from services.trainer.cluster.lease import Lease
from services.trainer.cluster.settings import ClusterSettings
from services.trainer.cluster.watch import Watched
from services.trainer.launcher import Refused, WorkOrder
from tests.support.api_server import ApiServer, Object, program
from tests.support.kube_api.jobs import job
from tests.support.launchers import seen, until
from tests.support.manifests import RENDERED, needs_kubectl, render

NAMESPACE = "murmura-workers"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
# Of the manifests, what there must be for a trainer to do anything; the order is that in which they need each other.
FIRST = ("Namespace", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
pytestmark = [
    needs_kubectl,
    pytest.mark.skipif(
        None in (program("kube-apiserver"), program("etcd")),
        reason="no kube-apiserver and etcd here: set KUBEBUILDER_ASSETS to where setup-envtest has left them",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path_factory.mktemp("api-server"))
    try:
        made.start()
        for kind in FIRST:
            made.apply("base", kind)
        made.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a-node"}})
        yield made
    finally:
        made.stop()


@pytest.fixture
def trainer(server: ApiServer, tmp_path: Path) -> Cluster:
    return Cluster(NAMESPACE, server.kubeconfig(tmp_path / "trainer", server.token("murmura", "trainer")))


@pytest.fixture
def launcher(trainer: Cluster, tmp_path: Path) -> Iterator[KubernetesLauncher]:
    settings = ClusterSettings(
        image="murmura/worker:test",
        namespace=NAMESPACE,
        deployment=f"test-{uuid.uuid4().hex[:8]}",
        fake_gpu=True,
        network_encrypted=True,
    )
    made = KubernetesLauncher(trainer, settings, tmp_path / "workers", {"MURMURA_X": "1"}, 300.0, stuck_s=0.5)
    made.start(lambda _: None)
    until(lambda: made._jobs.ready(0) and made._pods.ready(0))
    yield made
    for job_id in made.found():
        made.collect(job_id)
    made.close()


def order(nodes: int = 1) -> WorkOrder:
    job_id = uuid.uuid4().hex[:16]
    return WorkOrder(f"trainingJobs/{job_id}", job_id, 1, "a-token", nodes)


def as_controller(server: ApiServer, made: Object) -> list[Object]:
    """Create the pods of a Job, as its controller does."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": made["metadata"]["name"], "uid": made["metadata"]["uid"]}
    pods = []
    for index in range(made["spec"]["parallelism"]):
        template = json.loads(json.dumps(made["spec"]["template"]))
        template["metadata"] |= {
            "name": f"{made['metadata']['name']}-{index}",
            "namespace": NAMESPACE,
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        }
        template["metadata"].setdefault("annotations", {})[objects.INDEX] = str(index)
        pods.append(server.create({"apiVersion": "v1", "kind": "Pod"} | template))
    return pods


def as_node(server: ApiServer, pod: Object, phase: str, state: Object) -> None:
    """Say how a pod is, as its node does."""
    path = f"{PODS}/{pod['metadata']['name']}"
    if not server.ask("GET", path)["spec"].get("nodeName"):
        server.create(
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": pod["metadata"]["name"], "namespace": NAMESPACE},
                "target": {"kind": "Node", "name": "a-node"},
            }
        )
    container = {"name": objects.CONTAINER, "image": "x", "imageID": "x", "ready": False, "restartCount": 0}
    status = {"phase": phase, "startTime": stamp(), "containerStatuses": [container | {"state": state}]}
    server.ask("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json")


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@pytest.mark.parametrize("place", RENDERED)
def test_every_manifest_is_taken(server: ApiServer, place: str) -> None:
    checked, strange = 0, set()
    for found in render(place):
        if not server.has(found):
            strange.add(found["kind"])
        elif found["kind"] not in FIRST:
            server.create(found, "?dryRun=All")
            checked += 1
    assert checked > 25
    known = {"Certificate", "Issuer", "Gateway", "GRPCRoute", "BackendTLSPolicy", "NodePool"}
    known |= {"ServiceMonitor", "PrometheusRule"} | ({"PodDisruptionBudget"} if server.version < (1, 21) else set())
    assert strange <= known


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_from_its_start_to_its_end(
    server: ApiServer, trainer: Cluster, launcher: KubernetesLauncher, nodes: int
) -> None:
    given = order(nodes)
    launcher.ensure(given)
    launcher.ensure(given)  # adopted
    made = trainer.get("Job", objects.name(given.job_id, 1))
    assert made is not None
    assert launcher.observe(given.job_id, 1).waiting == "its pod"
    for kind in ("Service", "NetworkPolicy"):
        assert (trainer.get(kind, made["metadata"]["name"]) is not None) == (nodes > 1)
    pods = as_controller(server, made)
    assert len(pods) == nodes
    seen(launcher, given, lambda found: found.waiting == "a node")
    for pod in pods:
        as_node(server, pod, "Running", {"running": {"startedAt": stamp()}})
    assert seen(launcher, given, lambda found: not found.waiting).alive
    identity = PodIdentity(trainer, "murmura-worker", launcher.owner)
    meta = pods[0]["metadata"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    proof = server.token(NAMESPACE, "murmura-worker", audiences=[objects.AUDIENCE], boundObjectRef=bound)
    assert identity(proof) == (given.job_id, 1)
    for worthless in (
        "rubbish",
        server.token(NAMESPACE, "murmura-worker", audiences=[objects.AUDIENCE]),
        server.token(NAMESPACE, "murmura-worker", boundObjectRef=bound),
        server.token("murmura", "trainer", audiences=[objects.AUDIENCE]),
    ):
        assert identity(worthless) is None
    told = json.dumps({"exit_code": 0, "cause": "", "reported_steps": 3})
    for pod in pods:
        end = {"exitCode": 0, "startedAt": stamp(), "finishedAt": stamp(), "message": told}
        as_node(server, pod, "Succeeded", {"terminated": end})
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": stamp(), "lastProbeTime": stamp()}
    reached = [] if server.version < (1, 31) else [ended | {"type": "SuccessCriteriaMet"}]
    status = {"conditions": [*reached, ended], "startTime": stamp(), "completionTime": stamp(), "succeeded": nodes}
    path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{made['metadata']['name']}/status"
    server.ask("PATCH", path, {"status": status}, "application/merge-patch+json")
    assert seen(launcher, given, lambda found: not found.alive).exit_code == 0

    def collected() -> bool:
        # Nobody collects here what a Job owns, nor takes the finalizer off that waits for it.
        launcher.collect(given.job_id)
        return given.job_id not in launcher.found()

    until(lambda: collected() or ([trainer.delete("Pod", pod, grace_s=0) for pod in pods] and False))
    assert trainer.get("Job", made["metadata"]["name"]) is None


def test_what_a_job_owns_blocks_nothing_that_the_trainer_has_no_right_to(launcher: KubernetesLauncher) -> None:
    """Where owners' finalizers are guarded (OpenShift does), who blocks a Job's deletion needs a right to them."""
    given = order(2)
    launcher.ensure(given)
    assert launcher.observe(given.job_id, 1).exists


def test_a_worker_has_no_right_to_anything(server: ApiServer, tmp_path: Path) -> None:
    worker = Cluster(NAMESPACE, server.kubeconfig(tmp_path / "worker", server.token(NAMESPACE, "murmura-worker")))
    calls: list[Any] = [lambda kind=kind: worker.listed(kind) for kind in ("Job", "Pod", "Service", "Event", "Lease")]
    calls += [lambda: worker.create(job()), lambda: worker.review("x", "y"), lambda: worker.log("x", 1)]
    for call in calls:
        with pytest.raises(ClusterError) as caught:
            call()
        assert caught.value.code == 403


def test_a_quota_is_waited_for_and_a_refusal_is_not(server: ApiServer, launcher: KubernetesLauncher) -> None:
    hard = {"count/jobs.batch": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": NAMESPACE}}
    server.create(quota | {"spec": {"hard": hard}})
    path = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/none"
    status = {"status": {"hard": hard, "used": {"count/jobs.batch": "0"}}}
    server.ask("PATCH", f"{path}/status", status, "application/merge-patch+json")
    given = order()

    def refused() -> bool:
        launcher.ensure(given)
        return not launcher.observe(given.job_id, 1).exists

    try:
        until(refused)
        assert launcher.observe(given.job_id, 1).waiting.startswith("room in the quota: ")
    finally:
        server.ask("DELETE", path)

    def taken() -> bool:
        launcher.ensure(given)
        return launcher.observe(given.job_id, 1).exists

    until(taken)
    with pytest.raises(Refused, match="is invalid: "):
        launcher.ensure(WorkOrder("trainingJobs/x", "No_Name", 1, "a-token", 1))


def test_a_slip_in_a_field_is_refused_and_not_dropped(server: ApiServer, trainer: Cluster) -> None:
    if server.version < (1, 25):
        pytest.skip("it has no strict validation yet")
    wrong = job()
    wrong["spec"]["backofLimit"] = 3
    with pytest.raises(ClusterError, match="backofLimit"):
        trainer.create(wrong)


def test_of_two_changes_at_once_one_is_refused(trainer: Cluster) -> None:
    meta = {"name": "twice", "namespace": NAMESPACE}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {"holderIdentity": ""}}
    made = trainer.create(lease)
    trainer.replace(made | {"spec": {"holderIdentity": "one"}})
    with pytest.raises(ClusterError) as caught:
        trainer.replace(made | {"spec": {"holderIdentity": "two"}})
    assert caught.value.code == 409


def test_what_is_held_by_a_finalizer_is_freed(trainer: Cluster) -> None:
    body = job()
    body["metadata"]["finalizers"] = ["example.com/stuck"]
    made = trainer.create(body)
    trainer.delete("Job", made)
    found = trainer.get("Job", made["metadata"]["name"])
    assert found is not None
    assert found["metadata"]["deletionTimestamp"]
    trainer.release("Job", found | {"metadata": found["metadata"] | {"finalizers": ["example.com/other"]}})
    assert trainer.get("Job", made["metadata"]["name"]) is not None
    trainer.release("Job", found)
    assert trainer.get("Job", made["metadata"]["name"]) is None


def test_pages_make_one_list(trainer: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.cluster.client._PAGE", 2)
    names = {f"page-{number}" for number in range(5)}
    for name in names:
        body = job()
        body["metadata"] |= {"name": name, "labels": {"murmura.dev/pages": "yes"}}
        trainer.create(body)
    found, version = trainer.listed("Job", "murmura.dev/pages=yes")
    assert {one["metadata"]["name"] for one in found} == names
    assert int(version) > 0
    for one in found:
        trainer.delete("Job", one, grace_s=0)


def test_a_server_that_was_away_is_listed_anew(server: ApiServer, trainer: Cluster) -> None:
    watched = Watched(trainer, "Job", "murmura.dev/away=yes", objects.JOB, lambda *_: None, 300.0)
    watched.start()
    assert watched.ready(20)
    server.kill()
    server.start()
    # What it has kept in memory begins anew, so a version of before is too old.
    events = list(trainer.watched("Job", "1", "", 5))
    assert [(event["type"], event["object"].get("code")) for event in events] == [("ERROR", 410)]
    body = job()
    body["metadata"] |= {"name": "after-away", "labels": {"murmura.dev/away": "yes"}}
    made = trainer.create(body)
    until(lambda: watched.get("after-away"), 60)
    trainer.delete("Job", made, grace_s=0)
    until(lambda: watched.get("after-away") is None, 60)
    watched.close()


def test_a_server_that_freezes_costs_the_lease_in_time(server: ApiServer, trainer: Cluster) -> None:
    told: list[float] = []
    first, second = (Lease(trainer, "test-lease", name, 3.0) for name in ("one", "two"))
    first.acquire(lambda: told.append(time.monotonic()))
    server.freeze(True)
    start = time.monotonic()
    try:
        until(lambda: told)
        assert told[0] - start < 3.0
    finally:
        server.freeze(False)
    taken = threading.Event()
    threading.Thread(target=lambda: (second.acquire(lambda: None), taken.set()), daemon=True).start()
    assert taken.wait(60)
    first.release()
    found = trainer.get("Lease", "test-lease")
    assert found is not None
    assert found["spec"]["holderIdentity"] == "two"
    second.release()
