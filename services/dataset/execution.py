"""Run a frame on real rows, with Polars.

The results equal plain Python's string semantics (a property test compares them). Where Python would raise, the value
is null; a row without a text is left out at the end, silently: which rows, and how many, is private.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import polars as pl

from services.dataset import expressions as ex

UNIT = "__unit"
# What str.strip() removes: Unicode white space as Python sees it.
WHITESPACE = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace())


def run(rows: pl.DataFrame, operations: Sequence[ex.Operation], text_column: str) -> pl.DataFrame:
    """Apply checked operations to rows.

    Args:
        rows: one line a slot, with the column `__unit`.
        operations: type-checked before.
        text_column: the column to keep.

    Returns:
        Columns `unit` (int64; numbered from 0 in the order of first slots) and `text`, without empty rows.
    """
    frame = rows
    for operation in operations:
        frame = _apply(frame, operation)
    units = frame[UNIT].rank("dense").cast(pl.Int64) - 1
    kept = pl.DataFrame({"unit": units, "text": frame[text_column]})
    return kept.filter(pl.col("text").is_not_null() & (pl.col("text") != ""))


def _apply(frame: pl.DataFrame, operation: ex.Operation) -> pl.DataFrame:
    if isinstance(operation, ex.Rename):
        return frame.rename(dict(operation.columns))
    if isinstance(operation, ex.Select):
        return frame.select(UNIT, *operation.columns)
    if isinstance(operation, ex.Drop):
        return frame.drop(*operation.columns)
    if isinstance(operation, ex.Slice):
        bounds = range(frame.height)[operation.start : operation.stop]
        return frame.slice(bounds.start, len(bounds))
    if isinstance(operation, ex.Filter):
        keep = compile_expression(operation.predicate).fill_null(value=False)
        return frame.with_columns(pl.when(keep).then(pl.all().exclude(UNIT)))
    value = compile_expression(operation.expression)
    return frame.with_columns(value.alias(operation.column))


def compile_expression(expression: ex.Expression) -> pl.Expr:
    """Return the Polars expression of a checked tree."""
    if isinstance(expression, ex.Column):
        return pl.col(expression.name)
    if isinstance(expression, ex.Literal):
        return pl.lit(expression.value)
    subject = compile_expression(expression.arguments[0])
    rest = expression.arguments[1:]
    constants = [item.value if isinstance(item, ex.Literal) else None for item in rest]
    return _call(expression.function, subject, rest, constants)


def _call(function: str, subject: pl.Expr, rest: Sequence[ex.Expression], constants: list[Any]) -> pl.Expr:
    first: Any = constants[0] if constants else None
    match function:
        case "STRING_SPLIT":
            return subject.str.split(first)
        case "LIST_GET":
            return subject.list.get(first, null_on_oob=True)
        case "LIST_JOIN":
            return subject.list.join(first)
        case "STRING_STRIP":
            return subject.str.strip_chars(WHITESPACE if first is None else first)
        case "STRING_STRIP_START":
            return subject.str.strip_chars_start(WHITESPACE if first is None else first)
        case "STRING_STRIP_END":
            return subject.str.strip_chars_end(WHITESPACE if first is None else first)
        case "STRING_LOWER":
            return subject.str.to_lowercase()
        case "STRING_UPPER":
            return subject.str.to_uppercase()
        case "STRING_REPLACE":
            return subject.str.replace_all(first, constants[1], literal=True)
        case "STRING_SLICE":
            return _slice(subject, *[*constants, None, None][:2])
        case "STRING_CONCAT":
            return reduce(operator.add, [subject, *(compile_expression(item) for item in rest)])
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
        case "AND":
            return reduce(operator.and_, [subject, *(compile_expression(item) for item in rest)])
        case "OR":
            return reduce(operator.or_, [subject, *(compile_expression(item) for item in rest)])
    raise ex.Rejected(function, f"{function} passed the check and cannot run")


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
