"""Read rows from where they lie. What is broken is named by line and column, never by content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fsspec
import polars as pl

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import expressions as ex

ROWS_A_REPORT = 1000
_ENDINGS = {
    ".parquet": dataset_pb2.FILE_FORMAT_PARQUET,
    ".csv": dataset_pb2.FILE_FORMAT_CSV,
    ".jsonl": dataset_pb2.FILE_FORMAT_JSON_LINES,
    ".ndjson": dataset_pb2.FILE_FORMAT_JSON_LINES,
}
_KINDS = {pl.String: ex.STRING, pl.Boolean: ex.BOOLEAN}


class Unreadable(ValueError):
    """The source cannot be read.

    Args:
        message: why; names a line and a column, never content.
        line: the line, from 1; 0 where there is none.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def read(source: dataset_pb2.FileSource) -> Iterator[int | pl.DataFrame]:
    """Read a file: yields the number of rows now and then, and at last the rows.

    Raises:
        Unreadable: if the file is missing or a row is broken.
    """
    ending = "." + source.url.rpartition(".")[2].lower()
    file_format = source.format or _ENDINGS.get(ending, dataset_pb2.FILE_FORMAT_UNSPECIFIED)
    try:
        with fsspec.open(source.url, "rb") as file:
            if file_format == dataset_pb2.FILE_FORMAT_JSON_LINES:
                yield from _read_json_lines(file)
            elif file_format == dataset_pb2.FILE_FORMAT_CSV:
                yield pl.read_csv(file)
            elif file_format == dataset_pb2.FILE_FORMAT_PARQUET:
                yield pl.read_parquet(file)
            else:
                raise Unreadable("the format is unknown; name the file .parquet, .csv or .jsonl, or set the format")
    except (OSError, ImportError):
        raise Unreadable("the file cannot be opened by the dataset service") from None
    except pl.exceptions.PolarsError:
        # The library's own words can quote a row.
        raise Unreadable("the file does not hold what its format promises") from None


def _read_json_lines(file: Any) -> Iterator[int | pl.DataFrame]:
    rows: list[dict[str, Any]] = []
    kinds: dict[str, type] = {}
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Unreadable(f"line {number}, column {error.colno}: not JSON", number) from None
        except UnicodeDecodeError:
            raise Unreadable(f"line {number}: not UTF-8", number) from None
        if not isinstance(row, dict):
            raise Unreadable(f"line {number}: not a JSON object", number)
        rows.append({key: _flat(value) for key, value in row.items()})
        for key, value in rows[-1].items():
            kind = float if type(value) is int else type(value)
            if value is not None and kinds.setdefault(key, kind) is not kind:
                raise Unreadable(f"line {number}, column {key!r}: another type than before", number)
        if number % ROWS_A_REPORT == 0:
            yield len(rows)
    if not rows:
        raise Unreadable("the file holds no row")
    yield pl.DataFrame(rows, infer_schema_length=None)


def _flat(value: Any) -> Any:
    """Keep scalars; what is nested becomes its JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def schema_of(rows: pl.DataFrame) -> dict[str, str]:
    """Return the types of the columns.

    Raises:
        Unreadable: if a column's type is not supported; names the column.
    """
    schema = {}
    for name, kind in rows.schema.items():
        if kind.is_integer():
            schema[name] = ex.INTEGER
        elif kind.is_float():
            schema[name] = ex.FLOAT
        elif kind.base_type() in _KINDS:
            schema[name] = _KINDS[kind.base_type()]
        elif kind == pl.Datetime:
            schema[name] = ex.TIMESTAMP
        else:
            raise Unreadable(f"column {name!r} has a type that is not supported ({kind}); make it text or a number")
    return schema
