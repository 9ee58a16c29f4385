"""One of several trainers is active; the others wait for its lease."""

from __future__ import annotations

import threading
import time
from typing import Any

from services.trainer.cluster.client import Cluster
from services.trainer.cluster.lease import Lease
from tests.support.kube_api.server import KubeApi


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


def test_one_that_cannot_renew_gives_up_before_another_may_take_it(api: KubeApi, kubernetes: Cluster) -> None:
    lost = threading.Event()
    lease = Lease(kubernetes, "trainer", "one", 1.5)
    lease.acquire(lost.set)
    api.down()
    assert lost.wait(15)
    api.up()
    lease.release()
