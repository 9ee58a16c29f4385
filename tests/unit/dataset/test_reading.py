"""What a worker is sent of a frame: the same on both ways, and a column as it was sealed wherever that is all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from services.common.tokens import Principal
from services.dataset import batches
from services.dataset import expressions as ex
from services.dataset.catalogue import Catalogue
from services.dataset.reading import untouched
from services.dataset.registry import Registry
from services.dataset.units import Units
from services.dataset.vault import Piece, Vault
from tests.support.notes import cut
from tests.support.registered import store
from tests.support.sent import rows_in

ANALYST = Principal("ann@local", frozenset({"analyst"}))
Make = Callable[[pl.DataFrame], Catalogue]


@pytest.fixture
def holding(tmp_path: Path) -> Make:
    """Make a catalogue that holds `datasets/notes` with some rows, all texts, one unit a patient."""

    def make(rows: pl.DataFrame) -> Catalogue:
        units = Units()
        units.add(rows["patient"])
        made = dataset_pb2.Dataset(
            name="datasets/notes",
            row_count=rows.height,
            unit_count=units.count,
            privacy_unit_column="patient",
            policy_version=1,
        )
        for column in rows.columns:
            made.schema.columns.add(name=column, type=frames_pb2.VALUE_TYPE_STRING)
        catalogue = Catalogue(Registry(tmp_path / "registry.sqlite3"), Vault(tmp_path))
        catalogue.registry.add(made, "storage", units.packed(), "f", ("r1", "body", b"answer"))
        store(catalogue.vault, "storage", rows)
        return catalogue

    return make


def sent(catalogue: Catalogue, *operations: frames_pb2.Operation, text: str = "text", completion: str = "") -> Any:
    """What is sent, and what is said of it first."""
    described = catalogue.describe(frames_pb2.Frame(dataset="datasets/notes", operations=operations), ANALYST)
    columns = catalogue.columns(described, text, completion)
    said = pb.ReadRowsResponse(text_field=columns.text, completion_field=columns.completion)
    return said, list(catalogue.read(described, columns))


def read(catalogue: Catalogue, *operations: frames_pb2.Operation, **columns: str) -> list[tuple[Any, ...]]:
    said, messages = sent(catalogue, *operations, **columns)
    return rows_in([said, *map(pb.ReadRowsResponse.FromString, messages)])


def rename(**columns: str) -> frames_pb2.Operation:
    return frames_pb2.Operation(rename=frames_pb2.Rename(columns=columns))


def test_columns_that_are_left_alone_are_the_same_on_both_ways(holding: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = holding(pl.DataFrame({"patient": ["a", "a", "b"], "n": ["1", None, "3"], "text": ["x", "y", ""]}))
    swapped = rename(text="n", n="text")
    asked: list[tuple[tuple[frames_pb2.Operation, ...], dict[str, str]]] = [
        ((), {}),
        ((swapped,), {}),
        ((swapped,), {"completion": "n"}),
        ((cut(1),), {}),
        ((rename(text="note"),), {"text": "note", "completion": "patient"}),
        ((), {"text": "patient"}),
        ((), {"completion": "text"}),
    ]
    # A cut through a piece: what is sent is a part of what was sealed, and its texts do not begin where memory does.
    assert read(catalogue, cut(1), cut(stop=1)) == [(0, "y")]
    straight = [read(catalogue, *operations, **columns) for operations, columns in asked]
    assert straight[0] == [(0, "x"), (0, "y")]
    assert straight[1] == [(0, "1"), (1, "3")]
    assert straight[2] == [(0, "1", "x")]
    assert straight[3] == [(0, "y")]
    assert straight[5] == [(0, "a"), (0, "a"), (1, "b")]
    assert straight[6] == [(0, "x", "x"), (0, "y", "y")]
    monkeypatch.setattr("services.dataset.reading.untouched", lambda operations, columns: None)
    assert straight == [read(catalogue, *operations, **columns) for operations, columns in asked]


def test_a_column_goes_out_as_it_was_sealed_unless_a_row_of_it_is_empty(
    holding: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * (batches.PIECE_BYTES // 4)
    texts = ["" if n in (4, 5) else f"{long}{n}" for n in range(8)]
    catalogue = holding(pl.DataFrame({"patient": list("aabbccdd"), "n": list("12345678"), "text": texts}))
    assert [piece.held for piece in catalogue.vault.pieces("storage")] == [3, 5]
    taken_apart: list[int] = []
    joined = Piece.batch
    monkeypatch.setattr(Piece, "batch", lambda self: taken_apart.append(self.held) or joined(self))
    said, messages = sent(catalogue)
    # The first piece is what was sealed; of the second, two rows have no text, and the others go.
    assert taken_apart == [5]
    first = next(iter(catalogue.vault.pieces("storage", range(3), [2])))
    assert messages[0] == first.columns[0]
    found = rows_in([said, *map(pb.ReadRowsResponse.FromString, messages)])
    assert found == [(unit, f"{long}{n}") for unit, n in ((0, 0), (0, 1), (1, 2), (1, 3), (3, 6), (3, 7))]
    # Other columns of the same rows are whole.
    taken_apart.clear()
    assert len(sent(catalogue, text="patient", completion="n")[1]) == 5
    assert not taken_apart
    # Of a piece that a frame cuts through, nothing goes that is not the frame's.
    found = read(catalogue, cut(2, 5), text="patient", completion="n")
    assert found == [(0, "b", "3"), (0, "b", "4"), (1, "c", "5")]
    assert taken_apart == [3, 5]


def test_a_text_that_is_missing_has_no_length_whatever_lies_in_its_place() -> None:
    offsets, data = np.array([0, 2, 5, 5], np.int32), b"abcde"
    buffers = [pa.py_buffer(b"\x05"), pa.py_buffer(offsets), pa.py_buffer(data)]  # the second is missing
    texts = pa.StringArray.from_buffers(3, buffers[1], buffers[2], buffers[0])
    assert texts.to_pylist() == ["ab", None, ""]
    assert batches.lengths(texts).tolist() == [2, 0, 0]
    assert batches.lengths(texts.slice(1)).tolist() == [0, 0]


def test_what_an_operation_makes_or_drops_is_not_left_alone() -> None:
    columns = ("patient", "text")
    assert untouched([ex.Rename({"text": "note"}), ex.Slice(1, None)], columns) == {
        "patient": "patient",
        "note": "text",
    }
    assert untouched([ex.Assign("text", ex.Column("patient"))], columns) is None
    assert untouched([ex.Filter(ex.Literal(value=True))], columns) is None
