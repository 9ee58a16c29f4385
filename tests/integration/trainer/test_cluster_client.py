"""The trainer's calls to a cluster that refuses, is busy, or has such an object already."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.trainer.cluster import objects
from services.trainer.cluster.client import Cluster, ClusterError
from tests.support.kube_api.jobs import job
from tests.support.kube_api.server import NAMESPACE, KubeApi
from tests.support.launchers import until


def test_a_slip_in_a_field_is_refused_and_not_dropped(kubernetes: Cluster) -> None:
    wrong = job()
    wrong["spec"]["backofLimit"] = 3
    with pytest.raises(Exception, match="backofLimit"):
        kubernetes.create(wrong)


def test_what_exists_already_is_said_so_and_what_does_not_is_nothing(kubernetes: Cluster) -> None:
    kubernetes.create(job())
    with pytest.raises(ClusterError) as caught:
        kubernetes.create(job())
    assert caught.value.code == 409
    assert kubernetes.get("Job", "tj-none-a1") is None


def test_a_cluster_that_is_busy_is_asked_again_when_it_says(api: KubeApi, kubernetes: Cluster) -> None:
    api.faults.refusals = [(429, "TooManyRequests", 1), (503, "ServiceUnavailable", 0)]
    start = time.monotonic()
    kubernetes.create(job())
    assert time.monotonic() - start > 0.5  # half of the second that it wished for, and more
    assert api.names("jobs") == [objects.name("a" * 16, 1)]


def test_a_refusal_is_not_asked_again(api: KubeApi, tmp_path: Path) -> None:
    refused = Cluster(NAMESPACE, api.kubeconfig(tmp_path / "other", {("batch", "jobs", "list")}))
    with pytest.raises(ClusterError) as caught:
        refused.create(job())
    assert caught.value.code == 403
    assert [verb for verb, *_ in api.requests] == []


def test_another_object_of_the_same_name_is_left_alone(api: KubeApi, kubernetes: Cluster) -> None:
    first = kubernetes.create(job())
    kubernetes.delete("Job", first)
    until(lambda: not api.names("jobs"))
    kubernetes.create(job())
    kubernetes.delete("Job", first)  # late
    [second] = api.all("jobs")
    assert "deletionTimestamp" not in second["metadata"]


def test_a_finalizer_is_removed_only_as_it_was_seen(api: KubeApi, kubernetes: Cluster) -> None:
    body = job()
    body["metadata"]["finalizers"] = ["example.com/stuck"]
    made = kubernetes.create(body)
    kubernetes.delete("Job", made)
    until(lambda: "deletionTimestamp" in api.all("jobs")[0]["metadata"])
    seen = kubernetes.get("Job", made["metadata"]["name"])
    assert seen is not None
    stale = {"metadata": seen["metadata"] | {"finalizers": ["example.com/other"]}}
    kubernetes.release("Job", stale)
    assert len(api.names("jobs")) == 1

    def released() -> bool:
        # Again and again, as a trainer does: the garbage collector takes its own finalizer off meanwhile.
        if found := kubernetes.get("Job", made["metadata"]["name"]):
            kubernetes.release("Job", found)
        return not api.names("jobs")

    until(released)
