"""Describing a frame from outside: what is public, and which frames are refused."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from murmura.api.dataset.v1 import expressions_pb2
from tests.support.notes import SECRETS, cut, describe, frame_of, notes, split


def test_a_frame_is_described_from_public_facts(pair: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    answer = describe(pair, frame_of(dataset, cut(1, 4), split(1, column="name")))
    assert (answer.row_count, answer.unit_count) == (3, 2)
    assert [column.name for column in answer.schema.columns] == ["patient", "text", "name"]
    assert len(answer.mock_rows) == 5
    assert not any(secret.encode() in answer.SerializeToString() for secret in SECRETS)


def test_datasets_that_differ_in_a_failing_row_are_described_alike(pair: Any) -> None:
    salt = uuid.uuid4().hex[:8]
    sound = notes(salt)
    lines = sound.splitlines(keepends=True)
    lines[3] = json.dumps({"patient": f"{SECRETS[0]} 1", "text": "no bar at all"}) + "\n"
    answers = []
    for content in (sound, "".join(lines)):
        dataset = pair.register(pair.request(content))
        answers.append(describe(pair, frame_of(dataset, cut(0, 8), split(1))).SerializeToString(deterministic=True))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (split(0, by=""), "EXPRESSION_REJECTED"),
        (expressions_pb2.Operation(drop=expressions_pb2.Drop(columns=["nobody"])), "COLUMN_UNKNOWN"),
        (
            expressions_pb2.Operation(
                filter=expressions_pb2.Filter(
                    predicate=expressions_pb2.Expression(
                        call=expressions_pb2.Call(function=expressions_pb2.FUNCTION_REGEX_MATCHES)
                    )
                )
            ),
            "EXPRESSION_REJECTED",
        ),
        (
            expressions_pb2.Operation(
                filter=expressions_pb2.Filter(
                    predicate=expressions_pb2.Expression(call=expressions_pb2.Call(function=999))  # type: ignore[arg-type]
                )
            ),
            "EXPRESSION_REJECTED",
        ),
    ],
)
def test_a_frame_that_is_not_allowed_is_refused(pair: Any, refused: Any, operation: Any, reason: str) -> None:
    dataset = pair.register(pair.request(notes()))
    assert refused(lambda: describe(pair, frame_of(dataset, operation))).reason == reason
