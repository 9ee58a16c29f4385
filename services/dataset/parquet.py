"""The rows of Parquet files, a bounded number of them at a time.

Such a file carries its types, so it is read once and needs no copy. What has a type of its own here keeps it; the rest
becomes text in the same way as from a database, or is refused before a row is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from services.dataset import columns as typing_of
from services.dataset import expressions as ex
from services.dataset.columns import Unreadable
from services.dataset.formats import READ_BYTES, ROWS_A_REPORT, Item
from services.dataset.vault import Spool

_KEPT = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal128,
    pa.types.is_timestamp,
    pa.types.is_date,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_null,
)
# Python writes these down as text.
_WRITTEN = (pa.types.is_time, pa.types.is_duration, lambda kind: isinstance(kind, pa.UuidType | pa.JsonType))


def rows(file: Any, declared: Mapping[str, str], spool: Spool) -> Iterator[Item]:
    """Read Parquet; arguments and errors as for `formats.json_lines`. The spool stays empty."""
    try:
        # Reads pages as they are needed: a row group may be larger than any memory.
        table = pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
        schema = table.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise Unreadable("two columns have the same name")
        typing_of.check_names(schema.names)
        for field in schema:
            if not _is_read(field.type):
                raise typing_of.unsupported(field.name)
        count = 0
        for batch in table.iter_batches(batch_size=ROWS_A_REPORT):
            if not batch.num_rows:
                continue
            lines = list(range(count + 1, count + 1 + batch.num_rows))
            count += batch.num_rows
            found = [_column(name, array, lines) for name, array in zip(schema.names, batch.columns, strict=True)]
            yield typing_of.from_table(pl.DataFrame(found), lines, declared), lines
            yield count
    except (pa.ArrowException, UnicodeDecodeError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        # The library's own words can quote a row.
        raise Unreadable("the file is not Parquet, or is damaged") from None


def _is_kept(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_kept(kind.value_type)
    return any(is_one(kind) for is_one in _KEPT)


def _is_read(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return all(_is_read(kind.field(index).type) for index in range(kind.num_fields))
    return _is_kept(kind) or any(is_one(kind) for is_one in _WRITTEN)


def _column(name: str, array: pa.Array, lines: Sequence[int]) -> pl.Series:
    try:
        # Polars takes it on trust that a text is one.
        array.validate(full=True)
    except pa.ArrowInvalid:
        raise typing_of.broken(name, lines[_first_invalid(array)], "not UTF-8, or damaged") from None
    if _is_kept(array.type):
        return pl.Series(name, pl.from_arrow(array))
    values = [_plain(name, value, line) for value, line in zip(array, lines, strict=True)]
    return typing_of.column(name, ex.STRING, values, lines, lambda _, value: typing_of.written(value))


def _first_invalid(array: pa.Array) -> int:
    """Return the place of the first value that is not valid by itself; 0 where the array is broken as a whole."""
    for index in range(len(array)):
        try:
            # A slice of what is nested would have all that lies within.
            array.take(pa.array([index])).validate(full=True)
        except pa.ArrowInvalid:
            return index
    return 0


def _plain(name: str, value: pa.Scalar, line: int) -> Any:
    try:
        return value.as_py(maps_as_pydicts="strict")
    except KeyError:
        raise typing_of.broken(name, line, "a key twice in one map") from None
    except (ValueError, OverflowError):
        raise typing_of.broken(name, line, "a time that is too far away, or has nanoseconds") from None
