"""Read rows from where they lie: a JSON Lines, CSV or Parquet file becomes a table whose types are fixed.

What is broken is named by line and column to the steward who registers, never by content: an exception of a parser
quotes what it could not parse, so none is passed on. Other kinds of sources (object stores, databases) slot in beside
`_FORMATS`: each is a generator of row counts that ends with the columns and the line of each row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NoReturn

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import columns as typing_of
from services.dataset import expressions as ex
from services.dataset.columns import Unreadable

ROWS_A_REPORT = 1_000
# How a source is read: yields counts of rows, returns the columns and the line of each row.
Reading = Generator[int, None, tuple[pl.DataFrame, list[int]]]
_ENDINGS = {
    ".parquet": dataset_pb2.FILE_FORMAT_PARQUET,
    ".csv": dataset_pb2.FILE_FORMAT_CSV,
    ".jsonl": dataset_pb2.FILE_FORMAT_JSON_LINES,
    ".ndjson": dataset_pb2.FILE_FORMAT_JSON_LINES,
}


def read(source: dataset_pb2.FileSource, unit_column: str, declared: Mapping[str, str]) -> Iterator[int | pl.DataFrame]:
    """Read a file: yields the number of rows now and then, and at last the rows.

    Args:
        source: a path or a `file://` URL.
        unit_column: the column of the privacy unit; a row without a unit is broken.
        declared: types that the steward has promised, by column.

    Raises:
        Unreadable: if the file is missing or a row is broken; names a line and a column, never content.
    """
    if "::" in source.url or source.url.partition("://")[0] not in ("file", source.url):
        raise Unreadable("this release reads files of the dataset service's own machine: give a path or a file:// URL")
    ending = "." + source.url.rpartition(".")[2].lower()
    file_format = source.format or _ENDINGS.get(ending, dataset_pb2.FILE_FORMAT_UNSPECIFIED)
    reader = _FORMATS.get(file_format)
    if reader is None:
        raise Unreadable("the format is unknown; name the file .parquet, .csv or .jsonl, or set the format")
    try:
        with fsspec.open(source.url, "rb") as file:
            rows, lines = yield from reader(file, declared)
    except (OSError, ImportError):
        raise Unreadable("the file cannot be opened by the dataset service") from None
    typing_of.check(rows, lines, unit_column, declared)
    yield rows


def _read_json_lines(file: Any, declared: Mapping[str, str]) -> Reading:
    found: dict[str, list[Any]] = {}
    lines: list[int] = []
    for number, raw in enumerate(file, 1):
        text = _utf8(raw, number)
        if not text.strip():
            continue
        row = _json(text, number)
        for name in row:
            if name not in found:
                found[name] = [None] * len(lines)
        for name, values in found.items():
            values.append(_flat(row.get(name)))
        lines.append(number)
        if len(lines) % ROWS_A_REPORT == 0:
            yield len(lines)
    return typing_of.from_values(found, lines, declared), lines


def _read_csv(file: Any, declared: Mapping[str, str]) -> Reading:
    csv.field_size_limit(2 * ex.MOST_TEXT_BYTES)
    reader = csv.reader((_utf8(raw, number) for number, raw in enumerate(file, 1)), strict=True)
    lines: list[int] = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise Unreadable("line 1: two columns have the same name", 1)
        found: list[list[str]] = [[] for _ in header]
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise Unreadable(
                    f"line {reader.line_num}: {len(fields)} fields, and the header has {len(header)}", reader.line_num
                )
            for values, field in zip(found, fields, strict=True):
                values.append(field)
            lines.append(reader.line_num)
            if len(lines) % ROWS_A_REPORT == 0:
                yield len(lines)
    except csv.Error:
        raise Unreadable(f"line {reader.line_num}: not CSV", reader.line_num) from None
    return typing_of.from_texts(dict(zip(header, found, strict=True)), lines, declared), lines


def _read_parquet(file: Any, declared: Mapping[str, str]) -> Reading:
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        if len(set(names)) < len(names):
            raise Unreadable("two columns have the same name")
        batches, count = [], 0
        for batch in parquet.iter_batches(batch_size=ROWS_A_REPORT):
            batches.append(batch)
            count += batch.num_rows
            yield count
        table = pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches, parquet.schema_arrow)))
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        # The library's own words can quote a row.
        raise Unreadable("the file is not Parquet, or is damaged") from None
    lines = list(range(1, table.height + 1))
    return typing_of.from_table(table, lines, declared), lines


_FORMATS = {
    dataset_pb2.FILE_FORMAT_JSON_LINES: _read_json_lines,
    dataset_pb2.FILE_FORMAT_CSV: _read_csv,
    dataset_pb2.FILE_FORMAT_PARQUET: _read_parquet,
}


def _utf8(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise Unreadable(f"line {number}: not UTF-8", number) from None


def _json(text: str, number: int) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        row = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise Unreadable(f"line {number}, character {error.colno}: not JSON", number) from None
    except (ValueError, RecursionError):
        # A number without a value (NaN), one with thousands of digits, or brackets without end.
        raise Unreadable(f"line {number}: not JSON that this service reads", number) from None
    if not isinstance(row, dict):
        raise Unreadable(f"line {number}: not a JSON object", number)
    return row


def _flat(value: Any) -> Any:
    """Keep scalars; what is nested becomes its JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
