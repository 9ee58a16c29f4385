"""Places where workers run, for the suite that every launcher must pass."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.trainer.cluster.client import Cluster
from services.trainer.cluster.launcher import KubernetesLauncher
from services.trainer.cluster.settings import ClusterSettings
from services.trainer.launcher import Launcher, Observation, WorkOrder
from services.trainer.local_launcher import LocalLauncher
from tests.support.kube_api.server import NAMESPACE, KubeApi

TOLD = {"MURMURA_TRAINER_ENDPOINT": "trainer:1", "MURMURA_DATASET_ENDPOINT": "dataset:1"}
# What a real worker does to whoever runs it: says what it was told, leaves a summary, exits as it was asked to.
WORKER = """
import json, os, signal, sys, time
told = {name: value for name, value in os.environ.items() if name.startswith("MURMURA_")}
def end(code):
    with open(told["MURMURA_SUMMARY_FILE"], "w") as out:
        json.dump({"exit_code": code, "cause": "", "reported_steps": 3}, out)
    sys.exit(code)
signal.signal(signal.SIGTERM, lambda *_: end(75))
print(json.dumps(told), flush=True)
how = told["MURMURA_HOW"]
if how == "stay":
    time.sleep(600)
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
time.sleep(0.2)
end(int(how))
"""


# A real cluster pulls images, and replaces a pod after ten seconds at the earliest.
PATIENCE_S = 180.0 if os.environ.get("MURMURA_TEST_KUBERNETES") else 20.0


def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Wait for something to be true, and return it."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
    return found


@dataclass
class Place:
    """Somewhere workers run.

    Attributes:
        make: makes a launcher, of which there may be several lives, whose workers behave in some way.
        api: the small Kubernetes, where it is one.
        local: whether it is this machine.
    """

    make: Callable[..., Launcher]
    api: KubeApi | None = None
    local: bool = False
    launchers: list[Launcher] = field(default_factory=list)

    def launcher(self, how: str, **more: Any) -> Launcher:
        made = self.make(how, **more)
        self.changes: list[str] = []
        made.start(self.changes.append)
        self.launchers.append(made)
        until(lambda: _knows(made))
        return made

    def order(self, attempt: int = 1, job_id: str = "", nodes: int = 1) -> WorkOrder:
        job_id = job_id or uuid.uuid4().hex[:16]
        return WorkOrder(f"trainingJobs/{job_id}", job_id, attempt, "a-token", nodes)


def _knows(launcher: Launcher) -> bool:
    try:
        launcher.observe("none", 1)
    except Exception:
        return False
    return True


def seen(
    launcher: Launcher, order: WorkOrder, wanted: Callable[[Observation], Any], timeout_s: float = PATIENCE_S
) -> Observation:
    """Wait until a worker is as wanted; returns how it is."""
    found: list[Observation] = []

    def look() -> bool:
        found.append(launcher.observe(order.job_id, order.attempt))
        return bool(wanted(found[-1]))

    try:
        until(look, timeout_s)
    except AssertionError:
        raise AssertionError(f"seen last: {found[-1]}") from None
    return found[-1]


def printed(launcher: Launcher, order: WorkOrder) -> dict[str, str]:
    """Return what a worker says that it was told."""
    line = until(lambda: launcher.logs(order.job_id, order.attempt).splitlines())[0]
    told: dict[str, str] = json.loads(line)
    return told


@contextmanager
def local(directory: Path) -> Iterator[Place]:
    def make(how: str, **_: Any) -> Launcher:
        return LocalLauncher(directory / "workers", TOLD | {"MURMURA_HOW": how}, [sys.executable, "-c", WORKER])

    place = Place(make, local=True)
    yield place
    for launcher in place.launchers:
        for job_id in launcher.found():
            launcher.kill(job_id, 1)
        launcher.close()


@contextmanager
def small_kubernetes(directory: Path, rules: Any = "all", **settings: Any) -> Iterator[Place]:
    api = KubeApi(directory / "pods")
    api.start()
    config = api.kubeconfig(directory / "kubeconfig", rules)
    place = Place(_in_cluster(directory, config, NAMESPACE, settings), api)
    try:
        yield place
    finally:
        for launcher in place.launchers:
            launcher.close()
        api.stop()


@contextmanager
def real_kubernetes(directory: Path, **settings: Any) -> Iterator[Place]:
    """The cluster of $KUBECONFIG, in the namespace $MURMURA_TEST_NAMESPACE, with the image $MURMURA_TEST_IMAGE."""
    namespace = os.environ.get("MURMURA_TEST_NAMESPACE", "murmura-test")
    settings |= {
        "image": os.environ.get("MURMURA_TEST_IMAGE", "python:3.12-slim"),
        "service_account": "default",
        "deployment": f"test-{uuid.uuid4().hex[:8]}",
    }
    place = Place(_in_cluster(directory, Path(os.environ["KUBECONFIG"]), namespace, settings, "python3"))
    try:
        yield place
    finally:
        with suppress(IndexError):
            for job_id in place.launchers[-1].found():
                place.launchers[-1].collect(job_id)
        for launcher in place.launchers:
            launcher.close()


def _in_cluster(
    directory: Path, config: Path, namespace: str, settings: dict[str, Any], python: str = sys.executable
) -> Callable[..., Launcher]:
    small = {"cpu": "50m", "memory": "64Mi", "ephemeral_storage": "64Mi", "shared_memory": "16Mi", "fake_gpu": True}

    def make(how: str, running_limit_s: float = 300.0, stuck_s: float = 60.0, **more: Any) -> Launcher:
        facts = small | {"image": "murmura/worker:test", "namespace": namespace} | settings | more
        return KubernetesLauncher(
            Cluster(namespace, config),
            ClusterSettings(**facts),
            directory / "workers",
            TOLD | {"MURMURA_HOW": how},
            running_limit_s,
            [python, "-c", WORKER],
            stuck_s,
        )

    return make
