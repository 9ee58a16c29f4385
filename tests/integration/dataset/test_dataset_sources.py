"""Registering from where data lies, with the real services: tables, a transit key, and what a broken source leaves."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from tests.support.dataset_services import Pair
from tests.support.sent import rows_in
from tests.support.transit_server import TransitServer

SECRET = "Quillfeather"


@pytest.fixture(scope="module")
def transit() -> Iterator[TransitServer]:
    made = TransitServer()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def told(transit: TransitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The services, with a database, a transit key, and one directory that may be read."""
    directory = tmp_path_factory.mktemp("told")
    made = Pair(directory)
    token = directory / "vault-token" / "token"
    token.parent.mkdir()
    token.write_text(transit.token)
    engine = sa.create_engine(f"sqlite:///{directory}/clinic.db")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE notes (patient TEXT, text TEXT)"))
        rows = [{"p": f"p{n // 2}", "t": f"{SECRET} {uuid.uuid4().hex} {n}"} for n in range(2500)]
        connection.execute(sa.text("INSERT INTO notes VALUES (:p, :t)"), rows)
    engine.dispose()
    (directory / "data").mkdir()
    with made.running(
        SOURCES=json.dumps([str(directory / "data")]),
        DATABASES=json.dumps({"clinic": f"sqlite:///{directory}/clinic.db"}),
        TRANSIT_URL=transit.url,
        TRANSIT_TOKEN_FILE=str(token),
    ):
        yield made


def table(pair: Pair, name: str = "notes", connection: str = "clinic") -> Any:
    request = pair.request("{}")
    request.source.sql.connection, request.source.sql.table = connection, name
    return request


def test_a_table_is_registered_and_read(told: Pair, refused: Any, transit: TransitServer) -> None:
    answers = list(told.dataset.RegisterDataset(table(told), metadata=told.who("steward"), timeout=60))
    assert [answer.rows_read for answer in answers] == [1000, 2000, 2500, 2500]
    dataset = answers[-1].dataset
    assert (dataset.row_count, dataset.unit_count) == (2500, 1250)
    frame = expressions_pb2.Frame(dataset=dataset.name)
    worker = told.worker(**told.claims(frame, told.reserve(dataset)))
    texts = [text for _, text in rows_in(told.read(frame, worker))]
    assert [text.rpartition(" ")[2] for text in texts] == [str(n) for n in range(2500)]
    assert not (told.state("dataset") / "master.key").exists()
    assert all(SECRET.encode() not in path.read_bytes() for path in told.state("dataset").rglob("*") if path.is_file())
    # Who holds the key can end it: rows are refused, and nothing else is.
    token, transit.token = transit.token, "another"
    try:
        answer = refused(lambda: told.read(frame, worker))
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        describe = pb.DescribeFrameRequest(frame=frame)
        assert told.dataset.DescribeFrame(describe, metadata=told.who("analyst"), timeout=20).row_count == 2500
    finally:
        transit.token = token
    assert len(told.read(frame, worker)) > 1


def test_what_is_not_configured_is_refused(told: Pair, refused: Any) -> None:
    for request in (table(told, connection="other"), table(told, "none"), told.request('{"patient": "p"}')):
        answer = refused(lambda sent=request: told.register(sent))
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SOURCE_UNREADABLE")
        assert "Nothing was registered" in answer.message


def test_a_source_that_breaks_at_its_end_leaves_nothing(pair: Any, refused: Any) -> None:
    before = sorted((pair.state("dataset") / "rows").iterdir())
    lines = [json.dumps({"patient": f"p{n}", "text": f"{SECRET} {n}", "age": n}) for n in range(3000)]
    lines[2998] = json.dumps({"patient": "p", "text": SECRET, "age": SECRET})
    request = pair.request("\n".join(lines))
    answer = refused(lambda: pair.register(request))
    assert (answer.reason, answer.metadata["line"]) == ("SOURCE_UNREADABLE", "2999")
    assert "column 'age'" in answer.message
    assert SECRET.encode() not in answer.everything
    assert sorted((pair.state("dataset") / "rows").iterdir()) == before
    name = f"datasets/{request.dataset_id}"
    gone = refused(
        lambda: pair.dataset.GetDataset(pb.GetDatasetRequest(name=name), metadata=pair.who("analyst"), timeout=20)
    )
    assert gone.code == grpc.StatusCode.NOT_FOUND
    assert SECRET not in pair.log("dataset")


def test_a_steward_who_leaves_leaves_nothing(pair: Any, refused: Any, tmp_path: Path) -> None:
    before = sorted((pair.state("dataset") / "rows").iterdir())
    salt = uuid.uuid4().hex
    request = pair.request(
        "".join(json.dumps({"patient": f"p{n}", "text": f"{salt} {n}"}) + "\n" for n in range(30_000))
    )
    call = pair.dataset.RegisterDataset(request, metadata=pair.who("steward"), timeout=60)
    assert next(call).rows_read == 1000
    assert len(list((pair.state("dataset") / "rows").iterdir())) > len(before)
    call.cancel()
    for _ in range(100):
        if sorted((pair.state("dataset") / "rows").iterdir()) == before:
            break
        time.sleep(0.1)
    assert sorted((pair.state("dataset") / "rows").iterdir()) == before
    # The same request again begins anew.
    assert pair.register(request).row_count == 30_000
