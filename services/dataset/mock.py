"""Mock rows: what an analyst sees of a frame. Made from the schema alone; nothing in them comes from the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import expressions as ex


def rows(schema: Mapping[str, str], public: Mapping[str, Sequence[str]], count: int) -> list[dataset_pb2.MockRow]:
    """Make `count` rows.

    Args:
        schema: column name to type.
        public: values that a steward declared public, by column.
        count: how many.
    """
    return [
        dataset_pb2.MockRow(values=[_value(name, kind, public.get(name, ()), index) for name, kind in schema.items()])
        for index in range(count)
    ]


def _value(name: str, kind: str, public: Sequence[str], index: int) -> str:
    if public:
        return public[index % len(public)]
    return {
        ex.STRING: f"mock {name} {index + 1}",
        ex.INTEGER: str(index),
        ex.FLOAT: f"{index / 2:.1f}",
        ex.BOOLEAN: "true" if index % 2 else "false",
        ex.TIMESTAMP: f"2000-01-{index % 28 + 1:02d}T00:00:00Z",
    }[kind]
