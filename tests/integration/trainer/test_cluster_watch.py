"""What the trainer hears of a cluster that freezes, restarts, or is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from services.trainer.cluster import objects
from services.trainer.cluster.client import Cluster
from services.trainer.cluster.watch import Watched
from tests.support.kube_api.jobs import job
from tests.support.kube_api.server import NAMESPACE, KubeApi
from tests.support.launchers import until


@pytest.fixture
def watched(kubernetes: Cluster) -> Iterator[tuple[Watched, list[tuple[str, bool]]]]:
    told: list[tuple[str, bool]] = []
    made = Watched(
        kubernetes, "Job", "", "", lambda found, gone: told.append((found["metadata"]["name"], gone)), 60.0, 2
    )
    made.start()
    assert made.ready(10)
    yield made, told
    made.close()


def names(watched: Watched) -> set[str]:
    return {found["metadata"]["name"] for found in watched.all()}


def test_it_hears_of_what_comes_and_goes(kubernetes: Cluster, watched: Any) -> None:
    seen, told = watched
    made = kubernetes.create(job())
    name = made["metadata"]["name"]
    until(lambda: names(seen) == {name})
    kubernetes.delete("Job", made)
    until(lambda: names(seen) == set())
    assert (name, False) in told
    assert told[-1] == (name, True)


def test_what_was_missed_while_the_server_was_away_is_found(api: KubeApi, kubernetes: Cluster, watched: Any) -> None:
    seen, _ = watched
    gone = kubernetes.create(job("b" * 16))
    until(lambda: len(names(seen)) == 1)
    api.down()
    api.do(lambda: api.store.remove("jobs", api.store.get("jobs", NAMESPACE, gone["metadata"]["name"])))
    api.do(lambda: api.store.create("jobs", NAMESPACE, job("c" * 16)))
    api.compact()  # the versions that the watch would go on from are forgotten
    api.up()
    until(lambda: names(seen) == {objects.name("c" * 16, 1)})


def test_a_watch_that_falls_silent_is_noticed(
    api: KubeApi, kubernetes: Cluster, watched: Any, monkeypatch: Any
) -> None:
    """A server that has frozen does not even end a watch. Reading ends by itself, a little after the watch should."""
    seen, _ = watched
    monkeypatch.setattr("services.trainer.cluster.client._READ_S", 1.0)
    api.faults.drop_watches()
    time.sleep(0.3)
    api.faults.watches_stalled = True
    kubernetes.create(job("d" * 16))
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
