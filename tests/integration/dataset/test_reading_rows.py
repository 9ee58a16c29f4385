"""The one edge on which rows leave: to the worker of a job, for as long as its money is set aside."""

from __future__ import annotations

import json
import uuid
from typing import Any

import grpc
import pytest

from murmura.api.ledger.v1 import ledger_service_pb2
from services.common.requests import frame_digest
from tests.support.notes import SECRETS, cut, describe, frame_of, notes, split
from tests.support.sent import rows_in


def test_a_worker_reads_its_rows_and_no_others(pair: Any) -> None:
    salt = uuid.uuid4().hex[:8]
    lines = notes(salt).splitlines(keepends=True)
    lines[3] = json.dumps({"patient": f"{SECRETS[0]} 1", "text": "no bar at all"}) + "\n"
    dataset = pair.register(pair.request("".join(lines)))
    frame = frame_of(dataset, cut(2, 8), split(-1))
    token = pair.worker(**pair.claims(frame, pair.reserve(dataset)))
    messages = pair.read(frame, token)
    assert (messages[0].unit_count, messages[0].arrow_ipc) == (3, b"")
    # The row without a bar is its whole text; with [1] it would be none. Units count from the frame's first slot.
    assert rows_in(messages)[0] == (0, f"{SECRETS[2]} 1.0")
    assert [unit for unit, _ in rows_in(messages)] == [0, 0, 1, 1, 2, 2]
    frame = frame_of(dataset, cut(2, 8), split(1))
    token = pair.worker(**pair.claims(frame, pair.reserve(dataset)))
    assert rows_in(pair.read(frame, token)) == [
        (0, f"{SECRETS[2]} 1.0"),
        (1, f"{SECRETS[2]} 2.0"),
        (1, f"{SECRETS[2]} 2.1"),
        (2, f"{SECRETS[2]} 3.0"),
        (2, f"{SECRETS[2]} 3.1"),
    ]


def test_an_analyst_cannot_redefine_the_privacy_units(pair: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset, split(1, column="__unit"))
    described = describe(pair, frame)
    messages = pair.read(frame, pair.worker(**pair.claims(frame, pair.reserve(dataset))))
    assert described.unit_count == messages[0].unit_count == 6
    assert [unit for unit, _ in rows_in(messages)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_messages_stay_small(pair: Any) -> None:
    salt = uuid.uuid4().hex
    lengths = [600_000, 600_000, 40, 1_000_000, 1_000_000, *[50_000] * 60]
    content = "".join(
        json.dumps({"patient": f"p{number}", "text": f"{salt}{number}".ljust(length, "x")}) + "\n"
        for number, length in enumerate(lengths)
    )
    dataset = pair.register(pair.request(content))
    frame = frame_of(dataset)
    messages = pair.read(frame, pair.worker(**pair.claims(frame, pair.reserve(dataset))))
    assert max(message.ByteSize() for message in messages) < (1 << 20) + 4096
    assert [len(text) for _, text in rows_in(messages)] == lengths


@pytest.mark.parametrize("role", ["analyst", "steward", "operator", "service"])
def test_nobody_but_a_worker_reads_rows(pair: Any, refused: Any, role: str) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    # A token that says all that a job token says, and is another's: the role alone stands in its way.
    metadata = pair.who(role, **pair.claims(frame, pair.reserve(dataset)))
    answer = refused(lambda: pair.read(frame, metadata))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED")


def test_a_key_for_people_cannot_make_a_worker(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    metadata = pair.who("worker", **pair.claims(frame, pair.reserve(dataset)))
    assert refused(lambda: pair.read(frame, metadata)).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("wrong", ["frame", "dataset", "missing"])
def test_a_token_for_other_rows_is_refused(pair: Any, refused: Any, wrong: str) -> None:
    dataset, other = pair.register(pair.request(notes())), pair.register(pair.request(notes()))
    claims = pair.claims(frame_of(dataset, cut(0, 4)), pair.reserve(dataset))
    frame = frame_of(dataset, cut(0, 4))
    if wrong == "frame":
        frame = frame_of(dataset, cut(0, 5))
    elif wrong == "dataset":
        claims["dataset"] = other.name
    else:
        claims.pop("frame_sha256")
    answer = refused(lambda: pair.read(frame, pair.worker(**claims)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOB_TOKEN_MISMATCH")


def test_a_measurements_rows_open_to_their_own_claims_and_reservation(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    own, held_out = frame_of(dataset, cut(0, 8)), frame_of(dataset, cut(8, 12))
    claims, evaluation = pair.claims(own, pair.reserve(dataset)), pair.reserve(dataset)
    assert refused(lambda: pair.read(held_out, pair.worker(**claims))).reason == "JOB_TOKEN_MISMATCH"
    claims |= {"evaluation_reservation": evaluation, "evaluation_frame_sha256": frame_digest(held_out)}
    assert len(rows_in(pair.read(own, pair.worker(**claims)))) == 8
    assert len(rows_in(pair.read(held_out, pair.worker(**claims)))) == 4
    request = ledger_service_pb2.ReleaseReservationRequest(request_id=str(uuid.uuid4()), name=evaluation)
    pair.ledger.ReleaseReservation(request, metadata=pair.who("service", "service:trainer"), timeout=20)
    assert refused(lambda: pair.read(held_out, pair.worker(**claims))).reason == "JOB_TOKEN_MISMATCH"
    assert len(rows_in(pair.read(own, pair.worker(**claims)))) == 8, "what pays for these is still pending"


@pytest.mark.parametrize("how", ["committed", "released"])
def test_a_resolved_reservation_opens_nothing(pair: Any, refused: Any, how: str) -> None:
    dataset = pair.register(pair.request(notes()))
    frame, reservation = frame_of(dataset), pair.reserve(dataset)
    token = pair.worker(**pair.claims(frame, reservation))
    assert len(rows_in(pair.read(frame, token))) == 12
    kind = {"committed": "Commit", "released": "Release"}[how]
    request = getattr(ledger_service_pb2, f"{kind}ReservationRequest")(request_id=str(uuid.uuid4()), name=reservation)
    service = pair.who("service", "service:trainer")
    getattr(pair.ledger, f"{kind}Reservation")(request, metadata=service, timeout=20)
    answer = refused(lambda: pair.read(frame, token))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOB_TOKEN_MISMATCH")


def test_a_reservation_of_another_account_or_job_opens_nothing(pair: Any, refused: Any) -> None:
    dataset, other = pair.register(pair.request(notes())), pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    for reservation in (pair.reserve(other), pair.reserve(dataset, "trainingJobs/two"), ""):
        metadata = pair.worker(**pair.claims(frame, reservation))
        assert refused(lambda sent=metadata: pair.read(frame, sent)).reason == "JOB_TOKEN_MISMATCH"


def test_neither_logs_nor_files_hold_rows(pair: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset, split(1))
    describe(pair, frame)
    assert SECRETS[2] in str(rows_in(pair.read(frame, pair.worker(**pair.claims(frame, pair.reserve(dataset))))))
    for service in ("dataset", "ledger"):
        log = pair.log(service)
        assert "ReadRows" in log or service == "ledger"
        assert not any(secret in log for secret in SECRETS)
        for path in pair.state(service).rglob("*"):
            if path.is_file():
                held = path.read_bytes()
                assert not any(secret.encode() in held for secret in SECRETS), path
                assert b"PAR1" not in held, path
