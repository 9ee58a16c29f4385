"""Parquet: what its types become, what is refused before a row is read, and what cannot be kept named by its place."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.dataset import expressions as ex
from services.dataset.columns import Unreadable, type_of
from services.dataset.parquet import rows
from services.dataset.vault import Vault

SECRET = "Zanzibar"
NOON = dt.datetime(2024, 3, 1, 12)
FAR = pa.array([0, 253402300800], pa.int64())  # the second begins the year 10000


def read(column: pa.Array, directory: Path, declared: dict[str, str] | None = None) -> pl.Series:
    path = directory / "rows.parquet"
    pq.write_table(pa.table({"column": column}), path)
    with path.open("rb") as file:
        items = list(rows(file, declared or {}, Vault(directory / "v").spool()))
    return pl.concat([item[0] for item in items if isinstance(item, tuple)]).get_column("column")


def refusal(column: pa.Array, directory: Path) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        read(column, directory)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        (pa.array([Decimal("1.25")]), ex.FLOAT, 1.25),
        (pa.array([Decimal(2**62 + 1)], pa.decimal128(38, 0)), ex.INTEGER, 2**62 + 1),
        (pa.array([7], pa.uint8()), ex.INTEGER, 7),
        (pa.array([1.5], pa.float16()), ex.FLOAT, 1.5),
        (pa.array([dt.date(1980, 1, 2)]), ex.TIMESTAMP, dt.datetime(1980, 1, 2)),
        (pa.array([NOON], pa.timestamp("ns")), ex.TIMESTAMP, NOON),
        (pa.array([NOON], pa.timestamp("ms", "Asia/Tokyo")), ex.TIMESTAMP, NOON),
        (pa.array(["note"]).dictionary_encode(), ex.STRING, "note"),
        (pa.array(["note"], pa.large_string()), ex.STRING, "note"),
        (pa.array([None]), ex.STRING, None),
        # As from a database, and nested as from JSON Lines.
        (pa.array([dt.time(6, 30)]), ex.STRING, "06:30:00"),
        (pa.array([uuid.UUID(int=5).bytes], pa.uuid()), ex.STRING, "00000000-0000-0000-0000-000000000005"),
        (pa.array(['{"a": 1}'], pa.json_()), ex.STRING, '{"a": 1}'),
        (pa.array([["é", None]]), ex.STRING, '["é", null]'),
        (pa.array([{"a": [1.5], "b": {"c": NOON}}]), ex.STRING, '{"a": [1.5], "b": {"c": "2024-03-01 12:00:00"}}'),
        (pa.array([[("k", 1), ("l", 2)]], pa.map_(pa.string(), pa.int64())), ex.STRING, '{"k": 1, "l": 2}'),
    ],
    ids=lambda given: str(given.type) if isinstance(given, pa.Array) else "",
)
def test_types_are_kept_or_written_as_text(tmp_path: Path, column: pa.Array, kind: str, value: Any) -> None:
    found = read(column, tmp_path)
    assert (type_of(found), found.to_list()) == (kind, [value])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([SECRET.encode()]),
        pa.array([[SECRET.encode()]]),
        pa.array([{"a": SECRET.encode()}]),
        # Polars ends in a panic on it, and prints it into the log.
        pa.array([Decimal(10**60)], pa.decimal256(70, 2)),
    ],
    ids=lambda given: str(given.type),
)
def test_what_is_no_text_and_no_number_is_refused_by_the_name_of_its_column(
    tmp_path: Path, column: pa.Array, capfd: pytest.CaptureFixture[str]
) -> None:
    assert str(refusal(column, tmp_path)).startswith("column 'column' has a type that is not supported")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2**63], pa.uint64()),
        pa.array([Decimal(1), Decimal(10**30)], pa.decimal128(38, 0)),
        # Of times that Python cannot write down neither digests nor units could be made.
        FAR.cast(pa.timestamp("s")),
        FAR.cast(pa.timestamp("s")).cast(pa.timestamp("us", "Asia/Tokyo")),
        pa.array([0, -62135596801], pa.int64()).cast(pa.timestamp("s")),
        pa.array([0, 2932897], pa.int32()).cast(pa.date32()),
        # Of which one would be lost.
        pa.array([[("a", 1)], [(SECRET, 1), (SECRET, 2)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[1], [10**13]], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("s"))),
    ],
    ids=lambda given: str(given.type),
)
def test_a_value_that_cannot_be_kept_is_named_by_its_place(tmp_path: Path, column: pa.Array) -> None:
    found = refusal(column, tmp_path)
    assert (found.line, "line 2, column 'column'" in str(found)) == (2, True)


@pytest.mark.parametrize("names", [["a", "a"], ["a", ""], ["a", "b\0"], ["a", "b" * 201]])
def test_columns_have_names_of_their_own(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table([pa.array([1])] * 2, names), path)
    with path.open("rb") as file, pytest.raises(Unreadable, match="name"):
        list(rows(file, {}, Vault(tmp_path / "v").spool()))


def test_the_last_moment_of_all_is_kept(tmp_path: Path) -> None:
    assert read(pa.array([dt.datetime.max, dt.datetime.min]), tmp_path).to_list() == [dt.datetime.max, dt.datetime.min]


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_bytes_that_some_programs_write_as_text_are_refused(tmp_path: Path, dictionary: bool, nested: bool) -> None:
    """Polars would take them on trust, and reading them later would end in a panic."""
    texts = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\4\0\0\0\x0e\0\0\0"), pa.py_buffer(b"note" + SECRET.encode() + b"\xe9\xff")
    )
    path = tmp_path / "rows.parquet"
    column = pa.StructArray.from_arrays([texts], ["a"]) if nested else texts
    pq.write_table(pa.table({"column": column}), path, use_dictionary=dictionary)
    with path.open("rb") as file, pytest.raises(Unreadable) as caught:
        list(rows(file, {}, Vault(tmp_path / "v").spool()))
    assert str(caught.value) == "line 2, column 'column': not UTF-8, or damaged"
