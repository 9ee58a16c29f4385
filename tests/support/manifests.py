"""The manifests as Kubernetes is given them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
RENDERED = ("base", "overlays/production", "overlays/single-node")
SERVICES = ("ledger", "dataset", "trainer", "inference")

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl renders the manifests; none is here"
)


@cache
def render(place: str) -> list[dict[str, Any]]:
    """Return the objects of a place."""
    made = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / place)], capture_output=True, check=True, text=True)
    return [found for found in yaml.safe_load_all(made.stdout) if found]


def kinds(place: str, *wanted: str) -> list[dict[str, Any]]:
    """Return the objects of some kinds."""
    return [found for found in render(place) if found["kind"] in wanted]


def workload(place: str, name: str) -> dict[str, Any]:
    """Return the workload of a service."""
    return next(found for found in kinds(place, "StatefulSet") if found["metadata"]["name"] == name)
