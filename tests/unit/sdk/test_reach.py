"""A service that cannot be reached: why is said in words, soon, and one that was there a moment ago is waited for."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura import Client, connection, errors
from murmura.aio import AsyncClient
from murmura.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from murmura.connection import local_profile, remote_profile
from murmura.reach import is_local, sentence
from services.common.errors import dependency_unavailable, from_upstream
from tests.support.certificates import Authority, Files
from tests.support.ports import free_port


class Datasets(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Has none."""

    def ListDatasets(self, request: Any, context: Any) -> dataset_service_pb2.ListDatasetsResponse:
        return dataset_service_pb2.ListDatasetsResponse()


def serve(port: int, files: Files | None = None) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(Datasets(), server)
    if files is None:
        server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    server.start()
    return server


@pytest.fixture
def web() -> Iterator[int]:
    """A port at which some web page is served."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made.server_port
    made.shutdown()
    made.server_close()


def refusal(url: str, **how: Any) -> str:
    """What calling a service there ends with, if it does so at once."""
    start = time.monotonic()
    client = Client(url, "a.b.c", **how)
    with pytest.raises(errors.Unreachable) as caught:
        client.datasets()
    client.close()
    assert time.monotonic() - start < 5
    return str(caught.value)


def test_whoever_listens_there_and_is_no_service_is_told_at_once(web: int) -> None:
    assert "does not speak gRPC: something else listens there" in refusal(f"grpc://127.0.0.1:{web}")
    assert "does not speak TLS: something else listens there" in refusal(f"grpcs://127.0.0.1:{web}")


def test_a_host_that_nobody_knows_is_said_to_be_so() -> None:
    # Names may take long to be looked up in vain, so these are gRPC's words and not gRPC.
    line = (
        "errors resolving nowhere.invalid:1: [field:hostname lookup error:address lookup failed: Domain name not found]"
    )
    assert "is on a host that nobody knows" in sentence("dataset", "nowhere.invalid:1", line)
    said = sentence("dataset", "hospital.example:1", "")
    assert said.endswith("does not answer. Check the address, or ask the operator whether it runs.")


def test_a_certificate_that_is_not_believed_says_what_to_ask_for(tmp_path: Path) -> None:
    authority, port = Authority(tmp_path), free_port()
    server = serve(port, authority.issue("murmura.example", "127.0.0.1", file="both"))
    assert "MURMURA_AUTHORITY" in refusal(f"grpcs://127.0.0.1:{port}")
    assert Client(f"grpcs://127.0.0.1:{port}", "a.b.c", authority=authority.file).datasets() == []
    server.stop(None).wait()
    server = serve(port, authority.issue("murmura.example"))
    assert "the certificate of another host" in refusal(f"grpcs://127.0.0.1:{port}", authority=authority.file)
    server.stop(None).wait()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_one_that_never_answered_is_given_up_sooner(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_S", 1.0)
    start = time.monotonic()
    with pytest.raises(errors.Unreachable, match=r"does not answer\. Start it with `murmura up`"):
        datasets(kind, f"grpc://127.0.0.1:{free_port()}")
    assert 1.0 < time.monotonic() - start < 10


def datasets(kind: Any, url: str) -> Any:
    if kind is Client:
        return Client(url, "a.b.c").datasets()

    async def found() -> Any:
        async with AsyncClient(url, "a.b.c") as client:
            return await client.datasets()

    return asyncio.run(found())


def test_one_that_answered_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_S", 0.0)
    port = free_port()
    server = serve(port)
    client = Client(f"grpc://127.0.0.1:{port}", "a.b.c")
    assert client.datasets() == []
    server.stop(None).wait()
    back: list[grpc.Server] = []
    restart = threading.Timer(2.0, lambda: back.append(serve(port)))
    restart.start()
    assert client.datasets() == []
    assert back, "it answered before it was back"
    client.close()
    back[0].stop(None)


def test_what_a_service_says_of_another_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers that the ledger is away is there."""
    monkeypatch.setattr(connection, "FIRST_S", 0.0)
    away = dependency_unavailable("ledger", "The ledger service does not answer.", retry_after_s=2)
    calls: list[int] = []

    class Busy(Datasets):
        def ListDatasets(self, request: Any, context: Any) -> dataset_service_pb2.ListDatasetsResponse:
            calls.append(1)
            if len(calls) > 2:
                return dataset_service_pb2.ListDatasetsResponse()
            context.set_trailing_metadata((("grpc-status-details-bin", away.status().SerializeToString()),))
            context.abort(away.code, away.message)
            raise AssertionError

    server = grpc.server(futures.ThreadPoolExecutor(2))
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(Busy(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert Client(f"grpc://127.0.0.1:{port}", "a.b.c").datasets() == []
    assert len(calls) == 3
    server.stop(None)


@pytest.mark.parametrize(
    "host", ["hospital.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example/127.0.0.1", "[::2]"]
)
def test_a_token_travels_in_the_clear_on_this_machine_only(host: str) -> None:
    assert not is_local(f"{host}:7401")
    with pytest.raises(errors.InvalidInput, match="in the clear"):
        remote_profile(f"grpc://{host}:7401", "t")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_this_machine_is_known(host: str) -> None:
    assert is_local(f"{host}:7401")
    assert not remote_profile(f"grpc://{host}:7401", "t").secure


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "\xff",
        '{"endpoints": {}, "tokens": {}}',
        json.dumps({"endpoints": [], "tokens": {"analyst": "/nowhere"}}),
        json.dumps({"endpoints": 7, "tokens": {"analyst": "profile.json"}}),
    ],
)
def test_a_profile_that_is_none_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profile.json").write_text(content, encoding="latin-1")
    with pytest.raises(errors.InvalidInput, match="run `murmura up` where it belongs"):
        local_profile("analyst", tmp_path / "profile.json")


async def test_a_service_in_place_of_another_is_no_fault_of_the_caller() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/murmura.api.ledger.v1.LedgerService/GetAccount")(b"")
    await server.stop(None)
    refused = from_upstream(caught.value, "ledger")
    assert (refused.reason, refused.metadata) == ("DEPENDENCY_UNAVAILABLE", {"service": "ledger"})
    assert "another one" in refused.message
