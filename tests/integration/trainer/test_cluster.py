"""The story in a cluster: a GPU node appears for a job and goes after it, whatever else happens in between.

Ledger, dataset service, trainer and workers are real processes; the cluster is the small one of
`tests/support/kube_api`, which has no node until a pod asks for a GPU.
"""

from __future__ import annotations

import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from tests.support.cloud import Cloud
from tests.support.deployment import BASE_MODEL
from tests.support.kube_api.server import NAMESPACE

# Far more steps than a test has time for, and yet a report after few.
LONG = {"epochs": 1_500.0}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud").resolve(), {BASE_MODEL: str(tiny_base_model)}) as made:
        yield made


@pytest.fixture(autouse=True)
def calm(cloud: Cloud) -> Iterator[None]:
    yield
    cloud.wait(cloud.empty, "nothing is left in the cluster", 60)
    cloud.wait(lambda: cloud.api.names("nodes") == [], "no node is left", 30)


def charged_once(cloud: Cloud, dataset: Any, job: Any) -> None:
    account = cloud.account(dataset.account)
    assert account.spent == cloud.reservation(job.reservation).committed
    assert account.pending == privacy_pb2.Price()


def cancel(cloud: Cloud, name: str) -> Any:
    request = trainer_service_pb2.CancelTrainingJobRequest(request_id=str(uuid.uuid4()), name=name)
    cloud.trainer.CancelTrainingJob(request, metadata=cloud.who(), timeout=20)
    return cloud.ended(name)


def test_a_gpu_node_appears_for_a_job_and_goes_after_it(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    assert cloud.api.names("nodes") == []
    name = cloud.create(cloud.spec(dataset, epochs=5.0)).name
    watch = trainer_service_pb2.WatchTrainingJobRequest(name=name)
    stages, nodes = [], set()
    for answer in cloud.trainer.WatchTrainingJob(watch, metadata=cloud.who(), timeout=120):
        job = answer.training_job
        stages.append(job.stage)
        nodes.update(cloud.api.names("nodes"))
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.attempt == 1
    assert len(nodes) == 1
    waited = [stage for stage in stages if re.fullmatch(r"waiting for a GPU node.* since \d+ s.*", stage)]
    assert waited, stages
    assert 0 < job.node_seconds < 120
    assert "training" in stages
    charged_once(cloud, dataset, job)


def test_an_evicted_worker_and_one_that_is_killed_without_a_word_are_replaced_and_charged_once(
    cloud: Cloud, notes: list[dict[str, Any]]
) -> None:
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, epochs=120.0)).name
    cloud.stepping(name)
    first = cloud.pod(name)
    cloud.api.evict(first)
    cloud.wait(lambda: cloud.pod(name) != first, "another pod takes over")
    cloud.wait(lambda: cloud.job(name).stage == "training", "it trains")
    cloud.api.evict(cloud.pod(name), gently=False)
    job = cloud.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.attempt == 1  # the cluster replaced its pods by itself
    charged_once(cloud, dataset, job)


def test_after_a_death_nobody_says_which_steps_ran(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    """What a pod ran beyond its checkpoint may be anything: such a job is charged in full when it is stopped."""
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, **LONG)).name
    cloud.stepping(name)
    first = cloud.pod(name)
    cloud.api.evict(first, gently=False)
    cloud.wait(lambda: cloud.pod(name) != first, "another pod takes over")
    cloud.wait(lambda: cloud.job(name).stage == "training", "it trains")
    job = cancel(cloud, name)
    assert job.state == trainer_pb2.JOB_STATE_CANCELLED
    assert cloud.reservation(job.reservation).committed == job.plan.statement.price


def test_memory_that_runs_out_is_said_so(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, **LONG)).name
    cloud.stepping(name)
    cloud.api.out_of_memory(cloud.pod(name))
    job = cloud.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_FAILED
    assert job.error.message.startswith("Memory ran out.")
    assert cloud.reservation(job.reservation).committed == job.plan.statement.price


def test_a_cancelled_job_leaves_at_once_also_while_it_waits_for_its_node(
    cloud: Cloud, notes: list[dict[str, Any]]
) -> None:
    cloud.api.scheduler.node_after_s = None
    try:
        dataset = cloud.register(notes)
        name = cloud.create(cloud.spec(dataset)).name
        cloud.wait(lambda: "waiting for a GPU node" in cloud.job(name).stage, "it waits")
        assert "Insufficient nvidia.com/gpu" in cloud.job(name).stage
        job = cancel(cloud, name)
        assert job.state == trainer_pb2.JOB_STATE_CANCELLED
        assert cloud.reservation(job.reservation).state == ledger_pb2.RESERVATION_STATE_RELEASED
        assert cloud.account(dataset.account).spent == privacy_pb2.Price()
    finally:
        cloud.api.scheduler.node_after_s = 0.5


def test_a_quota_is_waited_for(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    cloud.api.jobs.most_pods = 0
    try:
        dataset = cloud.register(notes)
        name = cloud.create(cloud.spec(dataset, epochs=5.0)).name
        cloud.wait(lambda: cloud.job(name).stage.startswith("waiting for room in the quota since"), "it waits")
        assert "exceeded quota" in cloud.job(name).stage
    finally:
        cloud.api.jobs.most_pods = None
    assert cloud.ended(name).state == trainer_pb2.JOB_STATE_SUCCEEDED


def test_a_killed_trainer_finds_its_pod_again(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, epochs=120.0)).name
    cloud.stepping(name)
    pod = cloud.pod(name)
    cloud.kill("trainer")
    cloud.start("trainer")
    assert cloud.pod(name) == pod
    job = cloud.ended(name)
    assert (job.state, job.attempt) == (trainer_pb2.JOB_STATE_SUCCEEDED, 1), job
    charged_once(cloud, dataset, job)


def test_a_trainer_that_died_at_the_end_leaves_nothing(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, **LONG)).name
    cloud.stepping(name)
    # The cluster does not answer when the job is cleared away, and then the trainer dies.
    cloud.api.down()
    job = cancel(cloud, name)
    assert job.state == trainer_pb2.JOB_STATE_CANCELLED
    cloud.kill("trainer")
    cloud.api.up()
    assert cloud.api.names("jobs") != []
    cloud.start("trainer")
    cloud.wait(cloud.empty, "what nobody owns is deleted", 60)


def test_a_run_on_two_nodes_outlives_the_eviction_of_one(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    cloud.told = {"WORKER_NODES": "2", "CLUSTER_NETWORK_ENCRYPTED": "true"}
    cloud.api.kubelet.names = True
    cloud.restart("trainer")
    try:
        dataset = cloud.register(notes)
        name = cloud.create(cloud.spec(dataset, epochs=120.0)).name
        cloud.stepping(name)
        assert len(cloud.api.names("nodes")) == len(cloud.api.names("pods")) == 2
        other = next(pod for pod in cloud.api.names("pods") if "-a1-1-" in pod)
        cloud.api.evict(other)
        cloud.wait(lambda: cloud.job(name).attempt == 2, "another attempt is made of both")
        job = cloud.ended(name)
        assert (job.state, job.attempt) == (trainer_pb2.JOB_STATE_SUCCEEDED, 2), job
        charged_once(cloud, dataset, job)
    finally:
        cloud.told = {}
        cloud.api.kubelet.names = False
        cloud.restart("trainer")


def test_a_trainer_that_has_lost_its_lease_touches_no_worker_while_its_last_calls_end(
    cloud: Cloud, notes: list[dict[str, Any]]
) -> None:
    """Another one may be active by then, whose workers it would take for leftovers or start a second time."""
    cloud.told = {"STOP_GRACE_S": "4"}
    cloud.restart("trainer")
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, **LONG)).name
    cloud.stepping(name)
    trainer, ledger, log = cloud.processes["trainer"], cloud.processes["ledger"], cloud.log("trainer")
    told = log.read_text().count('"stopping"')
    # A call that takes longer than the trainer has left.
    ledger.send_signal(signal.SIGSTOP)
    plan = trainer_service_pb2.PlanTrainingJobRequest(spec=cloud.spec(dataset, max_length=14))
    last = cloud.trainer.PlanTrainingJob.future(plan, metadata=cloud.who(), timeout=60)

    def hold(who: str) -> None:
        def mark(lease: dict[str, Any]) -> None:
            lease["spec"]["holderIdentity"] = who

        cloud.api.do(lambda: cloud.api.store.update("leases", next(iter(cloud.api.store.select("leases"))), mark))

    hold("another")
    try:
        cloud.wait(lambda: log.read_text().count('"stopping"') > told, "the trainer ends", 20)
        [job] = cloud.api.names("jobs")
        cloud.api.do(lambda: cloud.api.store.delete("jobs", NAMESPACE, job, {}))
        asked = time.monotonic()
        assert not last.done()
        assert trainer.wait(30) == 1
        assert time.monotonic() - asked > 2  # it had the time to start another worker
    finally:
        ledger.send_signal(signal.SIGCONT)
    assert cloud.api.names("jobs") == []
    hold("")
    cloud.told = {}
    cloud.start("trainer")
    cancel(cloud, name)


def test_a_frozen_cluster_and_one_that_forgets_lose_no_job(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, epochs=600.0)).name
    cloud.stepping(name)
    cloud.api.faults.frozen = True
    second = cloud.create(cloud.spec(dataset, epochs=5.0, max_length=12)).name
    try:
        # Another one may hold the lease by now, as far as this one knows. Whoever supervises it starts it again.
        cloud.wait(lambda: cloud.processes["trainer"].poll() == 1, "the trainer gives its lease up", 30)
        again = cloud.launch("trainer")
        time.sleep(2)
        assert again.poll() is None
        assert [process for process in cloud.api.kubelet.processes.values() if process.returncode is None]
    finally:
        cloud.api.faults.frozen = False
    cloud.wait(lambda: cloud._serves("trainer"), "the trainer serves again")
    cloud.api.down()
    cloud.api.compact()
    cloud.api.up()
    for job in (name, second):
        ended = cloud.ended(job)
        assert (ended.state, ended.attempt) == (trainer_pb2.JOB_STATE_SUCCEEDED, 1)


def test_a_pod_on_a_lost_node_is_followed_by_another_and_can_write_nothing(
    cloud: Cloud, notes: list[dict[str, Any]]
) -> None:
    """The cluster believes for a long time that the pod runs; heartbeats tell, and the attempt fences."""
    cloud.kill("trainer")
    cloud.told = {"SILENCE_LIMIT_S": "3"}
    cloud.start("trainer")
    try:
        dataset = cloud.register(notes)
        name = cloud.create(cloud.spec(dataset, **LONG)).name
        cloud.stepping(name)
        pod = cloud.pod(name)
        found = next(one for one in cloud.api.all("pods") if one["metadata"]["name"] == pod)
        process = cloud.api.kubelet.processes[found["metadata"]["uid"]]
        cloud.api.lose(found["spec"]["nodeName"])
        process.send_signal(signal.SIGSTOP)  # nothing that it says comes through
        cloud.wait(lambda: cloud.job(name).attempt == 2, "another worker takes over", 60)
        cloud.wait(lambda: cloud.job(name).stage == "training", "it trains", 60)
        assert pod not in cloud.api.names("pods")
        process.send_signal(signal.SIGCONT)
        cloud.wait(lambda: process.returncode is not None, "the first one notices that it was fenced off", 60)
        job = cancel(cloud, name)
        assert (job.state, job.attempt) == (trainer_pb2.JOB_STATE_CANCELLED, 2)
        assert cloud.reservation(job.reservation).committed == job.plan.statement.price
    finally:
        cloud.api.do(lambda: [cloud.api.store.remove("nodes", node) for node in cloud.api.store.select("nodes")])
        cloud.kill("trainer")
        cloud.told = {}
        cloud.start("trainer")


# ---------------------------------------------------------------- who a pod is


def exchange(cloud: Cloud, job: str, token: str) -> str:
    """Try to exchange a token; returns the reason of the refusal, or nothing."""
    stub = trainer_service_pb2_grpc.WorkerServiceStub(cloud.connect("trainer"))
    request: Any = trainer_service_pb2.ExchangeTokenRequest(job=job, pod_token=token)
    try:
        stub.ExchangeToken(request, timeout=20)
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return ""


def test_a_pod_gets_the_token_of_its_own_job_and_of_no_other(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    names = [cloud.create(cloud.spec(dataset, max_length=length, **LONG)).name for length in (12, 14)]
    pods = {name: cloud.pod(name) for name in names}
    tokens = {
        name: next(token for token, known in cloud.api.kubelet.tokens.items() if known.pod == pods[name])
        for name in names
    }
    first, second = names
    assert exchange(cloud, first, tokens[first]) == ""
    # Another job's, none at all, one for another audience, one of another account.
    assert exchange(cloud, first, tokens[second]) == "UNAUTHENTICATED"
    assert exchange(cloud, first, "made up") == "UNAUTHENTICATED"
    assert exchange(cloud, first, "x" * 20_000) == "INVALID_ARGUMENT"
    known = cloud.api.kubelet.tokens[tokens[first]]
    for wrong in ({"audience": "https://kubernetes.default.svc"}, {"account": "default"}):
        forged = f"forged-{uuid.uuid4().hex}"
        cloud.api.kubelet.tokens[forged] = type(known)(**vars(known) | wrong)
        assert exchange(cloud, first, forged) == "UNAUTHENTICATED", wrong

    # A pod that only says that it is the job's: its labels are right, and no Job of ours controls it.
    def forge() -> None:
        real = next(pod for pod in cloud.api.store.select("pods") if pod["metadata"]["name"] == pods[first])
        body = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [], "nodeName": "elsewhere"}}
        body |= {
            "metadata": {"name": "forged", "labels": dict(real["metadata"]["labels"])},
            "status": {"phase": "Running"},
        }
        made = cloud.api.store.create("pods", NAMESPACE, body)
        cloud.api.kubelet.tokens["forged-pod"] = type(known)(
            NAMESPACE, "forged", made["metadata"]["uid"], known.account, known.audience
        )

    cloud.api.do(forge)
    assert exchange(cloud, first, "forged-pod") == "UNAUTHENTICATED"
    cloud.api.do(lambda: cloud.api.store.remove("pods", cloud.api.store.get("pods", NAMESPACE, "forged")))

    for name in names:
        cancel(cloud, name)
    cloud.wait(cloud.empty, "they are gone", 60)
    # The token of a pod that is gone proves nothing.
    assert exchange(cloud, first, tokens[first]) == "UNAUTHENTICATED"


def test_nothing_private_is_in_what_the_cluster_holds(cloud: Cloud, notes: list[dict[str, Any]]) -> None:
    dataset = cloud.register(notes)
    name = cloud.create(cloud.spec(dataset, **LONG)).name
    cloud.stepping(name)
    held = str(cloud.api.all("jobs") + cloud.api.all("pods") + cloud.api.all("events"))
    cancel(cloud, name)
    for secret in ("xylophone", "p01", dataset.name, "analyst@local", "patient"):
        assert secret not in held, secret
