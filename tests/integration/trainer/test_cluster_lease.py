"""One of several trainers is active; the others wait for its lease."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from services.trainer.cluster.client import Cluster
from services.trainer.cluster.lease import Lease
from tests.support.kube_api.server import KubeApi
from tests.support.launchers import until


def test_one_of_two_is_active_and_the_other_follows(kubernetes: Cluster) -> None:
    first, second = (Lease(kubernetes, "trainer", name, 1.0) for name in ("one", "two"))
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


def test_one_that_died_is_followed_after_its_time(kubernetes: Cluster) -> None:
    dead = Lease(kubernetes, "trainer", "one", 1.0)
    assert dead._take()
    start = time.monotonic()
    heir = Lease(kubernetes, "trainer", "two", 1.0)
    heir.acquire(lambda: None)
    assert time.monotonic() - start > 1.0
    assert not dead._take()
    heir.release()


def test_of_two_who_find_it_free_at_once_one_gets_it(kubernetes: Cluster, monkeypatch: Any) -> None:
    leases = [Lease(kubernetes, "trainer", name, 1.0) for name in ("one", "two")]
    assert leases[0]._take()
    leases[0].release()
    as_both_saw_it = kubernetes.get("Lease", "trainer")
    monkeypatch.setattr(kubernetes, "get", lambda *_: as_both_saw_it)
    assert [lease._take() for lease in leases] == [True, False]


@pytest.mark.parametrize("fault", ["down", "frozen"])
def test_one_that_cannot_renew_gives_up_before_another_may_take_it(
    api: KubeApi, kubernetes: Cluster, fault: str
) -> None:
    told: list[float] = []
    lease = Lease(kubernetes, "trainer", "one", 2.0)
    lease.acquire(lambda: told.append(time.monotonic()))
    if fault == "down":
        api.down()
    else:
        api.faults.frozen = True
    start = time.monotonic()
    until(lambda: told)
    assert told[0] - start < 2.0
    # It is another one's to take, so nothing is waited for to give it back.
    start = time.monotonic()
    lease.release()
    assert time.monotonic() - start < 3.0
    assert len(told) == 1
    api.faults.frozen = False


def test_the_time_that_taking_it_took_counts(api: KubeApi, kubernetes: Cluster) -> None:
    """Another one's clock may have begun to run when this one asked."""
    told: list[float] = []
    lease = Lease(kubernetes, "trainer", "one", 2.0)
    api.faults.frozen = True
    thread = threading.Thread(target=lease.acquire, args=(lambda: told.append(time.monotonic()),))
    thread.start()
    time.sleep(1.5)
    asked = time.monotonic()
    api.faults.frozen = False
    thread.join()
    assert lease._renewed < asked
    until(lambda: lease._renewed > asked or told)
    lease.release()


def test_one_that_another_has_taken_gives_up(kubernetes: Cluster) -> None:
    told: list[str] = []
    lease = Lease(kubernetes, "trainer", "one", 2.0)
    lease.acquire(lambda: told.append("one"))
    found = kubernetes.get("Lease", "trainer")
    assert found is not None
    found["spec"]["holderIdentity"] = "two"
    kubernetes.replace(found)
    until(lambda: told)
    lease.release()
    left = kubernetes.get("Lease", "trainer")
    assert left is not None
    assert (told, left["spec"]["holderIdentity"]) == (["one"], "two")
