"""Attempts in a cluster: adopted, refused, held up, evicted, and what is left of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from services.trainer.cluster import objects
from services.trainer.cluster.client import RULES, Cluster
from services.trainer.launcher import Refused, WorkOrder
from tests.support.launchers import Place, small_kubernetes, until


def started(place: Place, **settings: Any) -> tuple[Any, WorkOrder]:
    """Return a launcher and an attempt that stays, on a node that is there."""
    assert place.api is not None
    place.api.add_node("node")
    launcher, order = place.launcher("stay", **settings), place.order()
    launcher.ensure(order)
    return launcher, order


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
        launcher, order = started(place)
        until(lambda: "its image, which cannot be pulled" in launcher.observe(order.job_id, 1).waiting)
        found = until(lambda: (seen := launcher.observe(order.job_id, 1)).cause and seen)
        assert (found.cause, found.alive) == ("IMAGE_UNAVAILABLE", False)


def test_pods_that_run_too_long_are_ended_by_the_cluster(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path) as place:
        launcher, order = started(place, running_limit_s=1.0)
        found = until(lambda: not (seen := launcher.observe(order.job_id, 1)).alive and seen)
        assert found.cause == "RAN_TOO_LONG"


def test_what_a_foreign_finalizer_holds_is_freed_in_the_end(tmp_path: Path) -> None:
    with small_kubernetes(tmp_path) as place:
        launcher, order = started(place, stuck_s=0.5)
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
        launcher, order = started(place)
        api = place.api
        assert api is not None
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
