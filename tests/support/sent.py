"""What a worker is sent, put together by the contract alone: no code of a worker's."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def rows_in(messages: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of `ReadRowsResponse`s: the unit and the text of each, and its completion where there are any."""
    fields = [name for name in (messages[0].text_field, messages[0].completion_field) if name]
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    units = [unit for message in messages for unit in message.units]
    for message in messages:
        if message.arrow_ipc:
            table = pa.ipc.open_stream(message.arrow_ipc).read_all()
            assert set(table.schema.names) <= set(fields), "a column that was not asked for"
            for name in table.schema.names:
                assert table.schema.field(name).type == pa.string()
                columns[name] += table[name].to_pylist()
    return list(zip(units, *(columns[name] for name in fields), strict=True))
