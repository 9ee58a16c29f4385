"""The inference service as a process of its own, with keys and a state directory of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc

from murmura.api.inference.v1 import inference_service_pb2_grpc
from services.common.tokens import mint

READY_TIMEOUT_S = 300  # on a GPU an engine compiles first


@dataclass
class Service:
    """A running service."""

    engine: str
    process: subprocess.Popen[bytes]
    port: int
    root: Path
    key: Ed25519PrivateKey
    environment: dict[str, str]

    def stub(self, subject: str = "ana@local", role: str = "analyst") -> Any:
        """Return both services' methods, called as someone."""
        token = mint(self.key, "deployment", subject, [role], 600)
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        metadata = (("authorization", f"Bearer {token}"),)

        class Bound:
            def __getattr__(self, method: str) -> Any:
                for kind in (
                    inference_service_pb2_grpc.AdapterServiceStub,
                    inference_service_pb2_grpc.InferenceServiceStub,
                ):
                    if found := getattr(kind(channel), method, None):
                        return lambda request, timeout=60: found(request, timeout=timeout, metadata=metadata)
                raise AttributeError(method)

        return Bound()


def jwk(key: Ed25519PrivateKey, kid: str, may_issue: list[str]) -> dict[str, object]:
    raw = key.public_key().public_bytes_raw()
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x, "may_issue": may_issue}


def start(
    environment: dict[str, str], log: Path, module: str = "services.inference"
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process and wait until it serves."""
    listening = Path(environment["MURMURA_STATE_DIR"]) / "listening"
    listening.unlink(missing_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=out, stderr=out)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if listening.exists() and listening.read_text().endswith("\n"):
            port = int(listening.read_text().rpartition(":")[2])
            if health(port) == health_pb2.HealthCheckResponse.SERVING:
                return process, port
        time.sleep(0.1)
    process.kill()
    raise AssertionError(log.read_text()[-3000:])


def health(port: int) -> int | None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            request = health_pb2.HealthCheckRequest()
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
        except grpc.RpcError:
            return None
    return int(answer.status)


def deploy(
    root: Path,
    engine: str,
    base: Path,
    trainer: Ed25519PrivateKey,
    *,
    module: str = "services.inference",
    **settings: str,
) -> Service:
    """Start a service on one base model, `baseModels/tiny`; its artifact store is `root/artifacts`.

    Args:
        root: an empty directory.
        engine: `vllm` or `transformers`.
        base: directory of the base model.
        trainer: whose adapters it takes.
        module: that is run.
        **settings: more of its variables, without their prefix.
    """
    deployment = Ed25519PrivateKey.generate()
    people = ["analyst", "steward", "operator", "service"]
    keys = [jwk(deployment, "deployment", people), jwk(trainer, "trainer", ["worker"])]
    (root / "trusted.json").write_text(json.dumps({"keys": keys}))
    (root / "token").write_text("unused")
    (root / "state").mkdir()
    chosen = {
        "LISTEN": "127.0.0.1:0",
        "STATE_DIR": str(root / "state"),
        "TRUSTED_KEYS": str(root / "trusted.json"),
        "SERVICE_TOKEN_FILE": str(root / "token"),
        "BASE_MODELS": json.dumps({"tiny": str(base)}),
        "ARTIFACTS": str(root / "artifacts"),
        "ENGINE": engine,
        "STOP_GRACE_S": "1",
        **settings,
    }
    environment = os.environ | {f"MURMURA_{name}": value for name, value in chosen.items()}
    process, port = start(environment, root / "log", module)
    return Service(engine, process, port, root, deployment, environment)
