"""A small Kubernetes of its own for each test, and the trainer's client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.trainer.cluster.client import Cluster
from tests.support.kube_api.server import NAMESPACE, KubeApi


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    made = KubeApi(tmp_path / "pods")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def kubernetes(api: KubeApi, tmp_path: Path) -> Cluster:
    return Cluster(NAMESPACE, api.kubeconfig(tmp_path / "kubeconfig"))
