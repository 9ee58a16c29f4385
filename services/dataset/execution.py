"""Run a frame on real rows, with Polars.

The results equal plain Python's (property tests compare them). Where Python would raise, the row is
dead from there on: nothing later revives it, and it is left out at the end, silently, since which rows and how many is
private. Columns are kept by name in a dict, never under an analyst's name in Polars, which reads some names (`*`,
`^…$`) as patterns; and the units are no column at all, so nothing an analyst names can reach them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import polars as pl
from numpy.typing import NDArray

from services.dataset import expressions as ex
from services.dataset import texts, values
from services.dataset.signatures import ALLOWED
from services.dataset.trees import walk

# What the column of units is named in results: no operation ever sees it.
UNIT = "unit"
# Rows that are worked on at once where an expression may make texts long: bounds what the service can be made to hold.
ROWS_AT_ONCE = 64
# Otherwise rows are worked on as they come, a mebibyte, unless there are more operations or longer constants than so.
_MOST_OPERATIONS, _MOST_CONSTANT = 32, 64


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
    start = 0
    for part in parts(rows, operations):
        columns, alive = apply(part, operations)
        for column in kept.values():
            length = columns[column].str.len_bytes()
            alive &= ((length > 0) & (length <= ex.MOST_TEXT_BYTES)).fill_null(value=False)
        made = [columns[column].alias(name) for name, column in kept.items()]
        numbers = pl.Series(UNIT, units[start : start + part.height], dtype=pl.Int64)
        yield pl.DataFrame([numbers, *made]).filter(alive)
        start += part.height


def parts(rows: pl.DataFrame, operations: Sequence[ex.Operation]) -> Iterator[pl.DataFrame]:
    """Cut rows into what may be worked on at once, whatever the rows hold.

    Args:
        rows: about a mebibyte, or one row that is larger.
        operations: that they will be put through; checked.
    """
    yield from rows.iter_slices(ROWS_AT_ONCE if may_grow(operations) else max(1, rows.height))


def may_grow(operations: Sequence[ex.Operation]) -> bool:
    """Say whether what operations make may be many times as large as what they are given."""
    trees = [one.expression if isinstance(one, ex.Assign) else one.predicate for one in operations if _computes(one)]
    return len(operations) > _MOST_OPERATIONS or any(_grows(node) for tree in trees for node in walk(tree))


def _computes(operation: ex.Operation) -> TypeGuard[ex.Assign | ex.Filter]:
    return isinstance(operation, ex.Assign | ex.Filter)


def _grows(node: ex.Expression) -> bool:
    if isinstance(node, ex.Call):
        return ALLOWED[node.function].grows
    return isinstance(node, ex.Literal) and isinstance(node.value, str) and len(node.value) > _MOST_CONSTANT


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
        return values.constant(expression.value, height)
    function, (subject, *rest) = expression.function, expression.arguments
    value = evaluate(subject, columns, height)
    if function in ("STRING_CONCAT", "AND", "OR"):
        for item in rest:
            value = texts.combine(function, value, evaluate(item, columns, height))
        return value
    while rest and isinstance(rest[-1], ex.Literal) and rest[-1].value is None and function != "IF":
        rest.pop()
    if function in values.HERE:
        return values.call(function, [value, *(evaluate(item, columns, height) for item in rest)])
    series = [value.alias("subject")]
    arguments: list[Any] = []
    for item in rest:
        if isinstance(item, ex.Literal):
            arguments.append(item.value)
        else:
            name = f"argument {len(arguments)}"
            series.append(evaluate(item, columns, height).alias(name))
            arguments.append(pl.col(name))
    return pl.DataFrame(series).select(texts.call(function, pl.col("subject"), arguments)).to_series()
