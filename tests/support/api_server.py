"""A real Kubernetes API server, with its etcd and nothing else: no nodes and no controllers, which a test plays.

The programs are those of $KUBEBUILDER_ASSETS, where `setup-envtest` leaves them, or of the path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.launchers import until
from tests.support.manifests import kinds
from tests.support.ports import free_port

_ADMIN = "of-the-administrator"
Object = dict[str, Any]


def program(name: str) -> str | None:
    """Return where a program is, if it is here."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ["PATH"]]))


class ApiServer:
    """`kube-apiserver` and `etcd`.

    Args:
        directory: of both.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._etcd, self._peer = free_port(), free_port()
        key = rsa.generate_private_key(65537, 2048)
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (directory / "accounts.key").write_bytes(key.private_bytes(*pem))
        (directory / "tokens.csv").write_text(f'{_ADMIN},admin,admin,"system:masters"\n')
        # It signs its own certificate, and is its own authority.
        self._authority = directory / "certificates" / "apiserver.crt"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Serve; also again, after `kill`."""
        directory, issuer = self._directory, "https://accounts.test"
        etcd, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        if "etcd" not in self._processes:
            self._run(
                "etcd",
                f"--data-dir={directory / 'etcd'}",
                *(f"--{kind}={etcd}" for kind in ("listen-client-urls", "advertise-client-urls")),
                *(f"--{kind}={peer}" for kind in ("listen-peer-urls", "initial-advertise-peer-urls")),
                f"--initial-cluster=default={peer}",
            )
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={directory / 'certificates'}",
            f"--service-account-issuer={issuer}",
            f"--service-account-key-file={directory / 'accounts.key'}",
            f"--service-account-signing-key-file={directory / 'accounts.key'}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={directory / 'tokens.csv'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            # Of those that are off by default, what other distributions switch on.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        )
        until(self._ready, 90)

    def kill(self) -> None:
        """End the API server as a power cut would."""
        self._processes["kube-apiserver"].kill()
        self._processes["kube-apiserver"].wait()

    def freeze(self, frozen: bool) -> None:
        """Let it take connections and answer nothing, or go on."""
        self._processes["kube-apiserver"].send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """End both."""
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()

    @property
    def version(self) -> tuple[int, int]:
        """What it is."""
        found = self.ask("GET", "/version")
        return int(found["major"]), int(found["minor"].rstrip("+"))

    def ask(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Any:
        """Ask as the administrator.

        Raises:
            AssertionError: with the server's words, if it refuses.
        """
        headers = {"Authorization": f"Bearer {_ADMIN}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        context = ssl.create_default_context(cafile=self._authority)
        request = urllib.request.Request(f"https://127.0.0.1:{self._port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{method} {path}: {refusal.read().decode()}") from None
        return json.loads(text) if text.startswith("{") else text

    def create(self, body: Object, query: str = "") -> Object:
        """Create an object of the manifests, or a pod."""
        group, _, version = body["apiVersion"].rpartition("/")
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        resources = self.ask("GET", root)["resources"]
        kind = next(one for one in resources if one["kind"] == body["kind"] and "/" not in one["name"])
        if kind["namespaced"]:
            root += f"/namespaces/{body['metadata']['namespace']}"
        made: Object = self.ask("POST", f"{root}/{kind['name']}{query}", body)
        return made

    def has(self, body: Object) -> bool:
        """Say whether it knows such objects at all."""
        group, _, version = body["apiVersion"].rpartition("/")
        try:
            found = self.ask("GET", f"/apis/{group}/{version}" if group else f"/api/{version}")
        except AssertionError:
            return False
        return any(one["kind"] == body["kind"] for one in found["resources"])

    def apply(self, place: str, kind: str) -> None:
        """Create the manifests' objects of a kind."""
        for found in kinds(place, kind):
            self.create(found)

    def token(self, namespace: str, account: str, **wanted: Any) -> str:
        """Return a token of a service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.ask("POST", path, {"spec": {"expirationSeconds": 3600} | wanted})["status"]["token"])

    def kubeconfig(self, file: Path, token: str = _ADMIN) -> Path:
        """Write a kubeconfig for whoever has a token."""
        cluster = {"server": f"https://127.0.0.1:{self._port}", "certificate-authority": str(self._authority)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def _run(self, name: str, *arguments: str) -> None:
        found = program(name)
        assert found is not None
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen([found, *arguments], stdout=log, stderr=log)

    def _ready(self) -> bool:
        for name, process in self._processes.items():
            assert process.poll() is None, (self._directory / f"{name}.log").read_text()[-2000:]
        try:
            return bool(self.ask("GET", "/readyz") == "ok")
        except (OSError, AssertionError):
            time.sleep(0.2)
            return False
