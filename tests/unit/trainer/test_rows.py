"""Rows as a worker puts them together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.dataset import outgoing
from services.trainer.worker import rows
from services.trainer.worker.rows import Received, RowsUnavailable

SAID = pb.ReadRowsResponse(unit_count=9, checkpoint_key=b"k" * 32, text_field="note", completion_field="answer")


class Token:
    """Of a job."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


def columns(**columns: list[str]) -> bytes:
    return outgoing.rows(pa.record_batch({name: pa.array(texts) for name, texts in columns.items()}))


def units(*numbers: int) -> bytes:
    return outgoing.units(np.array(numbers))


def received(*answers: bytes, said: pb.ReadRowsResponse = SAID, completion: str = "completion") -> Received:
    def call(request: Any, metadata: Any) -> Iterator[bytes]:
        return iter([said.SerializeToString(), *answers])

    frame = expressions_pb2.Frame(dataset="datasets/notes")
    asked = trainer_pb2.Assignment(text_column="text", completion_column=completion)
    return rows.read_rows(call, Token(), frame, asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answers",
    [
        (columns(note=["a", "b"], answer=["x", "y"]), columns(note=["c"], answer=["z"]), units(0, 0, 1 << 40)),
        # Each column alone, and units in other portions than texts.
        (units(0), columns(answer=["x", "y", "z"]), columns(note=["a"]), units(0, 1 << 40), columns(note=["b", "c"])),
        # All in one message, as another server might send it.
        (
            pb.ReadRowsResponse(
                units=[0, 0, 1 << 40],
                arrow_ipc=pb.ReadRowsResponse.FromString(
                    columns(note=["a", "b", "c"], answer=["x", "y", "z"])
                ).arrow_ipc,
            ).SerializeToString(),
        ),
    ],
)
def test_columns_and_units_come_in_whatever_messages(answers: tuple[bytes, ...]) -> None:
    found = received(*answers)
    assert (found.units, found.texts, found.completions) == ([0, 0, 1 << 40], ["a", "b", "c"], ["x", "y", "z"])
    assert found.checkpoint_key == b"k" * 32


def test_one_column_may_be_both() -> None:
    said = pb.ReadRowsResponse(text_field="note", completion_field="note")
    found = received(columns(note=["a", "b"]), units(1, 2), said=said)
    assert found.texts == found.completions == ["a", "b"]


def test_a_column_without_a_name_is_no_completion() -> None:
    found = received(
        columns(note=["a"], **{"": ["b"]}), units(1), said=pb.ReadRowsResponse(text_field="note"), completion=""
    )
    assert (found.texts, found.completions) == (["a"], [])


@pytest.mark.parametrize(
    "answers",
    [
        (columns(note=["a", "b"], answer=["x", "y"]), units(0)),
        (columns(note=["a"], answer=["x"]), units(0, 1)),
        (columns(note=["a"]), units(0)),
        (columns(note=["a", "b"], answer=["x"][:1] * 2), columns(answer=["y"]), units(0, 1)),
    ],
)
def test_rows_that_do_not_fit_their_units_are_refused(answers: tuple[bytes, ...]) -> None:
    with pytest.raises(RowsUnavailable):
        received(*answers)


def test_rows_are_kept_out_of_what_is_printed() -> None:
    assert repr(received(columns(note=["a"], answer=["x"]), units(7))) == "Received()"
