"""What every launcher promises, on this machine and in Kubernetes.

In Kubernetes means the small API server of `tests/support/kube_api`, whose pods are processes of this machine; with
`make test-kubernetes` the cluster of $KUBECONFIG besides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import launchers
from tests.support.launchers import Place, printed, seen, until

PLACES = ["local", "small_kubernetes"] + (["real_kubernetes"] if os.environ.get("MURMURA_TEST_KUBERNETES") else [])
# What a worker is told whatever it runs on, besides where its token lies.
TOLD = {
    "MURMURA_JOB",
    "MURMURA_ATTEMPT",
    "MURMURA_SUMMARY_FILE",
    "MURMURA_TRAINER_ENDPOINT",
    "MURMURA_DATASET_ENDPOINT",
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with getattr(launchers, request.param)(tmp_path) as made:
        if made.api is not None:
            made.api.add_node("node")
        yield made


def test_there_is_no_worker_before_one_is_ordered(place: Place) -> None:
    launcher, order = place.launcher("stay"), place.order()
    assert not launcher.observe(order.job_id, 1).exists
    assert launcher.logs(order.job_id, 1) == ""
    launcher.collect(order.job_id)
    launcher.stop(order.job_id, 1)
    launcher.kill(order.job_id, 1)
    assert launcher.found() == frozenset()


def test_however_often_it_is_asked_one_worker_starts(place: Place) -> None:
    launcher, order = place.launcher("stay"), place.order()
    for _ in range(3):
        launcher.ensure(order)
        # At once: whoever watches has not heard of it yet.
        assert launcher.observe(order.job_id, 1).exists
    found = seen(launcher, order, lambda worker: worker.alive and not worker.waiting)
    assert (found.exit_code, found.cause, found.replaced) == (None, "", 0)
    assert launcher.found() == {order.job_id}
    assert len(launcher.logs(order.job_id, 1).splitlines()) <= 1
    if place.api is not None:
        assert len(place.api.names("pods")) == len(place.api.names("jobs")) == 1


def test_the_worker_is_told_the_same_everywhere(place: Place) -> None:
    launcher, order = place.launcher("0"), place.order(attempt=1)
    launcher.ensure(order)
    told = printed(launcher, order)
    tokens = {"MURMURA_JOB_TOKEN_FILE", "MURMURA_POD_TOKEN_FILE"}
    assert TOLD <= set(told) <= TOLD | tokens | {"MURMURA_HOW"}
    assert len(tokens & set(told)) == 1
    assert (told["MURMURA_JOB"], told["MURMURA_ATTEMPT"]) == (order.job, "1")
    assert told["MURMURA_TRAINER_ENDPOINT"] == "trainer:1"


@pytest.mark.parametrize("code", [0, 1, 3])
def test_how_it_ended_is_known(place: Place, code: int) -> None:
    launcher, order = place.launcher(str(code)), place.order()
    launcher.ensure(order)
    found = seen(launcher, order, lambda worker: not worker.alive)
    assert (found.exists, found.exit_code, found.evicted, found.died) == (True, code, False, 0)
    assert 0 <= found.node_seconds < 60
    # Another life of the trainer hears that it is over, and of a cluster also how.
    until(lambda: order.job_id in place.changes)  # it tells without being asked
    launcher.close()
    again = place.launcher(str(code))
    told = seen(again, order, lambda worker: worker.exists)
    assert (told.alive, told.exit_code) == (False, None if place.local else code)
    again.ensure(order)
    assert not again.observe(order.job_id, 1).alive


def test_another_life_finds_the_worker_and_starts_none(place: Place) -> None:
    order = place.order()
    first = place.launcher("stay")
    first.ensure(order)
    seen(first, order, lambda worker: worker.alive and not worker.waiting)
    first.close()
    second = place.launcher("stay")
    second.ensure(order)
    assert seen(second, order, lambda worker: worker.alive).replaced == 0
    assert second.found() == {order.job_id}
    if place.api is not None:
        assert len(place.api.names("pods")) == 1


def test_one_that_is_asked_to_stop_leaves_with_a_checkpoint(place: Place) -> None:
    launcher, order = place.launcher("stay"), place.order()
    launcher.ensure(order)
    seen(launcher, order, lambda worker: worker.alive and not worker.waiting)
    printed(launcher, order)
    launcher.stop(order.job_id, 1)
    found = seen(launcher, order, lambda worker: not worker.alive)
    assert (found.exists, found.exit_code, found.evicted) == (True, 75, True)


def test_one_that_does_not_listen_is_ended(place: Place) -> None:
    launcher, order = place.launcher("deaf"), place.order()
    launcher.ensure(order)
    seen(launcher, order, lambda worker: worker.alive and not worker.waiting)
    printed(launcher, order)
    launcher.kill(order.job_id, 1)
    found = seen(launcher, order, lambda worker: not worker.alive)
    assert found.exists
    assert not found.evicted


def test_attempts_do_not_know_each_other(place: Place) -> None:
    launcher, first = place.launcher("stay"), place.order()
    launcher.ensure(first)
    seen(launcher, first, lambda worker: worker.alive and not worker.waiting)
    second = place.order(2, first.job_id)
    assert not launcher.observe(second.job_id, 2).exists
    launcher.ensure(second)
    seen(launcher, second, lambda worker: worker.alive and not worker.waiting)
    launcher.kill(second.job_id, 2)


def test_nothing_is_left_but_the_log(place: Place) -> None:
    launcher, order = place.launcher("0"), place.order()
    launcher.ensure(order)
    seen(launcher, order, lambda worker: not worker.alive)
    assert launcher.found() == {order.job_id}
    told = until(lambda: launcher.logs(order.job_id, 1))

    def cleared() -> bool:
        launcher.collect(order.job_id)
        return not launcher.found()

    until(cleared)
    assert launcher.logs(order.job_id, 1) == told
    assert json.loads(told.splitlines()[0])["MURMURA_JOB"] == order.job
    if place.api is not None:
        assert place.api.names("jobs") == place.api.names("pods") == []
