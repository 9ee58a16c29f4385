"""Whether a service serves, as a kubelet asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.common import probe
from tests.support.certificates import DOMAIN, Authority


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("serving", [False, True])
def test_it_says_what_the_service_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, serving: bool
) -> None:
    monkeypatch.setenv("MURMURA_STATE_DIR", str(tmp_path))
    assert probe.main() == 1  # it has not begun to listen
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    status = health_pb2.HealthCheckResponse
    servicer.set("", status.SERVING if serving else status.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    if tls:
        files = Authority(tmp_path / "tls").issue(f"ledger.{DOMAIN}", file="ledger")
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        monkeypatch.setenv("MURMURA_TLS_AUTHORITY", str(files.authority))
        monkeypatch.setenv("MURMURA_TLS_CERTIFICATE", str(files.certificate))
        monkeypatch.setenv("MURMURA_TLS_DOMAIN", DOMAIN)
    (tmp_path / "listening").write_text(f"0.0.0.0:{port}\n")
    server.start()
    assert probe.main() == (0 if serving else 1)
    if tls:  # whoever listens there with another authority's certificate is not the service
        other = Authority(tmp_path / "other")
        monkeypatch.setenv("MURMURA_TLS_AUTHORITY", str(other.file))
        assert probe.main() == 1
    server.stop(0).wait()
    assert probe.main() == 1
