"""The rows of a frame, as the dataset service gives them to a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from murmura.api.dataset.v1 import dataset_service_pb2, expressions_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.trainer.worker.wire import Token, patiently


class RowsUnavailable(Exception):
    """The dataset service does not give the rows."""


@dataclass(frozen=True)
class Received:
    """The rows, in the order in which they came. Kept out of `repr`.

    Attributes:
        units: the unit of each row, from 0.
        texts: the text, prompt or conversation of each row.
        completions: of each row; empty where there are none.
        checkpoint_key: 32 bytes, the same for every worker of the job.
    """

    units: list[int] = field(repr=False)
    texts: list[str] = field(repr=False)
    completions: list[str] = field(repr=False)
    checkpoint_key: bytes = field(repr=False)


def read_rows(stub: Any, token: Token, frame: expressions_pb2.Frame, assignment: trainer_pb2.Assignment) -> Received:
    """Read all rows of a frame.

    Args:
        stub: the DatasetService.
        token: of the job.
        frame: one of the two that the job token names.
        assignment: which columns.

    Raises:
        RowsUnavailable: if the service refuses, or is away for too long.
    """
    request = dataset_service_pb2.ReadRowsRequest(
        frame=frame, text_column=assignment.text_column, completion_column=assignment.completion_column
    )

    def read() -> Received:
        units: list[np.ndarray[Any, Any]] = []
        texts: list[str] = []
        completions: list[str] = []
        key = b""
        for message in stub.ReadRows(request, metadata=token.metadata()):
            key = key or message.checkpoint_key
            if message.arrow_ipc:
                table = pa.ipc.open_stream(message.arrow_ipc).read_all()
                units.append(table["unit"].to_numpy())
                texts.extend(table["text"].to_pylist())
                if assignment.completion_column:
                    completions.extend(table["completion"].to_pylist())
        return Received([int(unit) for part in units for unit in part], texts, completions, key)

    try:
        return patiently(read)
    except grpc.RpcError:
        raise RowsUnavailable from None
