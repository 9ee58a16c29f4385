"""Registering through crashes: whatever fails in between, the same request again ends where it should."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.ledger.v1 import ledger_service_pb2
from tests.support.sent import rows_in


def content() -> str:
    salt = uuid.uuid4().hex
    return "".join(json.dumps({"patient": f"p{n // 2}", "text": f"{salt} {n}"}) + "\n" for n in range(6))


@pytest.fixture
def own(pair: Any) -> Iterator[Any]:
    """The services, with the dataset service running again after the test, whatever it did to it."""
    yield pair
    if "dataset" in pair._processes:
        pair.kill("dataset")
    pair.start("dataset")


def stored(pair: Any) -> set[str]:
    return {path.name for path in (pair.state("dataset") / "rows").iterdir()}


def test_without_a_ledger_nothing_is_registered_and_a_retry_is(own: Any, refused: Any) -> None:
    request, before = own.request(content()), stored(own)
    own.kill("dataset")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        own.start("dataset", LEDGER_ENDPOINT=f"127.0.0.1:{nobody.getsockname()[1]}")
        assert refused(lambda: own.register(request)).reason == "DEPENDENCY_UNAVAILABLE"
    assert stored(own) == before
    own.kill("dataset")
    own.start("dataset")
    assert own.register(request).row_count == 6


def test_a_crash_after_the_account_and_the_rows_is_taken_up(own: Any) -> None:
    request = own.request(content())
    first = own.register(request)
    # As if the power had gone just before the last transaction: account and rows are there, the dataset is not.
    own.kill("dataset")
    forget(own.state("dataset"), first.name, request.request_id)
    left = stored(own)
    own.start("dataset")
    swept = stored(own)
    assert len(left - swept) == 2
    again = own.register(request)
    again.create_time.CopyFrom(first.create_time)
    assert again == first
    assert stored(own) == left
    openings = own.ledger.ListEntries(
        ledger_service_pb2.ListEntriesRequest(account=first.account), metadata=own.who("steward"), timeout=20
    ).entries
    assert len(openings) == 1


def forget(state: Path, name: str, request_id: str) -> None:
    with sqlite3.connect(state / "registry.sqlite3") as registry:
        registry.execute("DELETE FROM datasets WHERE name = ?", (name,))
        registry.execute("DELETE FROM requests WHERE request_id = ?", (request_id,))
        registry.execute("DELETE FROM contents")
        registry.execute("DELETE FROM policies WHERE dataset = ?", (name,))
    registry.close()


def test_what_is_registered_survives_a_kill(own: Any) -> None:
    request = own.request(content())
    dataset = own.register(request)
    own.kill("dataset")
    own.start("dataset")
    read = own.dataset.GetDataset(pb.GetDatasetRequest(name=dataset.name), metadata=own.who("analyst"), timeout=20)
    assert read.dataset == dataset
    frame = pb.DescribeFrameRequest()
    frame.frame.dataset = dataset.name
    assert own.dataset.DescribeFrame(frame, metadata=own.who("analyst"), timeout=20).unit_count == 3
    claims = own.claims(frame.frame, own.reserve(dataset))
    assert len(rows_in(own.read(frame.frame, own.worker(**claims)))) == 6
    assert own.register(request) == dataset


def test_a_fresh_master_key_is_taken_by_a_service_that_runs(own: Any) -> None:
    dataset = own.register(own.request(content()))
    key = own.state("dataset") / "master.key"
    old = key.read_bytes()
    frame = expressions_pb2.Frame(dataset=dataset.name)
    worker = own.worker(**own.claims(frame, own.reserve(dataset)))
    command = [sys.executable, "-m", "services.dataset.rewrap"]
    told = {**os.environ, "MURMURA_STATE_DIR": str(own.state("dataset"))}
    done = subprocess.run(command, env=told, check=True, capture_output=True, text=True, timeout=60)
    assert "Back it up now" in done.stdout
    assert key.read_bytes() != old
    assert len(rows_in(own.read(frame, worker))) == 6
    later = own.register(own.request(content()))
    own.kill("dataset")
    own.start("dataset")
    for one in (dataset, later):
        frame = expressions_pb2.Frame(dataset=one.name)
        assert len(rows_in(own.read(frame, own.worker(**own.claims(frame, own.reserve(one)))))) == 6


def test_a_lost_master_key_stops_the_service_with_a_sentence(own: Any) -> None:
    own.register(own.request(content()))
    own.kill("dataset")
    key = own.state("dataset") / "master.key"
    kept = key.read_bytes()
    key.unlink()
    try:
        with pytest.raises(pytest.fail.Exception):
            own.start("dataset")
        process = own._processes.pop("dataset")
        assert process.wait(20) == 2
        assert "master.key is missing" in own.log("dataset")
        assert "Traceback" not in own.log("dataset").rpartition("stopped")[2]
        assert not key.exists()
    finally:
        key.write_bytes(kept)
        key.chmod(0o600)
