"""The operator's first cluster, done as its guide says, with the real kubectl against the small API server.

The server checks the fields of every object that the API has a schema for, and keeps what it is given; it runs none of
it, so this shows that the commands and manifests are what an API server takes, and not that pods get ready.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.guides import Reader, blocks
from tests.support.kube_api.discovery import plural_of
from tests.support.kube_api.server import KubeApi

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "deploy/kubernetes/README.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine"),
]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    made = KubeApi(tmp_path / "cluster")
    made.start()
    # kubectl shows its token over TLS only, which this server does not speak.
    made.users[""] = "all"
    yield made
    made.stop()


def test_the_first_cluster(api: KubeApi, tmp_path: Path) -> None:
    place = tmp_path / "clone"
    shutil.copytree(ROOT / "deploy", place / "deploy", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (place / "services").symlink_to(ROOT / "services")
    overlay = subprocess.run(
        ["kubectl", "kustomize", ROOT / "deploy/kubernetes/overlays/production"], capture_output=True, check=True
    )
    objects = [found for found in yaml.safe_load_all(overlay.stdout) if found]
    for found in objects:
        version, kind = found["apiVersion"], found["kind"]
        api.kinds.setdefault(plural_of(kind), (version.rpartition("/")[0], version, kind))
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace="default")
    reader = Reader(GUIDE, place, {"KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)})
    for namespace in ("gateway-system", "monitoring"):
        run(kubeconfig, "create", "namespace", namespace)
    for block in blocks(GUIDE):
        if "murmura-authority" in block.text:
            # What cert-manager does in a cluster.
            run(
                kubeconfig,
                "-n",
                "murmura",
                "create",
                "secret",
                "generic",
                "murmura-authority",
                "--from-literal=ca.crt=PEM",
            )
        reader.do(block)

    there = {
        (plural, found["metadata"].get("namespace", ""), name)
        for plural in api.kinds
        for found in api.all(plural)
        for name in [found["metadata"]["name"]]
    }
    missing = [
        f"{found['kind']} {found['metadata']['name']}"
        for found in objects
        if (plural_of(found["kind"]), found["metadata"].get("namespace", ""), found["metadata"]["name"]) not in there
    ]
    assert not missing
    [redis] = [found for found in api.all("secrets") if found["metadata"]["name"] == "redis"]
    password, users = (base64.b64decode(redis["data"][key]).decode() for key in ("password", "users.conf"))
    assert users == f"requirepass {password.strip()}\n" and len(password.strip()) == 64
    authorities = [found for found in api.all("configmaps") if found["metadata"]["name"] == "murmura-authority"]
    assert {(one["metadata"]["namespace"], one["data"]["ca.crt"]) for one in authorities} == {
        ("murmura", "PEM"),
        ("murmura-workers", "PEM"),
    }


def test_the_server_refuses_a_field_that_there_is_not(api: KubeApi, tmp_path: Path) -> None:
    """What the first test relies on: a slip in a manifest does not pass."""
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace="default")
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "it"}, "dato": {"a": "b"}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(kubeconfig, "apply", "-f", str(tmp_path / "wrong.yaml"))
    assert "dato" in refused.value.stderr


def run(kubeconfig: Path, *words: str) -> str:
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent)}
    done = subprocess.run(["kubectl", *words], env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout
