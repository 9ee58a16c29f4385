"""The trainer's side of a cluster that misbehaves: refusals, freezes, restarts, forgotten history; and one lease."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.cluster import objects
from services.trainer.cluster.client import RULES, Cluster, ClusterError
from services.trainer.cluster.lease import Lease
from services.trainer.cluster.settings import ClusterSettings
from services.trainer.cluster.watch import Watched
from services.trainer.launcher import Refused, WorkOrder
from tests.support.kube_api.server import NAMESPACE, KubeApi
from tests.support.launchers import small_kubernetes, until

SETTINGS = ClusterSettings(image="murmura/worker:test", namespace=NAMESPACE, fake_gpu=True)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    made = KubeApi(tmp_path / "pods")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def cluster(api: KubeApi, tmp_path: Path) -> Cluster:
    return Cluster(NAMESPACE, api.kubeconfig(tmp_path / "kubeconfig"))


def job(job_id: str = "a" * 16, attempt: int = 1) -> dict[str, Any]:
    order = WorkOrder(f"trainingJobs/{job_id}", job_id, attempt, "")
    return objects.job(order, SETTINGS, {}, ["true"], 60)


# ---------------------------------------------------------------- calls


def test_a_slip_in_a_field_is_refused_and_not_dropped(cluster: Cluster) -> None:
    wrong = job()
    wrong["spec"]["backofLimit"] = 3
    with pytest.raises(Exception, match="backofLimit"):
        cluster.create(wrong)


def test_what_exists_already_is_said_so_and_what_does_not_is_nothing(cluster: Cluster) -> None:
    cluster.create(job())
    with pytest.raises(ClusterError) as caught:
        cluster.create(job())
    assert caught.value.code == 409
    assert cluster.get("Job", "tj-none-a1") is None


def test_a_cluster_that_is_busy_is_asked_again_when_it_says(api: KubeApi, cluster: Cluster) -> None:
    api.faults.refusals = [(429, "TooManyRequests", 1), (503, "ServiceUnavailable", 0)]
    start = time.monotonic()
    cluster.create(job())
    assert time.monotonic() - start > 0.5  # half of the second that it wished for, and more
    assert api.names("jobs") == [objects.name("a" * 16, 1)]


def test_a_refusal_is_not_asked_again(api: KubeApi, tmp_path: Path) -> None:
    cluster = Cluster(NAMESPACE, api.kubeconfig(tmp_path / "other", {("batch", "jobs", "list")}))
    with pytest.raises(ClusterError) as caught:
        cluster.create(job())
    assert caught.value.code == 403
    assert [verb for verb, *_ in api.requests] == []


def test_another_object_of_the_same_name_is_left_alone(api: KubeApi, cluster: Cluster) -> None:
    first = cluster.create(job())
    cluster.delete("Job", first)
    until(lambda: not api.names("jobs"))
    cluster.create(job())
    cluster.delete("Job", first)  # late
    [second] = api.all("jobs")
    assert "deletionTimestamp" not in second["metadata"]


def test_a_finalizer_is_removed_only_as_it_was_seen(api: KubeApi, cluster: Cluster) -> None:
    body = job()
    body["metadata"]["finalizers"] = ["example.com/stuck"]
    made = cluster.create(body)
    cluster.delete("Job", made)
    until(lambda: "deletionTimestamp" in api.all("jobs")[0]["metadata"])
    seen = cluster.get("Job", made["metadata"]["name"])
    assert seen is not None
    stale = {"metadata": seen["metadata"] | {"finalizers": ["example.com/other"]}}
    cluster.release("Job", stale)
    assert len(api.names("jobs")) == 1

    def released() -> bool:
        # Again and again, as a trainer does: the garbage collector takes its own finalizer off meanwhile.
        if found := cluster.get("Job", made["metadata"]["name"]):
            cluster.release("Job", found)
        return not api.names("jobs")

    until(released)


# ---------------------------------------------------------------- watches


@pytest.fixture
def watched(cluster: Cluster) -> Iterator[tuple[Watched, list[tuple[str, bool]]]]:
    told: list[tuple[str, bool]] = []
    made = Watched(cluster, "Job", "", "", lambda found, gone: told.append((found["metadata"]["name"], gone)), 60.0, 2)
    made.start()
    assert made.ready(10)
    yield made, told
    made.close()


def names(watched: Watched) -> set[str]:
    return {found["metadata"]["name"] for found in watched.all()}


def test_it_hears_of_what_comes_and_goes(cluster: Cluster, watched: Any) -> None:
    seen, told = watched
    made = cluster.create(job())
    name = made["metadata"]["name"]
    until(lambda: names(seen) == {name})
    cluster.delete("Job", made)
    until(lambda: names(seen) == set())
    assert (name, False) in told
    assert told[-1] == (name, True)


def test_what_was_missed_while_the_server_was_away_is_found(api: KubeApi, cluster: Cluster, watched: Any) -> None:
    seen, _ = watched
    gone = cluster.create(job("b" * 16))
    until(lambda: len(names(seen)) == 1)
    api.down()
    api.do(lambda: api.store.remove("jobs", api.store.get("jobs", NAMESPACE, gone["metadata"]["name"])))
    api.do(lambda: api.store.create("jobs", NAMESPACE, job("c" * 16)))
    api.compact()  # the versions that the watch would go on from are forgotten
    api.up()
    until(lambda: names(seen) == {objects.name("c" * 16, 1)})


def test_a_watch_that_falls_silent_is_noticed(api: KubeApi, cluster: Cluster, watched: Any, monkeypatch: Any) -> None:
    """A server that has frozen does not even end a watch. Reading ends by itself, a little after the watch should."""
    seen, _ = watched
    monkeypatch.setattr("services.trainer.cluster.client._READ_S", 1.0)
    api.faults.drop_watches()
    time.sleep(0.3)
    api.faults.watches_stalled = True
    cluster.create(job("d" * 16))
    time.sleep(0.3)
    assert names(seen) == set()
    api.faults.drop_watches()
    api.faults.watches_stalled = False
    until(lambda: names(seen) == {objects.name("d" * 16, 1)}, 15)


def test_a_server_that_is_away_is_not_asked_all_the_time(api: KubeApi, watched: Any, monkeypatch: Any) -> None:
    _ = watched
    asked: list[float] = []
    listed = Cluster.listed
    monkeypatch.setattr(Cluster, "listed", lambda *a, **k: (asked.append(time.monotonic()), listed(*a, **k))[1])
    api.down()
    time.sleep(4)
    assert 1 <= len(asked) < 12
    api.up()


# ---------------------------------------------------------------- the lease


def test_one_of_two_is_active_and_the_other_follows(cluster: Cluster) -> None:
    first, second = (Lease(cluster, "trainer", name, 1.0) for name in ("one", "two"))
    active: list[str] = []
    first.acquire(lambda: None)
    waiting = threading.Thread(target=lambda: (second.acquire(lambda: None), active.append("two")))
    waiting.start()
    time.sleep(2.5)  # longer than the lease: it is renewed
    assert active == []
    first.release()
    waiting.join(10)
    assert active == ["two"]
    second.release()


def test_one_that_died_is_followed_after_its_time(cluster: Cluster) -> None:
    dead = Lease(cluster, "trainer", "one", 1.0)
    assert dead._take()
    start = time.monotonic()
    heir = Lease(cluster, "trainer", "two", 1.0)
    heir.acquire(lambda: None)
    assert time.monotonic() - start > 1.0
    assert not dead._take()
    heir.release()


def test_of_two_who_find_it_free_at_once_one_gets_it(cluster: Cluster, monkeypatch: Any) -> None:
    leases = [Lease(cluster, "trainer", name, 1.0) for name in ("one", "two")]
    assert leases[0]._take()
    leases[0].release()
    as_both_saw_it = cluster.get("Lease", "trainer")
    monkeypatch.setattr(cluster, "get", lambda *_: as_both_saw_it)
    assert [lease._take() for lease in leases] == [True, False]


def test_one_that_cannot_renew_gives_up_before_another_may_take_it(api: KubeApi, cluster: Cluster) -> None:
    lost = threading.Event()
    lease = Lease(cluster, "trainer", "one", 1.5)
    lease.acquire(lost.set)
    api.down()
    assert lost.wait(15)
    api.up()
    lease.release()


# ---------------------------------------------------------------- starting


def test_a_job_that_is_there_is_adopted_and_one_made_otherwise_is_not(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path) as place:
        assert place.api is not None
        place.api.jobs.most_pods = 0  # a pod would be known too
        first, order = place.launcher("stay"), place.order()
        first.ensure(order)
        first.close()
        # Another life that has not heard of it: the name is taken, and the specification is its own.
        second = place.launcher("stay")
        second._jobs._objects.clear()  # type: ignore[attr-defined]
        second.ensure(order)
        assert second.observe(order.job_id, 1).exists
        third = place.launcher("stay", cpu="70m")
        third._jobs._objects.clear()  # type: ignore[attr-defined]
        with pytest.raises(Refused, match="another specification"):
            third.ensure(order)


def test_a_trainer_that_has_lost_its_memory_reads_the_end_from_the_cluster(tmp_path: Path, monkeypatch: Any) -> None:
    with small_kubernetes(tmp_path) as place:
        assert place.api is not None
        place.api.add_node("node")
        first, order = place.launcher("3"), place.order()
        first.ensure(order)
        until(lambda: not first.observe(order.job_id, 1).alive)
        first.close()
        # Moved away and not deleted: the first life may still be writing down what the pod has printed.
        (tmp_path / "workers").rename(tmp_path / "lost")
        # Pods are listed before Jobs, as may happen.
        listed = Cluster.listed

        def late(cluster: Cluster, kind: str, selector: str = "") -> Any:
            if kind == "Job":
                time.sleep(0.5)
            return listed(cluster, kind, selector)

        monkeypatch.setattr(Cluster, "listed", late)
        assert place.launcher("3").observe(order.job_id, 1).exit_code == 3


@pytest.mark.parametrize("missing", ["services", "networkpolicies"])
def test_pods_without_a_place_to_meet_are_not_left_waiting(tmp_path: Path, missing: str) -> None:
    rules = {(group, resource, verb) for group, resource, verbs in RULES for verb in verbs if resource != missing}
    with small_kubernetes(tmp_path, rules) as place:
        api = place.api
        assert api is not None
        launcher, order = place.launcher("stay"), place.order(nodes=2)
        with pytest.raises(Refused, match=f"{missing} is forbidden"):
            launcher.ensure(order)
        until(lambda: not api.names("jobs"))


def test_a_trainer_without_rights_says_so(tmp_path: Path) -> None:
    rules = {("batch", "jobs", "list"), ("", "pods", "list"), ("", "events", "list"), ("batch", "jobs", "watch")}
    with small_kubernetes(tmp_path, rules) as place:
        launcher, order = place.launcher("stay"), place.order()
        with pytest.raises(Refused, match="jobs is forbidden"):
            launcher.ensure(order)


def test_an_image_that_cannot_be_pulled_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path, image="missing/worker:1", image_wait_s=1.0) as place:
        assert place.api is not None
        place.api.add_node("node")
        launcher, order = place.launcher("stay"), place.order()
        launcher.ensure(order)
        until(lambda: "its image, which cannot be pulled" in launcher.observe(order.job_id, 1).waiting)
        found = until(lambda: (seen := launcher.observe(order.job_id, 1)).cause and seen)
        assert (found.cause, found.alive) == ("IMAGE_UNAVAILABLE", False)


def test_pods_that_run_too_long_are_ended_by_the_cluster(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path) as place:
        assert place.api is not None
        place.api.add_node("node")
        launcher, order = place.launcher("stay", running_limit_s=1.0), place.order()
        launcher.ensure(order)
        found = until(lambda: not (seen := launcher.observe(order.job_id, 1)).alive and seen)
        assert found.cause == "RAN_TOO_LONG"


def test_what_a_foreign_finalizer_holds_is_freed_in_the_end(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path) as place:
        assert place.api is not None
        place.api.add_node("node")
        launcher, order = place.launcher("stay", stuck_s=0.5), place.order()
        launcher.ensure(order)
        [pod] = until(lambda: [one for one in place.api.all("pods") if one["status"]["phase"] == "Running"])
        place.api.do(
            lambda: place.api.store.update(
                "pods", pod, lambda found: found["metadata"]["finalizers"].append("example.com/never")
            )
        )

        def cleared() -> bool:
            launcher.collect(order.job_id)
            return not place.api.names("pods") and not place.api.names("jobs")  # type: ignore[union-attr]

        until(cleared)


def test_an_attempt_is_not_evicted_for_ever(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path, most_pods=2) as place:
        api = place.api
        assert api is not None
        api.add_node("node")
        launcher, order = place.launcher("stay"), place.order()
        launcher.ensure(order)
        for count in range(3):
            running = until(lambda: [p for p in api.all("pods") if p["status"]["phase"] == "Running"])
            if count < 2:
                api.evict(running[0]["metadata"]["name"])
                gone = running[0]["metadata"]["name"]
                until(lambda gone=gone: gone not in api.names("pods"))
        found = until(lambda: (seen := launcher.observe(order.job_id, 1)).cause and seen)
        assert found.cause == "EVICTED_TOO_OFTEN"


def test_a_gang_has_a_meeting_place_that_goes_with_it(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path) as place:
        api = place.api
        assert api is not None
        api.add_node("node")
        launcher, order = place.launcher("stay"), place.order(nodes=2)
        launcher.ensure(order)
        until(lambda: [pod["status"]["phase"] for pod in api.all("pods")] == ["Running"] * 2)
        assert api.names("services") == api.names("networkpolicies") == [objects.name(order.job_id, 1)]
        until(lambda: launcher.logs(order.job_id, 1).count("MURMURA_NODE_RANK") == 2)
        told = [json.loads(line) for line in launcher.logs(order.job_id, 1).splitlines()]
        name = objects.name(order.job_id, 1)
        assert sorted(one["MURMURA_NODE_RANK"] for one in told) == ["0", "1"]
        assert {one["MURMURA_MASTER_ADDR"] for one in told} == {f"{name}-0.{name}"}
        # One of them is evicted: none goes on without it, and the trainer makes another attempt.
        api.evict(api.names("pods")[0])
        found = until(lambda: not (seen := launcher.observe(order.job_id, 1)).alive and seen)
        assert found.evicted
        launcher.collect(order.job_id)
        until(lambda: not any(api.names(plural) for plural in ("jobs", "pods", "services", "networkpolicies")))
