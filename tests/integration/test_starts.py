"""A service that cannot start where it was told to ends with a sentence that names the variable at fault."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from murmura.local.identity import Identity
from tests.support import warm
from tests.support.launchers import until


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine that something else listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def settings(directory: Path, service: str) -> dict[str, str]:
    identity = Identity(directory)
    identity.mint(f"service:{service}", "service")
    told = {
        "STATE_DIR": str(directory / "state"),
        "TRUSTED_KEYS": str(identity.trusted_keys),
        "SERVICE_TOKEN_FILE": str(identity.token_file(f"service:{service}")),
    }
    if service == "trainer":
        told |= {f"{name}_ENDPOINT": "127.0.0.1:1" for name in ("LEDGER", "DATASET", "TRAINER")}
        told |= {"BASE_MODELS": "{}", "ARTIFACTS": str(directory / "artifacts")}
        told |= {"SIGNING_KEY_FILE": str(directory / "keys" / "trainer.pem")}
    return told


def ends_with(directory: Path, service: str, told: dict[str, str]) -> str:
    """Start a service; return what it says as it ends by itself."""
    log = directory / "log"
    process = warm.start(f"services.{service}", warm.environment(settings(directory, service) | told), log)
    try:
        assert process.wait(timeout=60) == 2
    except subprocess.TimeoutExpired:
        pytest.fail(f"it goes on: {log.read_text()}")
    finally:
        process.kill()
    said = log.read_text()
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("service", ["ledger", "trainer"])
@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"STATE_DIR": "{file}"}, "MURMURA_STATE_DIR: {file} cannot be a directory of this service: File exists"),
        ({"STATE_DIR": "{file}/state"}, "MURMURA_STATE_DIR: {file}/state cannot be a directory"),
        ({"LISTEN": "127.0.0.1:{taken}"}, "MURMURA_LISTEN: cannot listen at 127.0.0.1:{taken}: it is taken"),
        ({"LISTEN": "unix:{file}/socket"}, "MURMURA_LISTEN: cannot listen at unix:{file}/socket"),
        ({"METRICS_PORT": "{taken}"}, "MURMURA_METRICS_HOST, MURMURA_METRICS_PORT: cannot listen there: Address"),
        ({"METRICS_PORT": "{taken}", "METRICS_HOST": "a b"}, "MURMURA_METRICS_HOST, MURMURA_METRICS_PORT: cannot"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, dict) else "",
)
def test_a_place_that_cannot_be_had_is_named(
    service: str, told: dict[str, str], says: str, taken: int, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    places = {"file": str(tmp_path / "file"), "taken": str(taken)}
    told = {name: value.format(**places) for name, value in told.items()}
    assert ends_with(tmp_path, service, told).startswith(says.format(**places))


def test_an_artifact_store_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = ends_with(tmp_path, "trainer", {"ARTIFACTS": str(tmp_path / "file")})
    assert said.startswith("MURMURA_ARTIFACTS: ")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff", b"[1]", b"{", b"clusters: 7\ncontexts: [7]\n", None])
def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "kubeconfig"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    told = {"LAUNCHER": "kubernetes", "CLUSTER_IMAGE": "worker", "CLUSTER_KUBECONFIG": str(file)}
    assert ends_with(tmp_path, "trainer", told).startswith("MURMURA_LAUNCHER: no cluster: ")


def test_where_a_service_listens_is_told_as_it_is(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    environment = warm.environment(settings(tmp_path, "ledger") | {"LISTEN": address})
    process = warm.start("services.ledger", environment, tmp_path / "log")
    try:
        listening = tmp_path / "state" / "listening"
        until(listening.exists)
        until(lambda: listening.read_text() == f"{address}\n")
    finally:
        process.kill()
