"""The rows of a frame, as the dataset service gives them to a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.common import fields
from services.trainer.worker.wire import Token, patiently

ReadRows = Callable[..., Iterator[bytes]]
_METHOD = "/murmura.api.dataset.v1.DatasetService/ReadRows"
_ROWS = fields.tag(pb.ReadRowsResponse, "arrow_ipc")


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


def read_call(channel: Any) -> ReadRows:
    """Return the call that reads rows, with its answers as they come."""
    call: ReadRows = channel.unary_stream(_METHOD, request_serializer=pb.ReadRowsRequest.SerializeToString)
    return call


def parts(answers: Iterator[bytes]) -> Iterator[tuple[bytes, pa.Table | None]]:
    """Yield what answers hold: a checkpoint key, or empty; rows, or None."""
    for answer in answers:
        rows, key = fields.read(_ROWS, answer), b""
        if rows is None:
            message = pb.ReadRowsResponse.FromString(answer)
            rows, key = memoryview(message.arrow_ipc), message.checkpoint_key
        yield key, pa.ipc.open_stream(rows).read_all() if rows else None


def read_rows(
    call: ReadRows, token: Token, frame: expressions_pb2.Frame, assignment: trainer_pb2.Assignment
) -> Received:
    """Read all rows of a frame.

    Args:
        call: of the dataset service.
        token: of the job.
        frame: one of the two that the job token names.
        assignment: which columns.

    Raises:
        RowsUnavailable: if the service refuses, or is away for too long.
    """
    request = pb.ReadRowsRequest(
        frame=frame, text_column=assignment.text_column, completion_column=assignment.completion_column
    )

    def read() -> Received:
        units: list[np.ndarray[Any, Any]] = []
        texts: list[str] = []
        completions: list[str] = []
        checkpoint_key = b""
        for key, rows in parts(call(request, metadata=token.metadata())):
            checkpoint_key = checkpoint_key or key
            if rows is not None:
                units.append(rows["unit"].to_numpy())
                texts.extend(rows["text"].to_pylist())
                if assignment.completion_column:
                    completions.extend(rows["completion"].to_pylist())
        return Received([int(unit) for part in units for unit in part], texts, completions, checkpoint_key)

    try:
        return patiently(read)
    except grpc.RpcError:
        raise RowsUnavailable from None
