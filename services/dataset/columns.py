"""From what a source holds to columns of fixed types, and the checks that every source's rows go through.

A column's type is public, so it is fixed once, at registration: what the steward promised, or else what all values
agree on. A value that does not fit stops the registration, named by line and column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from services.dataset import expressions as ex

MOST_COLUMNS = 1_000
_SHAPE = f"it must have at most {MOST_COLUMNS} columns with names of 1 to {ex.MOST_NAME} characters, none of them NUL"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
# Below it, doubles tell all integers apart.
_MOST_EXACT = 1 << 53
# How Polars holds each type.
DTYPES: dict[str, Any] = {
    ex.STRING: pl.String,
    ex.INTEGER: pl.Int64,
    ex.FLOAT: pl.Float64,
    ex.BOOLEAN: pl.Boolean,
    ex.TIMESTAMP: pl.Datetime("us"),
}


class Unreadable(ValueError):
    """The source cannot be read.

    Args:
        message: why; names a line and a column, never content.
        line: the line, from 1; 0 where there is none.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class Inference:
    """Finds the types of columns from all their values, row by row, and then makes columns of them.

    Args:
        declared: types that the steward has promised, by column.
        texts: whether values are texts that may stand for numbers, and an empty text is no value; else they are what
            JSON knows: text, numbers, true and false, null.
    """

    def __init__(self, declared: Mapping[str, str], *, texts: bool) -> None:
        self._declared = declared
        self._texts = texts
        self._kinds: dict[str, list[str]] = {}

    def see(self, row: Mapping[str, Any]) -> None:
        """Take a row into account.

        Raises:
            Unreadable: as `check_names`.
        """
        known = len(self._kinds)
        for name, value in row.items():
            kinds = self._kinds.setdefault(name, [])
            if name in self._declared:
                continue
            if not self._texts:
                kind = _kind_of(value)
                if kind is not None and kind not in kinds:
                    kinds.append(kind)
            elif value:
                # What each of the texts so far can be read as, the narrowest first.
                candidates = kinds or [ex.INTEGER, ex.FLOAT, ex.BOOLEAN, ex.STRING]
                if candidates[0] != ex.STRING:
                    self._kinds[name] = [k for k in candidates if k == ex.STRING or _parse(k, value) is not None]
        if len(self._kinds) > known:
            check_names(self._kinds)

    def types(self) -> dict[str, str]:
        """Return the type of each column, in the order in which they came."""
        found = {}
        for name, kinds in self._kinds.items():
            mixed = not self._texts and set(kinds) == {ex.INTEGER, ex.FLOAT}
            found[name] = self._declared.get(name) or (ex.FLOAT if mixed else kinds[0] if kinds else ex.STRING)
        return found

    def frame(self, rows: Sequence[Mapping[str, Any]], lines: Sequence[int], types: Mapping[str, str]) -> pl.DataFrame:
        """Return some rows as columns of the types that were found.

        Raises:
            Unreadable: if a value does not fit; names its line and column.
        """
        read = _parse if self._texts else fit
        columns = []
        for name, kind in types.items():
            values = [row.get(name) for row in rows]
            columns.append(column(name, kind, [v or None for v in values] if self._texts else values, lines, read))
        return pl.DataFrame(columns)


def from_table(table: pl.DataFrame, lines: Sequence[int], declared: Mapping[str, str]) -> pl.DataFrame:
    """Return columns that have a type already in the types that this service keeps."""
    columns = []
    for series in table.get_columns():
        kind = type_of(series)
        if declared.get(series.name, kind) != kind:
            raise Unreadable(f"column {series.name!r} holds {kind}, and {declared[series.name]} was promised")
        fitted = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if _has_zone(series) else series
        fitted = fitted.cast(DTYPES[kind], strict=False)
        if kind == ex.TIMESTAMP:
            # Python's years have four digits, and what it cannot write down nobody can be shown or told apart by.
            fitted = fitted.set(~fitted.is_between(datetime.min, datetime.max), None)
        lost = (fitted.is_null() & series.is_not_null()).arg_true()
        if lost.len():
            raise broken(series.name, lines[lost[0]], "out of range")
        columns.append(fitted)
    return pl.DataFrame(columns)


def type_of(series: pl.Series) -> str:
    """Return the type of a column as the contracts know it.

    Raises:
        Unreadable: if it is not supported; names the column.
    """
    kind = series.dtype
    # A decimal without places is a number as databases give it to what they count or name.
    if kind.is_integer() or (isinstance(kind, pl.Decimal) and kind.scale == 0):
        return ex.INTEGER
    if kind.is_float() or isinstance(kind, pl.Decimal):
        return ex.FLOAT
    if kind == pl.Boolean:
        return ex.BOOLEAN
    if kind in (pl.Datetime, pl.Date):
        return ex.TIMESTAMP
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return ex.STRING
    raise unsupported(series.name)


def broken(column: str, line: int, why: str) -> Unreadable:
    """Return the refusal of a value, named by its place."""
    return Unreadable(f"line {line}, column {column!r}: {why}", line)


def unsupported(column: str) -> Unreadable:
    """Return the refusal of a column whose type is none that is kept."""
    return Unreadable(f"column {column!r} has a type that is not supported; make it text, a number or a timestamp")


def check_names(names: Collection[str]) -> None:
    """Check how many columns there are, and what they are called, before Polars makes columns of them.

    Raises:
        Unreadable: if there are too many, or one has a name that cannot be kept; lists none, since the first row of a
            file without a header is data.
    """
    if len(names) > MOST_COLUMNS or not all(ex.is_name(name) and _text(name) is not None for name in names):
        raise Unreadable(_SHAPE)


def check_wanted(names: Collection[str], unit_column: str, declared: Collection[str]) -> None:
    """Check that the columns are there that a steward has named.

    Raises:
        Unreadable: if one is not; lists none, as `check_names`.
    """
    for name in (unit_column, *declared):
        if name not in names:
            raise Unreadable(f"there is no column {name!r}; is the header there, and is the name spelt so?")


def check_rows(rows: pl.DataFrame, lines: Sequence[int], unit_column: str) -> None:
    """Check what every row must hold.

    Raises:
        Unreadable: if one does not; names its line and column.
    """
    for series in rows.get_columns():
        if series.dtype == pl.String:
            long = (series.str.len_bytes() > ex.MOST_TEXT_BYTES).arg_true()
            if long.len():
                raise broken(series.name, lines[long[0]], f"longer than {ex.MOST_TEXT_BYTES} bytes")
    units = rows.get_column(unit_column)
    # What is no number stands where pandas has nothing: rows of several people, or of one who has others too.
    none = units.is_nan() if units.dtype.is_float() else units.cast(pl.String) == ""
    missing = (units.is_null() | none).arg_true()
    if missing.len():
        raise broken(unit_column, lines[missing[0]], "empty, and every row needs its privacy unit")


def moment(text: str) -> datetime:
    """Read an instant in ISO 8601; without a zone it is UTC. Returns it without a zone, in UTC.

    Raises:
        ValueError: if it is none.
        OverflowError: as `in_utc`.
    """
    return in_utc(datetime.fromisoformat(text))


def in_utc(found: datetime) -> datetime:
    """Return an instant without a zone, in UTC; without one it is in UTC already.

    Raises:
        OverflowError: if it is none of Python's there.
    """
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def column(
    name: str, kind: str, values: Sequence[Any], lines: Sequence[int], read: Callable[[str, Any], Any]
) -> pl.Series:
    """Return values as a column.

    Args:
        name: of the column.
        kind: its type.
        values: as the source has them; None where there is none.
        lines: of each value, for what is said of one that does not fit.
        read: makes a value of the kind, or None where it is none.

    Raises:
        Unreadable: if a value does not fit; names its line and column.
    """
    fitted = []
    for line, value in zip(lines, values, strict=True):
        fits = None if value is None else read(kind, value)
        if fits is None and value is not None:
            raise broken(name, line, f"not a {kind} that this service keeps, as the rest of the column is")
        fitted.append(fits)
    return pl.Series(name, fitted, dtype=DTYPES[kind])


def fit(kind: str, value: Any) -> Any:
    """Return a JSON value as one of a kind, or None where it is none."""
    if kind == ex.FLOAT and _kind_of(value) == ex.INTEGER:
        return float(value) if abs(value) < _MOST_EXACT else None
    if kind == ex.TIMESTAMP and isinstance(value, str):
        return _parse(kind, value)
    if _kind_of(value) != kind:
        return None
    if kind == ex.INTEGER and not -(1 << 63) <= value < 1 << 63:
        return None
    return _text(value) if kind == ex.STRING else value


def written(value: Any) -> str | None:
    """Return as text what has no type of its own here: what is nested as JSON; None where it is none.

    Args:
        value: as a database's driver or Arrow gives it.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    nested = isinstance(value, dict | list)
    return _text(json.dumps(value, ensure_ascii=False, default=str) if nested else str(value))


def _parse(kind: str, text: str) -> Any:
    """Return what a text stands for, or None where it is not of the kind."""
    if kind == ex.INTEGER and _INTEGER.fullmatch(text) and len(text) < 20:
        number = int(text)
        return number if -(1 << 63) <= number < 1 << 63 else None
    if kind == ex.FLOAT and _FLOAT.fullmatch(text):
        found = float(text)
        # One with so many digits names something, and two that differ must not become the same.
        exact = abs(found) < _MOST_EXACT or not _INTEGER.fullmatch(text)
        return found if exact and math.isfinite(found) else None
    if kind == ex.BOOLEAN:
        return {"true": True, "false": False}.get(text.lower())
    if kind == ex.TIMESTAMP:
        try:
            return moment(text)
        except (ValueError, OverflowError):
            return None
    return _text(text) if kind == ex.STRING else None


def _text(value: str) -> str | None:
    """Return a text that UTF-8 can hold: JSON's escapes can write half a character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _kind_of(value: Any) -> str | None:
    if isinstance(value, bool):
        return ex.BOOLEAN
    kinds = {int: ex.INTEGER, float: ex.FLOAT, str: ex.STRING}
    return kinds.get(type(value))


def _has_zone(series: pl.Series) -> bool:
    return isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone is not None
