"""Mock rows: what an analyst sees of a frame without spending.

They are made from the schema and from values that a steward declared public, and then go through the frame's own
operations, so that a frame can be tried out. No private row has any part in them; the same frame gives the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from services.dataset import columns as columns_of
from services.dataset import execution
from services.dataset import expressions as ex


def rows(
    source: Mapping[str, str],
    public: Mapping[str, Sequence[str]],
    operations: Sequence[ex.Operation],
    schema: Mapping[str, str],
    count: int,
) -> list[list[str]]:
    """Make `count` rows of a frame.

    Args:
        source: the dataset's columns: name to type.
        public: values that a steward declared public, by column of the dataset.
        operations: checked; a mock row on which one fails shows a made-up value instead.
        schema: the frame's columns: name to type.
        count: how many.

    Returns:
        The values of each row as text, in the order of `schema`.
    """
    made = pl.DataFrame(
        [
            pl.Series(
                name,
                [_value(name, kind, public.get(name, ()), index) for index in range(count)],
                dtype=columns_of.DTYPES[kind],
            )
            for name, kind in source.items()
        ]
    )
    columns_made, _ = execution.apply(made, operations)
    columns = []
    for name, kind in schema.items():
        values = columns_made[name].to_list()
        columns.append(
            [_text(_value(name, kind, (), index) if value is None else value) for index, value in enumerate(values)]
        )
    return [[column[index] for column in columns] for index in range(count)]


def parse(kind: str, text: str) -> Any:
    """Read a declared public value.

    Raises:
        ValueError: if it is not of the column's type.
    """
    if kind == ex.INTEGER:
        number = int(text)
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError("out of range")
        return number
    if kind == ex.FLOAT:
        return float(text)
    if kind == ex.BOOLEAN:
        if text.lower() not in ("true", "false"):
            raise ValueError("neither true nor false")
        return text.lower() == "true"
    if kind == ex.TIMESTAMP:
        return columns_of.moment(text)
    return text


def _value(name: str, kind: str, public: Sequence[str], index: int) -> Any:
    if public:
        return parse(kind, public[index % len(public)])
    return {
        ex.STRING: f"mock {name} {index + 1}",
        ex.INTEGER: index,
        ex.FLOAT: index / 2,
        ex.BOOLEAN: index % 2 == 1,
        ex.TIMESTAMP: datetime(2000, 1, index % 28 + 1),
    }[kind]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat() + "Z"
    return str(value)
