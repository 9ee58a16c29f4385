"""Tables and views of databases, by the name of a connection that the operator configured.

A steward names a connection and a table. The table is looked for in the database's own list, so what a steward writes
never becomes a part of a statement; and rows stream through a server-side cursor in a transaction that cannot write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import polars as pl
import sqlalchemy as sa

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import columns as typing_of
from services.dataset import expressions as ex
from services.dataset.columns import Unreadable

ROWS_AT_ONCE = 1_000
_UNREACHABLE = "the database cannot be read by the dataset service"
_BROKEN = "it holds a value that cannot be read, such as a time that is infinite or not between the years 1 and 9999"


class Databases:
    """The databases that can be registered from.

    Args:
        connections: SQLAlchemy URLs by name.

    Raises:
        ValueError: if a URL is none; does not quote it, for it may hold a password.
    """

    def __init__(self, connections: Mapping[str, str] | None = None) -> None:
        self._urls: dict[str, sa.URL] = {}
        for name, url in (connections or {}).items():
            try:
                self._urls[name] = sa.make_url(url)
                self._urls[name].get_dialect()
            except sa.exc.ArgumentError:
                raise ValueError(f"the URL of {name!r} is none that SQLAlchemy reads") from None

    def read(
        self, source: dataset_pb2.SqlSource, declared: Mapping[str, str]
    ) -> Iterator[int | tuple[pl.DataFrame, list[int]]]:
        """Read a table: yields counts of rows, and rows with their numbers.

        Args:
            source: which connection and which table or view, `schema.table` where it is not in the default schema.
            declared: types that the steward has promised, by column.

        Raises:
            Unreadable: if there is none, or a row is broken; names a row and a column, never content.
        """
        url = self._urls.get(source.connection)
        if url is None:
            raise Unreadable("the operator has configured no connection of that name (MURMURA_DATABASES)")
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool, hide_parameters=True)
        try:
            with engine.connect() as connection:
                yield from _rows(connection, source.table, declared)
        except Unreadable:
            raise
        # The words of a driver can quote a row, or the address of the database.
        except (sa.exc.DataError, ValueError, OverflowError):
            raise Unreadable(_BROKEN) from None
        except (sa.exc.SQLAlchemyError, OSError):
            raise Unreadable(_UNREACHABLE) from None
        finally:
            engine.dispose()


def _rows(connection: sa.Connection, name: str, declared: Mapping[str, str]) -> Iterator[Any]:
    if connection.dialect.name == "postgresql":
        connection = connection.execution_options(postgresql_readonly=True)
    table = _table(connection, name)
    types = {column.name: _kind(column) for column in table.columns}
    typing_of.check_names(types)
    for column, kind in declared.items():
        if types.get(column, kind) != kind:
            raise Unreadable(f"column {column!r} holds {types[column]}, and {kind} was promised")
    count = 0
    # Which asks for a server-side cursor.
    found = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(sa.select(table))
    for part in found.partitions():
        lines = list(range(count + 1, count + 1 + len(part)))
        values = [
            typing_of.column(column, kind, [row[index] for row in part], lines, _fit)
            for index, (column, kind) in enumerate(types.items())
        ]
        count += len(part)
        yield pl.DataFrame(values), lines
        yield count


def _table(connection: sa.Connection, name: str) -> sa.Table:
    """Return a table or view that the database itself lists under this name."""
    inspector = sa.inspect(connection)
    schema, _, table = name.rpartition(".")
    if schema and schema not in inspector.get_schema_names():
        schema, table = "", name
    listed = {*inspector.get_table_names(schema or None), *inspector.get_view_names(schema or None)}
    if table not in listed:
        raise Unreadable("the database lists no such table or view")
    return sa.Table(
        table,
        sa.MetaData(),
        *(sa.Column(column["name"], column["type"]) for column in inspector.get_columns(table, schema or None)),
        schema=schema or None,
    )


def _kind(column: sa.Column[Any]) -> str:
    """Return what a column holds; what has no type of its own here is kept as text."""
    # A domain is called after what its values mean, and holds what another type holds.
    kind = getattr(column.type, "data_type", column.type)
    if isinstance(kind, sa.Boolean):
        return ex.BOOLEAN
    # Numbers without places are what some databases have in place of integers.
    if isinstance(kind, sa.Integer) or (isinstance(kind, sa.Numeric) and kind.scale == 0):
        return ex.INTEGER
    if isinstance(kind, sa.Numeric | sa.Float):
        return ex.FLOAT
    return ex.TIMESTAMP if isinstance(kind, sa.DateTime | sa.Date) else ex.STRING


def _fit(kind: str, value: Any) -> Any:
    """Return a value as a driver gives it as one of a kind, or None where it is none."""
    if kind == ex.STRING:
        return typing_of.written(value)
    if kind == ex.TIMESTAMP and isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        try:
            return typing_of.in_utc(moment)
        except OverflowError:
            return None
    return typing_of.fit(kind, _plain(value) if isinstance(value, Decimal) else value)


def _plain(value: Decimal) -> int | float | None:
    """Return an exact number as Python's own; None where it has no value, or none that a double can hold."""
    if not value.is_finite() or not math.isfinite(float(value)):
        return None
    return int(value) if value == value.to_integral_value() else float(value)
