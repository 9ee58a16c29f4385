"""Run a frame on real rows, with Polars.

The results equal plain Python's string semantics (a property test compares them). Where Python would raise, the row is
dead from there on: nothing later revives it, and it is left out at the end, silently, since which rows and how many is
private. Columns are kept by name in a dict, never under an analyst's name in Polars, which reads some names (`*`,
`^…$`) as patterns; and the units are no column at all, so nothing an analyst names can reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from services.dataset import expressions as ex

# Rows that are worked on at once: bounds what an expression that makes texts long can make the service hold.
ROWS_AT_ONCE = 64
# No list is as long, so that an index beyond is an index at which there is nothing.
_FAR = 1 << 31
# What str.strip() removes: Unicode white space as Python sees it.
WHITESPACE = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace())

_NO_TEXT = pl.lit("")
_NO_TEXTS = pl.lit(pl.Series([[]], dtype=pl.List(pl.String))).first()


def run(
    rows: pl.DataFrame, units: NDArray[np.int64], operations: Sequence[ex.Operation], kept: dict[str, str]
) -> Iterator[pl.DataFrame]:
    """Apply checked operations to the rows of a frame's slots.

    Args:
        rows: one line for each slot that the frame covers; its slices are already cut.
        units: the unit's number of each line; shape (rows,). No operation can touch it.
        operations: type-checked before.
        kept: the columns of text to keep, by the name that each gets.

    Yields:
        Columns `unit` (int64) and those kept, without slots in which one of them is empty.
    """
    for start in range(0, rows.height, ROWS_AT_ONCE):
        part = rows.slice(start, ROWS_AT_ONCE)
        columns, alive = apply(part, operations)
        for column in kept.values():
            length = columns[column].str.len_bytes()
            alive &= ((length > 0) & (length <= ex.MOST_TEXT_BYTES)).fill_null(value=False)
        texts = [columns[column].alias(name) for name, column in kept.items()]
        numbers = pl.Series("unit", units[start : start + part.height], dtype=pl.Int64)
        yield pl.DataFrame([numbers, *texts]).filter(alive)


def apply(rows: pl.DataFrame, operations: Sequence[ex.Operation]) -> tuple[dict[str, pl.Series], pl.Series]:
    """Apply checked operations to some rows.

    Args:
        rows: one line a slot.
        operations: slices among them are passed over: they choose slots, and the slots are chosen.

    Returns:
        The frame's columns by name, and for each row whether it lives.
    """
    columns = {series.name: series for series in rows.get_columns()}
    alive = pl.Series([True] * rows.height, dtype=pl.Boolean)
    for operation in operations:
        if isinstance(operation, ex.Rename):
            columns = {operation.columns.get(name, name): series for name, series in columns.items()}
        elif isinstance(operation, ex.Select):
            columns = {name: columns[name] for name in operation.columns}
        elif isinstance(operation, ex.Drop):
            columns = {name: series for name, series in columns.items() if name not in operation.columns}
        elif isinstance(operation, ex.Filter):
            alive &= evaluate(operation.predicate, columns, rows.height).fill_null(value=False)
        elif isinstance(operation, ex.Assign):
            made = evaluate(operation.expression, columns, rows.height)
            if isinstance(operation.expression, ex.Call):
                # A call without a value is a call that failed; a copied column may well hold nothing.
                alive &= made.is_not_null()
            columns = {**columns, operation.column: made}
    return columns, alive


def evaluate(expression: ex.Expression, columns: Mapping[str, pl.Series], height: int) -> pl.Series:
    """Return the value of a checked expression for each row.

    One node after the other, so that the work grows with the tree and not with the ways through it.

    Args:
        expression: the tree.
        columns: by name.
        height: number of rows.
    """
    if isinstance(expression, ex.Column):
        return columns[expression.name]
    if isinstance(expression, ex.Literal):
        return pl.Series([expression.value] * height)
    subject, *rest = expression.arguments
    value = evaluate(subject, columns, height)
    if ex.ALLOWED[expression.function].open_ended:
        for item in rest:
            value = _combine(expression.function, value, evaluate(item, columns, height))
        return value
    constants = [item.value for item in rest if isinstance(item, ex.Literal)]
    called = _call(expression.function, pl.col("subject"), constants)
    return pl.DataFrame([value.alias("subject")]).select(called).to_series()


def _combine(function: str, one: pl.Series, other: pl.Series) -> pl.Series:
    if function == "AND":
        return one & other
    if function == "OR":
        return one | other
    pair = pl.DataFrame([one.alias("one"), other.alias("other")])
    one_column, other_column = pl.col("one"), pl.col("other")
    length = one_column.str.len_bytes().cast(pl.Int64) + other_column.str.len_bytes().cast(pl.Int64)
    return pair.select(_if_short(one_column, length, _NO_TEXT, lambda text: text + other_column)).to_series()


def _call(function: str, subject: pl.Expr, constants: list[Any]) -> pl.Expr:
    first: Any = constants[0] if constants else None
    match function:
        case "STRING_SPLIT":
            return subject.str.split(first)
        case "LIST_GET":
            return subject.list.get(max(-_FAR, min(first, _FAR - 1)), null_on_oob=True)
        case "LIST_JOIN":
            length = subject.list.len().cast(pl.Int64) * _bytes(first)
            return _if_short(subject, length, _NO_TEXTS, lambda texts: texts.list.join(first))
        case "STRING_STRIP":
            return subject.str.strip_chars(WHITESPACE if first is None else first)
        case "STRING_STRIP_START":
            return subject.str.strip_chars_start(WHITESPACE if first is None else first)
        case "STRING_STRIP_END":
            return subject.str.strip_chars_end(WHITESPACE if first is None else first)
        case "STRING_LOWER":
            return _as_python_does(subject, str.lower)
        case "STRING_UPPER":
            return _as_python_does(subject, str.upper)
        case "STRING_REPLACE":
            return _replace(subject, first, constants[1])
        case "STRING_SLICE":
            return _slice(subject, *[*constants, None, None][:2])
        case "STRING_CONTAINS":
            return subject.str.contains(first, literal=True)
        case "STRING_STARTS_WITH":
            return subject.str.starts_with(first)
        case "STRING_ENDS_WITH":
            return subject.str.ends_with(first)
        case "STRING_LENGTH":
            return subject.str.len_chars().cast(pl.Int64)
        case "NOT":
            return ~subject
    raise ex.Rejected(function, f"{function} passed the check and cannot run")


def _as_python_does(subject: pl.Expr, method: Callable[[str], str]) -> pl.Expr:
    """Change case with Python itself: Polars follows another version of Unicode, and knows other letters."""

    def change(texts: pl.Series) -> pl.Series:
        return pl.Series(texts.name, [None if text is None else method(text) for text in texts], dtype=pl.String)

    return subject.map_batches(change, return_dtype=pl.String, is_elementwise=True)


def _replace(subject: pl.Expr, old: str, new: str) -> pl.Expr:
    found = subject.str.count_matches(old, literal=True).cast(pl.Int64)
    length = subject.str.len_bytes().cast(pl.Int64) + found * (_bytes(new) - _bytes(old))
    return _if_short(subject, length, _NO_TEXT, lambda text: text.str.replace_all(old, new, literal=True))


def _if_short(subject: pl.Expr, length: pl.Expr, nothing: pl.Expr, make: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
    """Make something of the subject where it stays within bounds; elsewhere there is no value.

    Asked before it is made: a few chained replacements could otherwise ask for more than any memory. What is too long
    is replaced by nothing first, and not only masked: Polars works on what lies behind a mask as well.
    """
    fits = length <= ex.MOST_TEXT_BYTES
    return pl.when(fits).then(make(pl.when(fits).then(subject).otherwise(nothing)))


def _bytes(text: str) -> int:
    return len(text.encode())


def _slice(subject: pl.Expr, start: int | None, stop: int | None) -> pl.Expr:
    """Slice characters as Python does: bounds beyond the ends are the ends, negative ones count from the end."""
    length = subject.str.len_chars().cast(pl.Int64)

    def bound(value: int | None, default: pl.Expr) -> pl.Expr:
        if value is None:
            return default
        if value < 0:
            return pl.max_horizontal(length + value, pl.lit(0))
        return pl.min_horizontal(pl.lit(value), length)

    first = bound(start, pl.lit(0))
    width = pl.max_horizontal(bound(stop, length) - first, pl.lit(0))
    return subject.str.slice(first, width)
