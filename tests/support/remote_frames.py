"""Remote frames without a network: the dataset service's checker, its mock rows and its engine, on three rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl

from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.frame import RemoteFrame
from services.dataset import execution, frames, mock
from services.dataset import expressions as ex

SCHEMA = {"text": "STRING", "age": "INTEGER", "dose": "FLOAT", "sick": "BOOLEAN", "at": "TIMESTAMP"}
ROWS = pl.DataFrame(
    {
        "text": ["Ann,7", "bo,x", None],
        "age": [70, 20, 61],
        "dose": pl.Series([1.5, None, 0.0], dtype=pl.Float64),
        "sick": [True, False, None],
        "at": [datetime(2020, 2, 29, 13, 5), datetime(1999, 1, 1), None],
    }
)


class Service:
    """The checker and the mock rows of the dataset service, without the network."""

    def call(self, method: str, request: Any, timeout_s: float = 0) -> messages.DescribeFrameResponse:
        shape = ex.Shape(SCHEMA, range(ROWS.height))
        operations = frames.operations(request.frame)
        for operation in operations:
            shape = ex.after(shape, operation)
        answer = messages.DescribeFrameResponse(row_count=len(shape.slots), unit_count=3)
        for name, kind in shape.schema.items():
            answer.schema.columns.add(name=name, type=f"VALUE_TYPE_{kind}")
        for values in mock.rows(SCHEMA, {}, operations, shape.schema, 2):
            answer.mock_rows.add(values=values)
        return answer


class Client:
    """Who asks it."""

    subject = "ann"

    def stub(self, service: str, interface: str = "") -> Service:
        return Service()


def run(frame: RemoteFrame, column: str) -> list[Any]:
    """Return the column's value of each row; None for a row that is left out."""
    columns, alive = execution.apply(ROWS, frames.operations(frame.proto))
    return [value if lives else None for value, lives in zip(columns[column], alive, strict=True)]
